"""Reward models: where they read, what their checkpoints hold, normalisation and ensembles."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForSequenceClassification,
)

from rlhf_gym.lm.tokens import pad_rows
from rlhf_gym.rewards import (
    EpisodeScorer,
    RewardEnsemble,
    RewardModel,
    RewardNormalizer,
    aggregate_scores,
    keyword_reward,
    length_reward,
    sum_rewards,
)
from tests.tiny import (
    VOCAB_SIZE,
    build,
    tiny_bert_classifier,
    tiny_gemma3,
    tiny_gpt2,
    tiny_llama,
    tiny_mistral,
    tiny_qwen2,
    tiny_reward_model,
    tiny_tokenizer,
)

EOS = 1
ROWS = [[5, 9, 13, 4, EOS], [7, EOS, 8, 3], [11], [6, 6, 6, 6, 6, 6, 6, 6, EOS]]


def batch(rows: list[list[int]], *, pad: int = 0, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = pad_rows(rows, pad_token_id=pad, length=length)
    return torch.from_numpy(ids), torch.from_numpy(mask)


# --- where it reads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("pad", [0, EOS])
def test_a_row_scores_alike_alone_in_a_batch_and_with_more_padding(architecture: str, pad: int) -> None:
    reward = tiny_reward_model(tiny_tokenizer(pad_is_eos=pad == EOS), architecture=architecture)
    alone = torch.cat([reward.score_tokens(*batch([row])) for row in ROWS])
    assert alone.std() > 0.1
    for length in (None, 30):
        together = reward.score_tokens(*batch(ROWS, pad=pad, length=length))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    small_batches = reward.score_tokens(*batch(ROWS, pad=pad), batch_size=2)
    torch.testing.assert_close(small_batches, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_it_reads_the_last_real_token_and_an_eos_inside_does_not_move_that(pad_is_eos: bool) -> None:
    reward = tiny_reward_model(tiny_tokenizer(pad_is_eos=pad_is_eos))
    row = [7, EOS, 8, 3, EOS]
    hidden = reward.model.transformer(torch.tensor([row])).last_hidden_state[0]  # (L, H)
    at_each_token = reward.model.score(hidden)[:, 0]  # (L,)
    score = reward.score_tokens(*batch([row], length=9))[0]
    torch.testing.assert_close(score, at_each_token[-1], rtol=0, atol=1e-5)
    others = at_each_token[:-1]
    assert (others - score).abs().min() > 1e-3, "the other tokens' scores must differ for this test to see anything"


@pytest.mark.parametrize(
    ("architecture", "pad"),
    # Llama has no embedding with a pad token outside it
    [("gpt2", pad) for pad in (None, EOS, -1, 0, 99)] + [("llama", pad) for pad in (None, EOS, -1, 0)],
)
def test_a_checkpoint_from_elsewhere_is_read_as_its_class_reads_it(
    architecture: str, pad: int | None, tmp_path: Path
) -> None:
    """With pad = EOS, TRL's choice where a tokenizer has no pad token, the class reads the token before the EOS."""
    tiny_reward_model(architecture=architecture).model.save_pretrained(tmp_path)
    tiny_tokenizer(pad_is_eos=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = [*ROWS, [7, 8, 3, EOS], [5, EOS, EOS], [EOS, EOS]]
    own = torch.cat([scores_of_class(theirs, row)[0] for row in rows])  # (B,)
    at_last_token = torch.cat([scores_of_class(theirs, row)[1] for row in rows])  # (B,)
    moved = [pad == EOS and row[-1] == EOS for row in rows]
    assert ((own - at_last_token).abs() > 1e-3).tolist()[:-1] == moved[:-1]

    reward = RewardModel.from_pretrained(tmp_path)
    for length in (None, 20):
        torch.testing.assert_close(reward.score_tokens(*batch(rows, length=length)), own, rtol=0, atol=1e-5)
    reward.save_pretrained(tmp_path / "ours")
    assert_class_reads_the_same(tmp_path / "ours", rows, own)


def scores_of_class(model: PreTrainedModel, row: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the class gives for a row alone, and what its head gives at the row's last token, (1,) each."""
    ids = torch.tensor([row])
    with torch.no_grad():
        return model(input_ids=ids).logits[:, 0], model.score(model.base_model(ids).last_hidden_state)[:, -1, 0]


def assert_class_reads_the_same(folder: Path, rows: list[list[int]], expected: torch.Tensor) -> None:
    """The class's scores of rows that the saved tokenizer pads are those expected, (B,), and so are ours."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    padded = AutoTokenizer.from_pretrained(folder).pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits[:, 0], expected, rtol=0, atol=1e-5)
    again = RewardModel.from_pretrained(folder)
    torch.testing.assert_close(again.score_tokens(*batch(rows, length=20)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("room", [0, 3])
def test_a_model_begun_here_reads_the_eos_and_its_class_does_too(room: int, tmp_path: Path) -> None:
    """A pad token of its own, in the room that the vocabulary has, or in a row more."""
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    language_model = tiny_llama(VOCAB_SIZE + room)
    reward = RewardModel.from_language_model(language_model, tokenizer)
    assert tokenizer.pad_token_id == EOS, "the policy's tokenizer stays as it is"
    assert reward.tokenizer is not None
    assert reward.tokenizer.pad_token_id == reward.model.config.pad_token_id == VOCAB_SIZE
    assert reward.vocab_size == VOCAB_SIZE + max(room, 1)
    rows = [*ROWS, [7, 8, 3, EOS], [7, 8, 3], [5, EOS, EOS]]
    expected = torch.cat([scores_of_class(reward.model, row)[1] for row in rows])
    torch.testing.assert_close(reward.score_tokens(*batch(rows, pad=EOS)), expected, rtol=0, atol=1e-5)
    assert abs(expected[-3] - expected[-2]) > 1e-3
    reward.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "reward_normalizer.json").read_text())["reading"] == "last_token"
    assert_class_reads_the_same(tmp_path, rows, expected)
    assert EpisodeScorer(reward, tokenizer).routes == ("tokens",)


def test_a_pad_token_that_is_a_stop_token_of_the_language_model_is_not_kept() -> None:
    language_model, tokenizer = tiny_llama(), tiny_tokenizer()
    language_model.generation_config.eos_token_id = [EOS, 0]  # as in Qwen's chat models
    reward = RewardModel.from_language_model(language_model, tokenizer)
    assert reward.model.config.pad_token_id == VOCAB_SIZE
    language_model.generation_config.eos_token_id = EOS
    assert RewardModel.from_language_model(language_model, tokenizer).tokenizer is tokenizer


@pytest.mark.parametrize("pad", [None, EOS])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_folder_of_version_0_1_keeps_its_reading_and_is_right_once_saved(
    pad: int | None, heads: int, tmp_path: Path
) -> None:
    """It says nothing about its reading, which was at the last real token, the EOS."""
    reward = RewardModel.from_language_model(tiny_llama(), tiny_tokenizer(), heads=heads)
    reward.save_pretrained(tmp_path)
    tiny_tokenizer(pad_is_eos=True).save_pretrained(tmp_path)
    file = tmp_path / ("reward_normalizer.json" if heads == 1 else "reward_ensemble.json")
    record = json.loads(file.read_text())
    del record["reading"]
    file.write_text(json.dumps(record))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    rows = [*ROWS, [7, 8, 3, EOS]]
    expected = torch.cat([scores_of_class(reward.model, row)[1] for row in rows])  # the first head's
    old = RewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(old.scores_of_tokens(*batch(rows)).members[0], expected, rtol=0, atol=1e-5)
    old.save_pretrained(tmp_path / "new")
    if heads == 1:
        assert_class_reads_the_same(tmp_path / "new", rows, expected)
    again = RewardModel.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(again.scores_of_tokens(*batch(rows)).members[0], expected, rtol=0, atol=1e-5)


def test_a_token_that_cannot_be_embedded_is_named() -> None:
    with pytest.raises(ValueError, match=r"token ids in 0 … 28, .* got 29 at place 1 of row 1"):
        tiny_reward_model().score_tokens(*batch([[5, 6, 7], [5, 29]]))


def test_scoring_turns_dropout_off_and_leaves_the_mode_as_it_was() -> None:
    reward = tiny_reward_model(resid_pdrop=0.5, embd_pdrop=0.5)
    ids, mask = batch(ROWS)
    expected = reward.score_tokens(ids, mask)
    reward.train()
    torch.testing.assert_close(reward.score_tokens(ids, mask), expected, rtol=0, atol=0)
    assert reward.training
    assert not torch.allclose(reward(ids, mask), reward(ids, mask)), "forward keeps the module's mode"


def test_forward_is_differentiable_and_padding_gets_no_gradient() -> None:
    reward = tiny_reward_model()
    reward(*batch([[5, 6, EOS], [7]], pad=28)).sum().backward()
    grad = reward.model.get_input_embeddings().weight.grad
    assert grad is not None
    assert grad[28].abs().max() == 0
    assert grad[[5, 6, 7, EOS]].abs().amax(dim=1).min() > 0


def test_an_encoder_is_called_through_its_class() -> None:
    model = tiny_bert_classifier()
    reward = RewardModel(model, tiny_tokenizer())
    assert reward.reads == "classifier"
    alone = torch.stack([model(torch.tensor([row])).logits[0, 0] for row in ROWS])
    torch.testing.assert_close(reward.score_tokens(*batch(ROWS, length=20)), alone, rtol=0, atol=1e-5)


def test_what_reads_neither_way_is_refused() -> None:
    class ReadsLastPlace(GPT2ForSequenceClassification):
        def forward(self, input_ids, attention_mask=None, **kwargs):  # type: ignore[no-untyped-def]
            output = super().forward(input_ids, attention_mask=attention_mask)
            output.logits = self.score(self.transformer(input_ids).last_hidden_state[:, 0] * input_ids.shape[1])
            return output

    with pytest.raises(ValueError, match="to score a row alike alone and right-padded"):
        RewardModel(tiny_gpt2(model_class=ReadsLastPlace, num_labels=1), tiny_tokenizer())
    config = T5Config(vocab_size=29, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, num_labels=1)
    config.decoder_start_token_id = 0
    with pytest.raises(ValueError, match="encoder-decoder T5ForSequenceClassification"):
        RewardModel(build(T5ForSequenceClassification, config, 0))
    with pytest.raises(ValueError, match="num_labels=1, got 2"):
        RewardModel(tiny_gpt2(model_class=GPT2ForSequenceClassification, num_labels=2))


def test_rows_that_cannot_be_scored_are_named() -> None:
    reward = tiny_reward_model(n_positions=8)
    ids, mask = batch([[5, 6, 7]])
    with pytest.raises(ValueError, match="right-padded rows of at least one token, got row 0"):
        reward.score_tokens(ids, mask.flip(1) * torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="right-padded rows of at least one token, got row 0"):
        reward.score_tokens(ids, torch.zeros_like(mask))
    with pytest.raises(ValueError, match=r"one shape \(B, L\), got \(1, 3\) and \(1, 2\)"):
        reward.score_tokens(ids, mask[:, :2])
    with pytest.raises(ValueError, match=r"at most 8 tokens .* got 9 in row 1"):
        reward.score_tokens(*batch([[3], [3] * 9]))
    with pytest.raises(ValueError, match="a tokenizer to score texts"):
        tiny_reward_model_without_tokenizer().score_texts(["a"], ["b"])
    with pytest.raises(ValueError, match="as many responses as prompts, got 1 and 2"):
        reward.score_texts(["a", "the"], ["b"])
    assert reward.score_tokens(torch.empty(0, 0, dtype=torch.long), torch.empty(0, 0)).shape == (0,)
    assert reward.score_texts([], []).shape == (0,)


def tiny_reward_model_without_tokenizer(vocab_size: int = VOCAB_SIZE) -> RewardModel:
    return RewardModel(tiny_gpt2(vocab_size, model_class=GPT2ForSequenceClassification, num_labels=1))


def test_texts_are_closed_by_the_eos() -> None:
    reward = tiny_reward_model()
    assert reward.encode(["the film"], ["is good"]) == [[13, 9, 15, 3, EOS]]
    assert reward.encode(["the film"], ["is good"], closed=[False]) == [[13, 9, 15, 3]]
    tokens = reward.score_tokens(*batch([[13, 9, 15, 3, EOS]]))
    np.testing.assert_allclose(reward.score_texts(["the film"], ["is good"]), tokens.numpy(), atol=1e-6)


# --- beginnings and checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_qwen2, tiny_mistral, tiny_gemma3])
def test_a_language_model_begins_a_reward_model(make) -> None:  # type: ignore[no-untyped-def]
    language_model = make(n_embd=64)
    before = copy.deepcopy(language_model.state_dict())
    reward = RewardModel.from_language_model(language_model, tiny_tokenizer(), seed=3)
    assert reward.reads == "last_token"
    weight = reward.model.score.weight.detach().clone()
    assert weight.shape == (1, 64)
    # N(0, 1/(H+1)): the standard deviation of 64 draws lies within ± 3/√128 of it (relative)
    assert weight.std() * 65**0.5 == pytest.approx(1.0, abs=3 / 128**0.5)
    again = RewardModel.from_language_model(language_model, tiny_tokenizer(), seed=3)
    assert torch.equal(again.model.score.weight, weight)
    assert not torch.equal(RewardModel.from_language_model(language_model, seed=4).model.score.weight, weight)
    ids, _ = batch([[5, 6, 7]])
    torch.testing.assert_close(
        reward.model.base_model(ids).last_hidden_state, language_model.base_model(ids).last_hidden_state
    )
    with torch.no_grad():
        for parameter in reward.parameters():
            parameter.zero_()
    for name, tensor in language_model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} is shared with the language model"


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_checkpoints_of_transformers_and_ours_score_the_same(architecture: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [row for row in ROWS if 0 not in row]
    reward = tiny_reward_model(architecture=architecture)
    reward.model.save_pretrained(tmp_path / "theirs")
    loaded = RewardModel.from_pretrained(tmp_path / "theirs")
    assert loaded.tokenizer is None
    own = torch.cat([reward.model(torch.tensor([row])).logits[:, 0] for row in rows])
    torch.testing.assert_close(loaded.score_tokens(*batch(rows)), own, rtol=0, atol=1e-5)

    reward.save_pretrained(tmp_path / "ours")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    ids, mask = batch(rows)
    scores = theirs(input_ids=ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(scores, reward.score_tokens(ids, mask), rtol=0, atol=1e-5)


def test_saving_keeps_tokenizer_and_normalizer(tmp_path) -> None:  # type: ignore[no-untyped-def]
    reward = tiny_reward_model(normalizer=RewardNormalizer(mean=0.5, std=2.0))
    reward.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.normalizers == reward.normalizers
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.get_vocab() == reward.tokenizer.get_vocab()
    texts = ["the film", "it"], ["is good", "was very dull"]
    np.testing.assert_allclose(loaded.score_texts(*texts), reward.score_texts(*texts), atol=1e-6)
    ids, mask = batch(ROWS)
    torch.testing.assert_close(loaded.score_tokens(ids, mask), (loaded(ids, mask)[:, 0] - 0.5) / 2.0)


def test_a_checkpoint_without_a_trained_head_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    tiny_gpt2().save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"without score.weight; RewardModel.from_language_model"):
        RewardModel.from_pretrained(tmp_path / "lm")
    tiny_gpt2(model_class=GPT2ForSequenceClassification, num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="num_labels=1, got 3"):
        RewardModel.from_pretrained(tmp_path / "three")
    with pytest.raises(FileNotFoundError, match="a reward model in the folder"):
        RewardModel.from_pretrained(tmp_path / "nothing")


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_normalised_scores_have_mean_0_and_std_1() -> None:
    n = 500
    rng = np.random.default_rng(0)
    normalizer = RewardNormalizer.fit(rng.normal(3.0, 7.0, size=n))
    fresh = normalizer.apply(rng.normal(3.0, 7.0, size=1_000_000))  # so many that only the fit's error is left
    assert abs(fresh.mean()) < 3 / n**0.5
    assert abs(fresh.std() - 1) < 3 / (2 * n) ** 0.5
    assert RewardNormalizer.from_dict(normalizer.to_dict()) == normalizer


def test_a_model_is_normalised_on_reference_samples() -> None:
    reward = tiny_reward_model(normalizer=RewardNormalizer(mean=100.0, std=0.01))  # forgotten, not stacked
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "film", "the", "not", "very"])
    prompts = ["the film"] * 200
    responses = [" ".join(rng.choice(words, size=rng.integers(1, 9))) for _ in prompts]
    reward.fit_normalizers(prompts, responses)
    scores = reward.score_texts(prompts, responses)
    assert scores.mean() == pytest.approx(0, abs=1e-4)
    assert scores.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "at least 2 reference scores"),
        ([[1.0, 2.0]], "at least 2 reference scores"),
        ([1.0, float("nan")], "finite reference scores, got nan"),
        ([2.0, 2.0, 2.0], "that differ, got 3 times 2.0"),
    ],
)
def test_scores_that_cannot_be_normalised_are_refused(scores: list, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        RewardNormalizer.fit(scores)
    with pytest.raises(ValueError, match="std > 0"):
        RewardNormalizer(std=0.0)


# --- ensembles -------------------------------------------------------------------------------------------------------


def test_aggregates_by_hand() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]])  # (3 members, 2)
    # mean 3, variance (4 + 1 + 9)/3 = 14/3
    torch.testing.assert_close(aggregate_scores(scores, "mean"), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(aggregate_scores(scores, "min"), torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(aggregate_scores(scores, "uwo", 0.3), torch.tensor([3 - 0.3 * 14 / 3, 4.0]))


def test_members_score_as_they_do_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    members = [tiny_reward_model(seed=i, normalizer=RewardNormalizer(mean=0.1 * i, std=1.0 + i)) for i in range(3)]
    ids, mask = batch(ROWS)
    alone = torch.stack([member.score_tokens(ids, mask) for member in members])  # (3, B)
    assert alone.std(dim=0).min() > 1e-3
    for aggregate, expected in {
        "mean": alone.mean(dim=0),
        "min": alone.min(dim=0).values,
        "uwo": alone.mean(dim=0) - 0.5 * ((alone - alone.mean(dim=0)) ** 2).mean(dim=0),
    }.items():
        ensemble = RewardEnsemble(members, aggregate, uncertainty_weight=0.5)  # type: ignore[arg-type]
        torch.testing.assert_close(ensemble.scores_of_tokens(ids, mask).members, alone, rtol=0, atol=0)
        torch.testing.assert_close(ensemble.score_tokens(ids, mask), expected)
    ensemble.save_pretrained(tmp_path)
    loaded = RewardEnsemble.from_pretrained(tmp_path)
    assert (len(loaded), loaded.aggregate, loaded.uncertainty_weight) == (3, "uwo", 0.5)
    torch.testing.assert_close(loaded.score_tokens(ids, mask), ensemble.score_tokens(ids, mask), rtol=0, atol=0)
    texts = ["the film"], ["is good"]
    np.testing.assert_allclose(loaded.score_texts(*texts), ensemble.score_texts(*texts))


def test_ensembles_that_make_no_sense_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="at least one member"):
        RewardEnsemble([])
    with pytest.raises(ValueError, match="got 'median'"):
        RewardEnsemble([tiny_reward_model()], "median")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"reward_ensemble\.json"):
        RewardEnsemble.from_pretrained(tmp_path)


# --- programmatic rewards ---------------------------------------------------------------------------------------------


def test_programmatic_rewards() -> None:
    prompts = ["", "", ""]
    responses = ["good film", "Good goodness good", "it was not very good , was it"]
    np.testing.assert_array_equal(length_reward()(prompts, responses), [2, 3, 8])
    np.testing.assert_array_equal(length_reward(3, scale=0.5)(prompts, responses), [-0.5, 0, -2.5])
    np.testing.assert_array_equal(keyword_reward(["good", "it"])(prompts, responses), [1, 2, 3])
    np.testing.assert_array_equal(keyword_reward(["good", "it"], each=2, at_most=1)(prompts, responses), [2, 2, 2])
    total = sum_rewards(keyword_reward(["good", "it"]), (-0.1, length_reward()))
    np.testing.assert_allclose(pickle.loads(pickle.dumps(total))(prompts, responses), [0.8, 1.7, 2.2])
    with pytest.raises(ValueError, match="at least one keyword, got 'good'"):
        keyword_reward("good")
    with pytest.raises(ValueError, match="at least one reward"):
        sum_rewards()
