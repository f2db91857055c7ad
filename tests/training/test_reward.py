"""Training of reward models: against a known Bradley–Terry truth, rankings, metrics by hand, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_gym.functional.losses import bradley_terry_loss
from rlhf_gym.preferences import (
    BradleyTerryAnnotator,
    Candidate,
    CandidatePair,
    Preference,
    pairs_from_ranking,
)
from rlhf_gym.rewards import RewardEnsemble, RewardModel, RewardNormalizer
from rlhf_gym.training import (
    RewardMetrics,
    RewardModelingConfig,
    evaluate_reward_model,
    is_finished,
    train_reward_model,
)
from rlhf_gym.training.reward_modeling import _checked_pairs, _summed_loss, collate_pairs
from tests.tiny import tiny_bert_classifier, tiny_gpt2, tiny_reward_model, tiny_tokenizer
from tests.toy import kwise_loss

PREFERENCES = [
    Preference("the film", "good", "bad"),
    Preference("the film", "good", "dull dull"),
    Preference("the plot", "fine good", "poor", margin=2.0),
    Preference("a cast", "it was good fun", "it was not good fun"),
]
HELDOUT = [Preference("the scene", "good", "bad"), Preference("a film", "bad", "good dull", clean=False)]
CONFIG = RewardModelingConfig(epochs=1, learning_rate=1e-3, batch_size=2, save_steps=0, use_cpu=True)


def new_model(**overrides: object) -> RewardModel:
    return RewardModel.from_language_model(tiny_gpt2(**overrides), tiny_tokenizer())  # type: ignore[arg-type]


# --- the truth is found ----------------------------------------------------------------------------------------------


def gold(prompts: list[str], responses: list[str]) -> list[float]:
    """Bradley–Terry scores that a tiny model can count: .7 for every `good`."""
    return [0.7 * response.split().count("good") for response in responses]


def candidate_pairs(prompts: list[str], count: int, seed: int) -> list[CandidatePair]:
    rng = np.random.default_rng(seed)
    words = np.array(["good", "film", "plot"])

    def candidate(prompt: str) -> Candidate:
        return Candidate(prompt, " ".join(rng.choice(words, size=rng.integers(2, 9))))

    drawn = rng.choice(np.array(prompts), size=count).tolist()
    return [CandidatePair(candidate(prompt), candidate(prompt)) for prompt in drawn]


@pytest.mark.slow
def test_a_known_truth_is_found(tmp_path: Path) -> None:
    """A model that learned nothing would have accuracy .5 and NLL .693; one with labels flipped an accuracy of .3."""
    annotator = BradleyTerryAnnotator(gold, seed=1)
    training = candidate_pairs(["we saw it", "i saw a film", "they liked it", "the plot"], 20_000, seed=0)
    heldout = candidate_pairs(["they saw it", "i liked a film"], 20_000, seed=1)
    p = annotator.probabilities(heldout)  # (pairs,)
    accuracy = np.maximum(p, 1 - p).mean()
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert accuracy == pytest.approx(0.697, abs=0.005)
    assert entropy == pytest.approx(0.566, abs=0.005)

    metrics = train_reward_model(
        RewardModel.from_language_model(tiny_gpt2(initializer_range=0.1), tiny_tokenizer()),
        annotator.label(training),
        heldout=annotator.label(heldout),
        config=RewardModelingConfig(learning_rate=1e-3, batch_size=64, evaluate_each_epoch=False, use_cpu=True),
        output_dir=tmp_path,
    )
    assert metrics.accuracy == pytest.approx(accuracy, abs=0.01)
    assert metrics.nll == pytest.approx(entropy, abs=0.01)
    assert metrics.ece < 0.03
    assert metrics.n == 20_000


def test_label_smoothing_margin_and_centering_reach_the_loss() -> None:
    reward = tiny_reward_model()
    rows, groups = _checked_pairs(reward, PREFERENCES, True, "pair")
    batch = collate_pairs(rows, groups)
    chosen = torch.from_numpy(reward.score_texts([p.prompt for p in PREFERENCES], [p.chosen for p in PREFERENCES]))
    rejected = torch.from_numpy(reward.score_texts([p.prompt for p in PREFERENCES], [p.rejected for p in PREFERENCES]))
    for smoothing, centering in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.5)):
        loss = _summed_loss(reward, batch, label_smoothing=smoothing, centering=centering) / 4
        options = {"label_smoothing": smoothing, "centering": centering}
        expected = bradley_terry_loss(chosen, rejected, margin=torch.tensor([0.0, 0.0, 2.0, 0.0]), **options)
        torch.testing.assert_close(loss.detach(), expected)
    assert _checked_pairs(reward, PREFERENCES, False, "pair")[1][2][0].margin == 0


# --- rankings --------------------------------------------------------------------------------------------------------


def test_a_ranking_weighs_one_and_runs_each_response_once() -> None:
    reward = tiny_reward_model()
    responses, ranking = ["good", "fine film", "poor", "bad"], [1, 2, 3, 4]
    preferences = [
        *pairs_from_ranking("the film", responses, ranking),
        Preference("the plot", "good", "bad"),
        *pairs_from_ranking("the cast", responses[:3], [2, 1, 3]),
    ]
    assert len(preferences) == 6 + 1 + 3
    rows, groups = _checked_pairs(reward, preferences, False, "pair")
    assert [len(group) for group in groups] == [6, 1, 3]
    batch = collate_pairs(rows, groups)
    assert batch.input_ids.shape[0] == 4 + 2 + 3
    assert float(batch.weight.sum()) == pytest.approx(3)

    def scores(prompt: str, texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(reward.score_texts([prompt] * len(texts), texts))

    expected = (
        kwise_loss(scores("the film", responses), torch.tensor(ranking))
        + bradley_terry_loss(scores("the plot", ["good"]), scores("the plot", ["bad"]))
        + kwise_loss(scores("the cast", responses[:3]), torch.tensor([2, 1, 3]))
    )
    loss = _summed_loss(reward, batch, label_smoothing=0.0, centering=0.0)
    torch.testing.assert_close(loss.detach(), expected)


def test_pairs_of_a_prompt_are_kept_together_and_weigh_one() -> None:
    """All C(3,2) pairs of a prompt, of no group, one of them with double weight; and a pair of another prompt."""
    reward = tiny_reward_model()
    ranked = [
        replace(p, group="", weight=1.0) for p in pairs_from_ranking("the film", ["good", "so so", "bad"], [1, 2, 3])
    ]
    preferences = [ranked[0], Preference("the plot", "good", "bad"), *ranked[1:]]
    rows, groups = _checked_pairs(reward, preferences, False, "pair", by_prompt=True)
    assert [[pair.weight for pair in group] for group in groups] == [pytest.approx([1 / 3] * 3), [1.0]]
    batch = collate_pairs(rows, groups[:1])
    assert batch.input_ids.shape[0] == 3, "each response is run once"
    scores = torch.from_numpy(reward.score_texts(["the film"] * 3, ["good", "so so", "bad"]))
    loss = _summed_loss(reward, batch, label_smoothing=0.0, centering=0.0)
    torch.testing.assert_close(loss.detach(), kwise_loss(scores, torch.tensor([1, 2, 3])))
    heavier = [replace(preferences[0], weight=2.0), *preferences[1:]]
    _, groups = _checked_pairs(reward, heavier, False, "pair", by_prompt=True)
    assert [pair.weight for pair in groups[0]] == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    "changes",
    [{"use_margin": True}, {"label_smoothing": 0.2}, {"centering": 0.5}, {"by_prompt": True}],
)
def test_each_setting_changes_what_is_learned(changes: dict, tmp_path: Path) -> None:
    """End to end: the setting reaches the training, not only the loss."""
    rated = [
        *PREFERENCES,
        Preference("the film", "fine", "bad", margin=3.0),
    ]
    states = []
    for name, config in (("plain", CONFIG), ("changed", replace(CONFIG, **changes))):
        reward = new_model()
        config = replace(config, epochs=2, batch_size=8)
        train_reward_model(reward, rated, heldout=HELDOUT, config=config, output_dir=tmp_path / name)
        states.append(torch.cat([p.detach().flatten() for p in reward.parameters()]))
    assert (states[0] - states[1]).abs().max() > 1e-5


def test_groups_of_one_name_but_other_prompts_stay_apart() -> None:
    reward = tiny_reward_model()
    preferences = [Preference(prompt, "good", "bad", group="7") for prompt in ("the film", "the plot", "the film")]
    _, groups = _checked_pairs(reward, preferences, False, "pair")
    assert [len(group) for group in groups] == [2, 1]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    table = {"a": 1.0, "b b": 0.0, "c c c": 3.0, "d": 3.0}
    preferences = [
        Preference("x", "a", "b b"),  # Δ = 1, right; one word shorter
        Preference("x", "a", "c c c", clean=False),  # Δ = −2, wrong; two words shorter
        Preference("x", "c c c", "d"),  # Δ = 0; two words longer
    ]
    calls = []

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(responses)
        return [table[response] for response in responses]

    metrics = evaluate_reward_model(reward, preferences)
    assert calls == [["a", "b b", "c c c", "d"]], "each distinct response is scored once"
    assert metrics.accuracy == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics.clean_accuracy == pytest.approx(0.75)
    assert metrics.margin == pytest.approx(-1 / 3)
    # −log σ(1) = .313262, −log σ(−2) = 2.126928, −log σ(0) = .693147
    assert metrics.nll == pytest.approx((0.313262 + 2.126928 + 0.693147) / 3, abs=1e-6)
    # confidences σ(1) = .731059 (right), σ(2) = .880797 (wrong), .5 (a half): three bins
    assert metrics.ece == pytest.approx((1 - 0.731059 + 0.880797 + 0) / 3, abs=1e-6)
    # Σ Δr·Δl = 1·(−1) + (−2)·(−2) + 0·2 = 3; Σ Δr² = 5; Σ Δl² = 9
    assert metrics.length_correlation == pytest.approx(3 / 45**0.5)
    assert metrics.n == 3

    flipped = [Preference(p.prompt, p.rejected, p.chosen, clean=p.clean) for p in preferences]
    assert evaluate_reward_model(reward, flipped).length_correlation == pytest.approx(metrics.length_correlation)
    constant = evaluate_reward_model(lambda prompts, responses: [0.0] * len(responses), preferences)
    assert (constant.accuracy, constant.ece, constant.length_correlation) == (0.5, 0.0, 0.0)
    assert constant.nll == pytest.approx(np.log(2))
    assert evaluate_reward_model(reward, [preferences[1]]).clean_accuracy == 0.0


def test_the_normalizer_does_not_touch_the_metrics() -> None:
    plain = tiny_reward_model()
    normalised = tiny_reward_model(normalizer=RewardNormalizer(mean=3.0, std=0.1))
    assert evaluate_reward_model(plain, PREFERENCES) == evaluate_reward_model(normalised, PREFERENCES)
    ensemble = RewardEnsemble([plain])
    assert evaluate_reward_model(ensemble, PREFERENCES) == evaluate_reward_model(plain, PREFERENCES)
    with pytest.raises(ValueError, match="at least one preference"):
        evaluate_reward_model(plain, [])
    with pytest.raises(ValueError, match=r"finite scores from the reward function .*, got nan"):
        evaluate_reward_model(lambda prompts, responses: [float("nan")] * len(responses), PREFERENCES)


# --- the stage -------------------------------------------------------------------------------------------------------


def test_the_stage_trains_saves_and_is_loaded_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reward = new_model()
    reward.normalizers = [RewardNormalizer(mean=5.0, std=2.0)]
    before = evaluate_reward_model(reward, PREFERENCES)
    config = replace(CONFIG, epochs=10, save_steps=3)
    metrics = train_reward_model(reward, PREFERENCES, heldout=HELDOUT, config=config, output_dir=tmp_path)
    output, errors = capfd.readouterr()
    assert (output.strip(), errors.strip()) == ("", "")
    assert evaluate_reward_model(reward, PREFERENCES).nll < min(0.3, before.nll)
    assert reward.normalizers == (RewardNormalizer(),), "the old unit means nothing any more"
    assert not reward.training
    assert metrics == evaluate_reward_model(reward, HELDOUT)
    assert metrics.clean_accuracy == 1.0
    assert RewardMetrics(**json.loads((tmp_path / "metrics.json").read_text())) == metrics
    history = json.loads((tmp_path / "history.json").read_text())
    assert sum("heldout_accuracy" in entry for entry in history) == 10
    assert not (tmp_path / "checkpoint.safetensors").exists()

    loaded = RewardModel.from_pretrained(tmp_path)
    texts = [p.prompt for p in PREFERENCES], [p.chosen for p in PREFERENCES]
    np.testing.assert_allclose(loaded.score_texts(*texts), reward.score_texts(*texts), atol=1e-6)
    fresh = new_model()
    again = train_reward_model(fresh, PREFERENCES, heldout=HELDOUT, config=config, output_dir=tmp_path)
    assert again == metrics
    np.testing.assert_allclose(fresh.score_texts(*texts), reward.score_texts(*texts), atol=1e-6)
    with pytest.raises(ValueError, match="got another data"):
        train_reward_model(fresh, PREFERENCES[1:], heldout=HELDOUT, config=config, output_dir=tmp_path)


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, epochs=3, save_steps=3)

    def run(folder: Path) -> RewardModel:
        reward = new_model(resid_pdrop=0.1)
        train_reward_model(reward, PREFERENCES, heldout=HELDOUT, config=config, output_dir=folder)
        return reward

    whole = run(tmp_path / "whole")
    calls = 0

    def interrupted(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        return _summed_loss(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_gym.training.reward_modeling._summed_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    assert not is_finished(tmp_path / "cut")
    resumed = run(tmp_path / "cut")
    for (name, expected), actual in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(actual, expected), name


def test_micro_batches_train_as_the_whole_batch(tmp_path: Path) -> None:
    preferences = [*PREFERENCES, *pairs_from_ranking("the film", ["good", "fine film", "poor", "bad"], [1, 2, 3, 4])]
    outcomes = []
    for micro in (None, 1):
        reward = tiny_reward_model(architecture="llama")
        config = replace(CONFIG, epochs=2, batch_size=4, micro_batch_size=micro)
        train_reward_model(reward, preferences, heldout=HELDOUT, config=config, output_dir=tmp_path / str(micro))
        outcomes.append(reward.state_dict())
    for name, tensor in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][name], tensor, rtol=0, atol=1e-5)


def test_an_encoder_can_be_trained(tmp_path: Path) -> None:
    reward = RewardModel(tiny_bert_classifier(), tiny_tokenizer())
    before = evaluate_reward_model(reward, PREFERENCES)
    train_reward_model(reward, PREFERENCES, heldout=HELDOUT, config=replace(CONFIG, epochs=10), output_dir=tmp_path)
    assert evaluate_reward_model(reward, PREFERENCES).nll < before.nll
    assert RewardModel.from_pretrained(tmp_path).reads == "classifier"


LONG = Preference("the film", "good", "bad " * 70)


@pytest.mark.parametrize(
    ("preferences", "heldout", "message"),
    [
        ([], HELDOUT, "at least one pair, got none"),
        (PREFERENCES, [], "at least one held-out pair, got none"),
        ([*PREFERENCES, LONG], HELDOUT, r"at most 64 tokens \(the model's context\), got 73 in pair 4"),
        (PREFERENCES, [LONG], "got 73 in held-out pair 0"),
        ([Preference("the film", "good", "good")] * 2, HELDOUT, "that differ, got 2 pairs whose chosen and rejected"),
    ],
)
def test_what_cannot_be_learned_from_is_named_before_any_work(
    preferences: list, heldout: list, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_reward_model(new_model(), preferences, heldout=heldout, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 0\.5\), got 0\.5"):
        RewardModelingConfig(label_smoothing=0.5)
    with pytest.raises(ValueError, match="centering >= 0, got -1"):
        RewardModelingConfig(centering=-1)
