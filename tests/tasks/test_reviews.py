"""The embedded reviews task: prompts, tokenizer, demonstrations, and the models it ships."""

import math

import numpy as np
import pytest
import torch

from rlhf_gym.lm.generation import generate
from rlhf_gym.lm.loading import load_causal_lm, load_tokenizer
from rlhf_gym.lm.tokens import decode, encode_prompts, encode_responses, stop_token_ids
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.tasks.reviews import (
    heldout_topics,
    review_extent,
    review_perplexity,
    reviews_tokenizer,
    training_topics,
)
from rlhf_gym.tasks.reviews_words import HEADINGS, VOCABULARY
from rlhf_gym.tasks.task import Generated
from rlhf_gym.training import evaluate_sft


@pytest.fixture(scope="module")
def task() -> Task:
    return reviews_task(num_demonstrations=300, num_heldout_demonstrations=1000, num_pretraining_texts=300)


def test_heldout_prompts_pair_what_no_training_prompt_pairs(task):
    train, heldout = training_topics(), heldout_topics()
    assert (len(train), len(heldout)) == (1440, 288)
    assert not {(t.item, t.aspect) for t in train} & {(t.item, t.aspect) for t in heldout}
    assert len(set(task.prompts)) == 1440
    assert len(set(task.heldout_prompts)) == 288
    seen = {word for prompt in task.prompts for word in prompt.split()}
    assert {word for prompt in task.heldout_prompts for word in prompt.split()} == seen


def test_demonstrations_and_texts_keep_to_their_side(task):
    training, heldout = set(task.prompts), set(task.heldout_prompts)
    assert {d.prompt for d in task.demonstrations} <= training
    assert {d.prompt for d in task.heldout_demonstrations} <= heldout
    headings = set()
    for text in task.pretraining_texts:
        prompt = text.partition(":")[0] + ":"
        heading = " ".join(prompt.split()[:2])
        headings.add(heading)
        assert prompt.replace(heading, HEADINGS[0], 1) in training
    assert headings == set(HEADINGS)


def test_demonstrations_depend_on_the_seed_and_not_on_their_number(task):
    same = reviews_task(num_demonstrations=20).demonstrations
    assert list(same) == task.demonstrations[:20] == list(same)
    assert list(reviews_task(num_demonstrations=20, seed=1).demonstrations) != list(same)
    assert {d.response for d in task.demonstrations[:20]} != {d.response for d in task.heldout_demonstrations[:20]}


def test_texts_round_trip_and_fit(task):
    tokenizer = task.tokenizer
    assert len(tokenizer) == len(VOCABULARY) + 3
    prompts = [*task.prompts, *task.heldout_prompts]
    responses = [d.response for d in (*task.demonstrations, *task.heldout_demonstrations)]
    for texts, rows, longest in (
        (prompts, encode_prompts(tokenizer, prompts), task.max_prompt_length),
        (responses, encode_responses(tokenizer, responses), task.max_new_tokens),
        (list(task.pretraining_texts), encode_prompts(tokenizer, task.pretraining_texts), 64),
    ):
        assert decode(tokenizer, rows) == texts
        assert not any(tokenizer.unk_token_id in row for row in rows)
        assert max(len(row) for row in rows) <= longest
    assert (
        tokenizer("a strange word").input_ids == [tokenizer.convert_tokens_to_ids("a")] + [tokenizer.unk_token_id] * 2
    )


def test_gold_tells_reviews_apart_and_leaves_room_above(task):
    """A tenth of the demonstrations are good (above 1.9), a quarter poor (below −.5), and the best is about 2.94."""
    shown = task.heldout_demonstrations[:]
    gold = task.gold([d.prompt for d in shown], [d.response for d in shown])
    assert gold.std() > 1.0
    assert 0.05 < np.mean(gold > 1.9) < 0.2
    assert 0.15 < np.mean(gold < -0.5) < 0.4
    assert gold.max() >= 2.9


@pytest.mark.parametrize("name", ["pretrained", "sft", "reward_model"])
def test_shipped_models_carry_the_tasks_tokenizer(task, name):
    folder = getattr(task, name)
    assert load_tokenizer(folder).get_vocab() == reviews_tokenizer().get_vocab()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6


def test_sft_policy_is_near_the_languages_entropy(task):
    """Perplexity on held-out demonstrations within 10 % of the exact one; the pretrained model's is well above."""
    exact = review_perplexity()
    length, entropy = review_extent()
    assert exact == pytest.approx(math.exp(entropy / length))
    tuned = evaluate_sft(load_causal_lm(task.sft), task.tokenizer, task.heldout_demonstrations)
    untuned = evaluate_sft(load_causal_lm(task.pretrained), task.tokenizer, task.heldout_demonstrations)
    assert tuned.perplexity < 1.1 * exact
    assert untuned.perplexity > tuned.perplexity


def test_best_of_32_by_the_shipped_reward_model_beats_a_sample(task):
    """Of 64 responses to each of 50 held-out prompts: the first 32's best by proxy against the other 32, by gold.

    Its KL is below log 32 − 31/32 = 2.5 nats. A useless reward model wins half; the standard error is about .03.
    """
    policy, reward = load_causal_lm(task.sft), RewardModel.from_pretrained(task.reward_model)
    prompts = list(task.heldout_prompts[:50])
    repeated = [prompt for prompt in prompts for _ in range(64)]
    drawn = generate(
        policy,
        encode_prompts(task.tokenizer, repeated),
        max_new_tokens=task.max_new_tokens,
        stop_token_ids=stop_token_ids(task.tokenizer),
        num_slots=256,
        generator=torch.Generator().manual_seed(0),
    )
    responses = decode(task.tokenizer, [g.response_ids for g in drawn])
    gold = task.gold(repeated, responses).reshape(50, 64)
    proxy = reward.score_texts(repeated, responses, batch_size=512).reshape(50, 64)
    best = gold[np.arange(50), proxy[:, :32].argmax(axis=1)][:, None]  # (50, 1)
    wins = np.mean(best > gold[:, 32:]) + 0.5 * np.mean(best == gold[:, 32:])
    assert wins > 0.75


def test_generated_sequences():
    squares = Generated(4, lambda i: i * i)
    assert list(squares) == [0, 1, 4, 9]
    assert (len(squares), squares[-1], squares[1:3]) == (4, 9, [1, 4])
    assert 9 in squares
    with pytest.raises(IndexError, match="index 4 is out of range for a sequence of 4"):
        squares[4]
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Generated(-1, lambda i: i)


@pytest.mark.parametrize(
    ("prompts", "heldout", "message"),
    [((), ("a",), "at least one prompt, got none"), (("a", "b"), ("b", "c"), "got 1 in both, such as 'b'")],
)
def test_a_task_needs_prompts_and_keeps_them_apart(prompts, heldout, message):
    with pytest.raises(ValueError, match=message):
        Task("x", prompts, heldout, (), (), reviews_tokenizer(), None, 4, 4)
