"""The embedded dialogues: what the customer says, gold by hand, the demonstrations, and `rlhf_gym/Chat-v0` itself."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import rlhf_gym.envs  # noqa: F401 (registers the environments)
from rlhf_gym.agents import TokenPPO, collect_rollout
from rlhf_gym.lm import Message, load_tokenizer
from rlhf_gym.lm.tokens import encode_prompts, encode_responses
from rlhf_gym.tasks import Task, customer_task
from rlhf_gym.tasks.customer import MAX_TURNS, customer_gold, customer_mood, customer_reply
from rlhf_gym.tasks.reviews_words import ASPECTS

HURRIED = "so how was the soup at the harbour cafe ?"
PATIENT = "well how was the soup at the harbour cafe ?"


def talk(*texts: str) -> tuple[Message, ...]:
    """A conversation that the customer opens."""
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def gold(*texts: str) -> float:
    messages = talk(*texts)
    return float(customer_gold([messages[:-1]], [messages[-1].content])[0])


@pytest.fixture(scope="module")
def task() -> Task:
    return customer_task(num_demonstrations=240, num_heldout_demonstrations=60)


@pytest.mark.parametrize(
    ("answer", "mood", "hurried", "patient"),
    [
        ("the soup was very tasty .", "content", "and how was the", "and how was the"),
        ("the soup was ordinary .", "doubtful", None, "honestly how was the soup ?"),
        ("the bread was lovely and rich .", "missed", None, "anyway how was the soup ?"),
        ("the soup was cold .", "offended", None, None),
        ("what a divine soup ! it was superb and perfect and flawless .", "offended", None, None),
        ("", "missed", None, "anyway how was the soup ?"),
    ],
)
def test_what_the_customer_says_to_an_answer_about_the_dish(answer, mood, hurried, patient):
    for opening, reply in ((HURRIED, hurried), (PATIENT, patient)):
        messages = talk(opening, answer)
        assert customer_mood(messages) == mood
        said = customer_reply(messages, np.random.default_rng(3))
        assert said == reply or (mood == "content" and said in {f"{reply} {aspect} ?" for aspect in ASPECTS})


def test_the_aspect_is_drawn_and_the_conversation_ends_with_a_good_answer_about_it():
    first = talk(PATIENT, "the soup was tasty .")
    drawn = [customer_reply(first, np.random.default_rng(seed)) for seed in range(60)]
    assert drawn == [customer_reply(first, np.random.default_rng(seed)) for seed in range(60)]
    assert set(drawn) == {f"and how was the {aspect} ?" for aspect in ASPECTS}
    texts = (PATIENT, "the soup was tasty .", "and how was the music ?")
    rng = np.random.default_rng(0)
    assert customer_reply(talk(*texts, "the music was soft ."), rng) is None
    assert customer_reply(talk(*texts, "the soup was tasty ."), rng) == "anyway how was the music ?"


def test_gold_by_hand():
    """Tone: one word of praise .64, two .96, none 0, one complaint −.5."""
    assert gold(HURRIED, "the soup was tasty .") == pytest.approx(2 + 0.64)
    assert gold(PATIENT, "the soup was tasty .") == pytest.approx(2 + 0.64 - 0.8)  # four words short of eight
    assert gold(HURRIED, "the soup was cold .") == pytest.approx(-2 - 0.5)
    long = "the soup was tasty . the bread was rich ."
    assert gold(HURRIED, long) == pytest.approx(2 + 0.96 - 0.4)  # two words more than six
    assert gold(PATIENT, long) == pytest.approx(2 + 0.96)
    both = (HURRIED, "the soup was tasty .", "and how was the music ?", "the music was soft .")
    assert gold(*both) == pytest.approx(4 + 0.64)
    again = (PATIENT, "i had the bread .", "anyway how was the soup ?", "the soup was tasty .")
    assert gold(*again) == pytest.approx(2 - 1 + (0 - 0.8 + 0.64 - 0.8) / 2)
    # ten neighbours with the ends, two of which the language does not have: "was was" and a text's end after "tasty"
    assert gold(HURRIED, "the soup was was tasty") == pytest.approx(2 + 0.64 - 2 * 2 / 6)


def test_openings_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="expected a customer's question, how was the … "):
        customer_mood(talk("hello", "the soup was tasty ."))
    with pytest.raises(ValueError, match="expected the opening of a customer of 10 words, got 'how was the soup"):
        customer_mood(talk("how was the soup ?", "the soup was tasty ."))


def test_prompts_and_demonstrations_keep_to_their_side_and_fit(task):
    assert (len(task.prompts), len(task.heldout_prompts)) == (480, 96)
    assert len({*task.prompts, *task.heldout_prompts}) == 576
    for demonstrations, prompts in (
        (task.demonstrations, task.prompts),
        (task.heldout_demonstrations, task.heldout_prompts),
    ):
        assert {d.prompt[:1] for d in demonstrations} <= set(prompts)
    shown = list(task.demonstrations)
    assert shown[:20] == list(customer_task(num_demonstrations=20).demonstrations)
    assert shown[:20] != list(customer_task(num_demonstrations=20, seed=1).demonstrations)
    assert {len(d.prompt) for d in shown} == {1, 3, 5}
    rows = encode_prompts(task.tokenizer, [*task.prompts, *(d.prompt for d in shown)])
    answers = encode_responses(task.tokenizer, [d.response for d in shown])
    assert not any(task.tokenizer.unk_token_id in row for row in (*rows, *answers))
    assert max(map(len, rows[: len(task.prompts)])) == task.max_prompt_length
    assert MAX_TURNS * max(map(len, answers)) <= task.max_new_tokens
    assert all(row[-1] == task.tokenizer.eos_token_id for row in answers)


def test_the_shipped_models_are_small_and_carry_the_tasks_tokenizer(task):
    for folder in (task.sft, task.reward_model):
        assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
        tokenizer = load_tokenizer(folder)
        assert tokenizer.get_vocab() == task.tokenizer.get_vocab()
        assert tokenizer.chat_template == task.tokenizer.chat_template


def test_the_shipped_reward_model_orders_dialogues_as_gold_does(task):
    """Of neighbours among 200 dialogues of the SFT policy; a useless reward model is right about half."""
    rollout = play(4, episodes=200, reward=task.gold)
    proxy = play(4, episodes=200).rewards.scores
    gold_scores = rollout.rewards.scores
    right = np.sign(proxy[::2] - proxy[1::2]) == np.sign(gold_scores[::2] - gold_scores[1::2])
    assert right.mean() > 0.75


def play(seed: int, episodes: int = 32, **changes):
    """Dialogues of the SFT policy with held-out customers."""
    task = customer_task()
    env = gym.make_vec(
        "rlhf_gym/Chat-v0", num_envs=16, reward_timing="deferred", prompts=task.heldout_prompts, **changes
    )
    agent = TokenPPO("LMPolicy", env, n_episodes=32, batch_size=16, seed=seed, device="cpu")
    env.reset(seed=seed)
    agent.policy.set_training_mode(False)
    return collect_rollout(agent.policy, env, episodes, critic=False)


def test_dialogues_of_chat_v0_are_those_of_the_customer(task):
    rollout = play(0, reward=task.gold)
    assert [e.messages for e in play(0).episodes] == [e.messages for e in rollout.episodes]
    assert [e.messages for e in play(1).episodes] != [e.messages for e in rollout.episodes]
    assert rollout.mean_kl == pytest.approx(0, abs=1e-5)
    lengths = set()
    for episode, score in zip(rollout.episodes, rollout.rewards.scores, strict=True):
        messages = episode.messages
        lengths.add(len(messages))
        for end in range(2, len(messages), 2):
            said = customer_reply(messages[:end], np.random.default_rng(0))
            assert messages[end].content == said or said.startswith("and how was the ")
        if len(messages) < 2 * MAX_TURNS:
            assert customer_reply(messages, np.random.default_rng(0)) is None
        assert score == pytest.approx(gold(*(message.content for message in messages)), abs=1e-5)
        text = "".join(f"<{m.role}> {m.content} <eos> " for m in messages)
        if episode.finish_reason == "stop" and text.count("<") == 2 * len(messages):
            assert episode.input_ids.tolist() == task.tokenizer(text.strip()).input_ids
    assert lengths >= {2, 4}
