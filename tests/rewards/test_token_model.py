"""A learned reward at tokens: what a token classifier says at the ends of steps, by every route, saved as such."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    GPT2ForTokenClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from rlhf_gym.envs import AddVerifier, ClipScore, LengthPenalty, TokenVectorEnv
from rlhf_gym.lm.loading import Shared
from rlhf_gym.rewards import EpisodeScorer, RewardEnsemble, RewardNormalizer, TokenRewardModel, load_reward
from tests.envs.test_rewards import N, play
from tests.tiny import WORDS, build, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.toy import word_policy, word_settings

END = "was"
"""A word of the policy that stands for a separator."""


def token_model(labels=2, tokenizer=None, seed=3, *, architecture=GPT2ForTokenClassification, **overrides):
    """A random token classifier over the tokenizer's words; separator `was`."""
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    tiny = tiny_llama if architecture is LlamaForTokenClassification else tiny_gpt2
    model = tiny(len(tokenizer), seed=seed, model_class=architecture, num_labels=labels)
    return TokenRewardModel(model, tokenizer, **({"separator": END} | overrides))


@torch.no_grad()
def logits(model: TokenRewardModel, ids) -> torch.Tensor:
    """The class's own logits for one row alone, (L, k)."""
    return model.model(input_ids=torch.tensor([list(ids)])).logits[0]


def expected_row(model: TokenRewardModel, episode) -> np.ndarray:
    """What each action of an episode gets, written out: at each `was` behind a word, and for what is left."""
    ids = episode.input_ids.tolist()
    first = len(episode.prompt_ids)
    end = model.tokenizer.convert_tokens_to_ids(END)
    special = set(model.tokenizer.all_special_ids)
    row = np.zeros(episode.response_length)
    said = 0
    for t, token in enumerate(episode.response_ids.tolist()):
        if token == end:
            if said:
                row[t] += logits(model, ids)[first + t].softmax(0)[1]
            said = 0
        elif token not in special:
            said = first + t
    if said:
        row[-1] += logits(model, [*ids[: said + 1], end])[-1].softmax(0)[1]
    return row


SHAPING = (LengthPenalty(0.1), AddVerifier(lambda p, r: [float(len(x)) for x in r], 0.1), ClipScore(-1, 1))


@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("shaping", [(), SHAPING])
def test_rewards_stand_at_the_ends_of_steps_and_add_up_by_every_route(attached, shaping):
    model = token_model(normalizer=RewardNormalizer(0.5, 2.0))
    settings = word_settings(reward=Shared(model), shaping=shaping)
    deferred = TokenVectorEnv(N, **(settings | {"reward_timing": "deferred"}))
    step = TokenVectorEnv(N, **settings)
    policy = word_policy(step)
    if attached:
        step.attach(policy)
    later, now = play(deferred, policy), play(step, policy)
    earned = deferred.score_episodes([e for e, *_ in later], [p for _, _, p, *_ in later] if attached else None)
    some = 0
    for i, (episode, *_) in enumerate(later):
        row = expected_row(model, episode) / 2
        some += bool(row.any())
        np.testing.assert_allclose(earned.dense[i, : len(row)], row, atol=1e-6)
        assert earned.raw_scores[i] == pytest.approx(-0.25, abs=1e-6)
        total = earned.dense[i].sum() + earned.scores[i] - 0.1 * earned.log_ratios[i].sum()
        assert earned.rewards[i].sum() == pytest.approx(total, abs=1e-5)
    assert some > 3, "the policy writes steps"
    for (_, rewards, *_), whole in zip(now, earned.rewards, strict=True):
        assert np.sum(rewards) == pytest.approx(whole.sum(), abs=1e-5)


@pytest.mark.parametrize("architecture", [GPT2ForTokenClassification, LlamaForTokenClassification])
@pytest.mark.parametrize("labels", [1, 2])
def test_it_is_saved_as_a_token_classifier(tmp_path, architecture, labels):
    model = token_model(labels, architecture=architecture, at="token", normalizer=RewardNormalizer(1.0, 3.0))
    model.save_pretrained(tmp_path)
    found = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert type(found) is architecture
    back = load_reward(tmp_path)
    assert isinstance(back, TokenRewardModel)
    assert (back.at, back.separator, back.normalizers) == ("token", END, (RewardNormalizer(1.0, 3.0),))
    row = model.labelled_row("good film", ["the plot was bad ", " fun"])
    ids = torch.tensor([row.ids])
    theirs = found(input_ids=ids).logits[0, row.reads].detach()  # (S, k)
    ours = back.rewards_of(back.log_odds([row])[0])  # (S,)
    expected = theirs[:, 0] if labels == 1 else theirs.softmax(dim=1)[:, 1]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_at_every_token_the_reward_is_the_logit():
    model = token_model(1, at="token")
    env = TokenVectorEnv(N, **word_settings(reward=Shared(model), reward_timing="deferred"))
    episodes = [e for e, *_ in play(env, word_policy(env))]
    earned = env.score_episodes(episodes)
    for i, e in enumerate(episodes):
        own = logits(model, e.input_ids)[e.action_mask, 0].numpy()
        np.testing.assert_allclose(earned.dense[i, : len(own)], own, atol=1e-5)


@pytest.mark.parametrize("at", ["separator", "sentence", "turn", "token"])
def test_neither_batch_nor_padding_side_matters(at):
    tokenizer = tiny_tokenizer([*WORDS, "."])
    model = token_model(2, tokenizer, at=at)
    prompts = ["good film", "the", "a scene of fun it was", "good film"]
    responses = ["the plot was bad . dull", "it was", "film", "the film . it was fun was good . we saw it"]
    together = model.scores_of_texts(prompts, responses).scores
    assert together.unique().numel() == 4
    for side in ("left", "right"):
        tokenizer.padding_side = side
        for size in (1, 2, None):
            found = model.scores_of_texts(prompts, responses, batch_size=size).scores
            torch.testing.assert_close(found, together, atol=1e-5, rtol=0)
    alone = [model.scores_of_texts([p], [r]).scores for p, r in zip(prompts, responses, strict=True)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=0)


def test_an_encoder_can_give_rewards_too():
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=29, max_position_embeddings=64, initializer_range=0.2, num_labels=2, **shape)
    model = TokenRewardModel(build(BertForTokenClassification, config, 0), tiny_tokenizer(), separator=END)
    row = model.labelled_row("good film", ["the plot", "bad"])
    ours = model.rewards_of(model.log_odds([row])[0])
    torch.testing.assert_close(ours, logits(model, row.ids)[row.reads].softmax(1)[:, 1], atol=1e-6, rtol=0)


def test_another_tokenizer_is_aligned_by_the_text():
    """The model's ids are the policy's in another order: the same steps, at the same actions."""
    policy = tiny_tokenizer()
    other = tiny_tokenizer(WORDS[::-1])
    model = token_model(2, other)
    text = "the plot was bad film was was fun"
    ids = [3, *policy(text).input_ids, policy.eos_token_id]
    mask = torch.tensor([[False] + [True] * (len(ids) - 1)])
    scorer = EpisodeScorer(model, policy)
    assert scorer.routes == ("text",)
    found = scorer(torch.tensor([ids]), mask, torch.tensor([len(ids)]))
    row = model.labelled_row(policy.decode([3]), ["the plot", "bad film", "fun"])
    said = logits(model, row.ids)[row.reads].softmax(1)[:, 1]
    places = found.dense[0].nonzero()[:, 0].tolist()
    assert places == [2, 5, len(ids) - 2]
    torch.testing.assert_close(found.dense[0, places], said, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"reward at every token \(at='token'\), got a policy with another tokenizer"):
        EpisodeScorer(token_model(2, other, at="token"), policy)


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_an_ensemble_is_aggregated_token_by_token(tmp_path, aggregate):
    members = [token_model(2, seed=seed, at="sentence" if seed else "token") for seed in range(2)]
    RewardEnsemble(members, aggregate).save_pretrained(tmp_path)
    env = TokenVectorEnv(N, **word_settings(reward=tmp_path, reward_timing="deferred"))
    episodes = [e for e, *_ in play(env, word_policy(env))]
    earned = env.score_episodes(episodes)
    tables = []
    for member in members:
        alone = TokenVectorEnv(N, **word_settings(reward=Shared(member), reward_timing="deferred"))
        tables.append(alone.score_episodes([e for e, *_ in play(alone, word_policy(alone))]).dense)
    expected = np.mean(tables, axis=0) if aggregate == "mean" else np.min(tables, axis=0)
    np.testing.assert_allclose(earned.dense, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "good"), [({0: "LABEL_0", 1: "LABEL_1"}, 1), ({0: "good", 1: "bad"}, 0), ({0: "-", 1: "+"}, 1)]
)
def test_which_label_is_good(names, good):
    model = token_model()
    model.model.config.id2label = names
    assert model.good == good
    row = model.labelled_row("good", ["film"])
    said = logits(model, row.ids)[row.reads].softmax(1)[:, good]
    torch.testing.assert_close(model.rewards_of(model.log_odds([row])[0]), said)


def test_an_empty_step_earns_nothing():
    model = token_model()
    totals = model.scores_of_texts(["good"] * 3, ["the film was", "the film was was was was", "was was"]).scores
    assert totals[0] == pytest.approx(float(totals[1]), abs=1e-6)
    assert totals[2] == 0


def test_what_is_no_token_reward_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="one label or two \\(bad, good\\), got 3 labels"):
        token_model(3)
    with pytest.raises(ValueError, match="separator that the tokenizer has tokens for, got '\\\\n'"):
        token_model(separator="\n")
    with pytest.raises(ValueError, match="expected at to be one of"):
        token_model(at="word")
    model = token_model()
    wide = torch.tensor([[3, 400, 5]])
    with pytest.raises(ValueError, match="reward model can embed, got 400 at place 1 of row 0"):
        EpisodeScorer(token_model(at="token"), tiny_tokenizer(), vocab_size=500)(
            wide, torch.tensor([[False, True, True]]), torch.tensor([3])
        )
    tiny_gpt2(29).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got a checkpoint without classifier"):
        TokenRewardModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"classifier\.weight"):
        TokenRewardModel(model.model, model.tokenizer, separator=END)


def test_it_begins_as_a_copy_of_a_language_model():
    policy = tiny_llama(29)
    model = TokenRewardModel.from_language_model(policy, tiny_tokenizer(), separator=END, seed=1)
    assert type(model.model) is LlamaForTokenClassification
    assert [model.model.config.id2label[i] for i in range(2)] == ["bad", "good"]
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        ours = model.model.model(input_ids=ids).last_hidden_state
        theirs = policy.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(ours, theirs)


def test_each_turn_of_several_has_steps_of_its_own():
    """What another says between the turns is read, and has no rewards."""
    model = token_model()
    end = model.tokenizer.convert_tokens_to_ids(END)
    ids = torch.tensor([[3, 4, end, 5, 6, end, 7, 1]])  # prompt; "bad was fine"; other: "poor was"; "fun <eos>"
    mask = torch.tensor([[False, True, True, True, False, False, True, True]])
    found = EpisodeScorer(model, model.tokenizer)(ids, mask, torch.tensor([8]))
    row = logits(model, ids[0]).softmax(1)[:, 1]
    last = logits(model, [*ids[0, :7].tolist(), end])[-1].softmax(0)[1]
    torch.testing.assert_close(
        found.dense[0], torch.stack([torch.tensor(0.0), row[2], row[3], torch.tensor(0.0), last])
    )
    turns = TokenRewardModel(model.model, model.tokenizer, at="turn")
    found = EpisodeScorer(turns, model.tokenizer)(ids, mask, torch.tensor([8]))
    torch.testing.assert_close(
        found.dense[0], torch.stack([torch.zeros(()), torch.zeros(()), row[3], torch.zeros(()), row[7]])
    )


@pytest.mark.parametrize(("at", "text"), [("sentence", "fine film \n\n"), ("separator", "good was fine film \n")])
def test_white_space_behind_the_last_step_is_not_read(at, text):
    """A text earns what the same text earns as sampled tokens, and as the text without the white space."""
    characters = Tokenizer(BPE({c: i for i, c in enumerate("#\n abdefgilmnosw")}, []))
    characters.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="#")
    model = token_model(tokenizer=tokenizer, at=at)
    prompt, ids = (tokenizer(part).input_ids for part in ("good", text))
    mask = np.array([False] * len(prompt) + [True] * len(ids))
    sampled = model.rewards_of(model.log_odds([model.sampled_row([*prompt, *ids], mask, tokenizer)])[0]).sum()
    read = model.scores_of_texts(["good"] * 2, [text, text.rstrip()]).scores
    torch.testing.assert_close(read, sampled.expand(2))


def test_the_pad_token_may_be_the_eos():
    told = []
    for pad in ("pad_token", "eos_token"):
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = getattr(tokenizer, pad)
        model = token_model(tokenizer=tokenizer)
        told.append(model.scores_of_texts(["the soup", "the bread was"], ["good . fine .", "poor ."]).totals)
    torch.testing.assert_close(told[0], told[1], rtol=0, atol=0)
    assert told[0].abs().min() > 0.1
