"""Ensembles on one trunk: a head is a reward model, joint training is that of each head, folders, the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2ForSequenceClassification

from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared
from rlhf_gym.lm.tokens import pad_rows
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.preferences import Preference, pairs_from_ranking
from rlhf_gym.rewards import (
    EpisodeScorer,
    RewardEnsemble,
    RewardModel,
    RewardNormalizer,
    load_reward,
)
from rlhf_gym.runs import RunFolder
from rlhf_gym.training import RewardModelingConfig, train_reward_model
from rlhf_gym.training.reward_modeling import _checked_pairs, _summed_loss, bootstrapped, collate_pairs
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.tiny_runs import quiet, said, save_model, tiny_config, tiny_task

MEMBERS = 3
PREFERENCES = [
    Preference("the film", "good", "bad"),
    Preference("the film", "fine good", "dull dull"),
    Preference("the plot", "fine good", "poor", weight=0.5),
    *pairs_from_ranking("a cast", ["good fun", "fun", "not fun"], [1, 2, 3]),
]
HELDOUT = [Preference("the scene", "good", "bad")]
CONFIG = RewardModelingConfig(epochs=2, learning_rate=1e-3, batch_size=2, save_steps=0, use_cpu=True)
TEXTS = ["the film", "a film", "the plot"], ["is good", "not bad fun", ""]


NORMALIZERS = [RewardNormalizer(0.1 * i, 0.5 + i) for i in range(MEMBERS)]


def new_ensemble(seed: int = 0) -> RewardModel:
    ensemble = RewardModel.from_language_model(tiny_gpt2(), tiny_tokenizer(), heads=MEMBERS, seed=seed)
    ensemble.normalizers = NORMALIZERS
    return ensemble


def each_head_alone() -> list[RewardModel]:
    """The members of `new_ensemble()`, each with a trunk of its own."""
    heads = [RewardModel.from_language_model(tiny_gpt2(), tiny_tokenizer(), seed=i) for i in range(MEMBERS)]
    for head, normalizer in zip(heads, NORMALIZERS, strict=True):
        head.normalizers = [normalizer]
    return heads


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = pad_rows([[13, 9, 15, 3, 1], [18, 4], [7, 8, 9, 10, 11, 12, 1]], length=9)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def test_a_heads_score_is_that_of_the_head_alone() -> None:
    ensemble, (ids, mask) = new_ensemble(), rows()
    scores = ensemble.scores_of_tokens(ids, mask).members  # (members, B)
    assert scores.shape == (MEMBERS, 3) and scores.std(dim=0).min() > 1e-2
    for i, head in enumerate(each_head_alone()):
        torch.testing.assert_close(head.score_tokens(ids, mask), scores[i], rtol=0, atol=1e-6)


def test_the_score_is_the_members_aggregate_and_needs_one_forward() -> None:
    ensemble, (ids, mask) = new_ensemble(), rows()
    alone = torch.stack([head.score_tokens(ids, mask) for head in each_head_alone()])  # (members, B)
    separate = RewardEnsemble(each_head_alone())
    forwards = []
    ensemble.model.base_model.register_forward_hook(lambda *_: forwards.append(1))
    for aggregate, expected in {
        "mean": alone.mean(dim=0),
        "min": alone.min(dim=0).values,
        "uwo": alone.mean(dim=0) - 0.5 * ((alone - alone.mean(dim=0)) ** 2).mean(dim=0),
    }.items():
        for made in (ensemble, separate):
            made.aggregate, made.uncertainty_weight = aggregate, 0.5  # type: ignore[assignment]
        del forwards[:]
        torch.testing.assert_close(ensemble.score_tokens(ids, mask), expected)
        assert len(forwards) == 1
        torch.testing.assert_close(separate.score_tokens(ids, mask), expected)
        np.testing.assert_allclose(ensemble.score_texts(*TEXTS), separate.score_texts(*TEXTS), atol=1e-5)


def test_it_scores_the_sampled_tokens_of_episodes() -> None:
    ensemble, (ids, mask) = new_ensemble(), rows()
    scorer = EpisodeScorer(ensemble, tiny_tokenizer())
    assert scorer.routes == ("tokens",)
    scores = scorer(ids, torch.tensor([2, 1, 3]), mask.sum(dim=1))
    torch.testing.assert_close(scores, ensemble.scores_of_tokens(ids, mask), rtol=0, atol=0)
    words = [*reversed(tiny_tokenizer().get_vocab())][:26]
    other = RewardModel(ensemble.model, tiny_tokenizer(words), heads=MEMBERS)
    assert EpisodeScorer(other, tiny_tokenizer()).routes == ("text",)


def test_normalizers_put_every_head_into_one_unit() -> None:
    ensemble = new_ensemble()
    ensemble.fit_normalizers(*TEXTS)
    scores = ensemble.scores_of_texts(*TEXTS).members  # (members, B)
    torch.testing.assert_close(scores.mean(dim=1), torch.zeros(MEMBERS), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.std(dim=1, correction=0), torch.ones(MEMBERS), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="3 normalizers, one a head, got 1"):
        ensemble.normalizers = [RewardNormalizer()]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_keeps_scores_and_is_a_transformers_classifier(tmp_path: Path) -> None:
    ensemble, (ids, mask) = new_ensemble(), rows()
    ensemble.aggregate, ensemble.uncertainty_weight = "uwo", 0.7
    ensemble.save_pretrained(tmp_path)
    for loaded in (RewardModel.from_pretrained(tmp_path), load_reward(tmp_path)):
        assert (len(loaded), loaded.aggregate, loaded.uncertainty_weight) == (MEMBERS, "uwo", 0.7)
        torch.testing.assert_close(loaded.score_tokens(ids, mask), ensemble.score_tokens(ids, mask), rtol=0, atol=0)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = plain(input_ids=ids, attention_mask=mask.long()).logits  # (B, k)
    torch.testing.assert_close(logits.T, ensemble.scores_of_tokens(ids, mask, normalise=False).members)


def test_a_classifier_from_elsewhere_is_an_ensemble_of_its_heads(tmp_path: Path) -> None:
    model = tiny_gpt2(model_class=GPT2ForSequenceClassification, num_labels=4)
    model.save_pretrained(tmp_path)
    ensemble, (ids, mask) = RewardModel.from_pretrained(tmp_path, heads=4), rows()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long()).logits  # (B, 4)
    torch.testing.assert_close(ensemble.score_tokens(ids, mask), logits.mean(dim=1))
    with pytest.raises(ValueError, match=r"num_labels=1, got 4 in .*heads=4"):
        load_reward(tmp_path)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one head, got 0"):
        RewardModel.from_language_model(tiny_gpt2(), tiny_tokenizer(), heads=0)
    with pytest.raises(ValueError, match="got 'median'"):
        RewardModel(new_ensemble().model, heads=MEMBERS, aggregate="median")  # type: ignore[arg-type]
    new_ensemble().save_pretrained(tmp_path / "shared")
    with pytest.raises(ValueError, match=r"separate members in .*, got one on a shared trunk"):
        RewardEnsemble.from_pretrained(tmp_path / "shared")
    RewardEnsemble(each_head_alone()).save_pretrained(tmp_path / "separate")
    with pytest.raises(ValueError, match=r"on one trunk in .*, got separate members"):
        RewardModel.from_pretrained(tmp_path / "separate")


# --- training ---------------------------------------------------------------------------------------------------------


def batch_of(ensemble: RewardModel, *, bootstrap: bool) -> dict:  # type: ignore[type-arg]
    tokens, groups = _checked_pairs(ensemble, PREFERENCES, False, "pair")
    if bootstrap:
        groups = bootstrapped(groups, heads=MEMBERS, seed=0)
    return collate_pairs(tokens, groups)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_joint_loss_is_the_mean_of_each_heads_own(bootstrap: bool) -> None:
    ensemble = new_ensemble()
    batch, trunk = batch_of(ensemble, bootstrap=bootstrap), ensemble.model.base_model.wte.weight  # type: ignore[union-attr]

    def alone() -> torch.Tensor:
        losses = []
        for i in range(MEMBERS):
            weight = batch.weight[:, i : i + 1] if bootstrap else batch.weight  # (P, 1)
            losses.append(
                _summed_loss(
                    lambda *row, i=i: ensemble(*row)[:, i : i + 1],
                    batch._replace(weight=weight),
                    label_smoothing=0.1,
                    centering=0.01,
                )
            )
        return torch.stack(losses).mean()

    gradients = []
    for loss in (_summed_loss(ensemble, batch, label_smoothing=0.1, centering=0.01), alone()):
        trunk.grad = None
        loss.backward()
        gradients.append((loss.detach(), trunk.grad))
    torch.testing.assert_close(*gradients)


def test_a_bootstrap_draws_as_many_examples_for_each_head() -> None:
    _, groups = _checked_pairs(new_ensemble(), PREFERENCES * 20, False, "pair")
    drawn = bootstrapped(groups, heads=MEMBERS, seed=0)
    counts = np.array([group[0].draws for group in drawn])  # (drawn, k)
    assert counts.shape[1] == MEMBERS and (counts.sum(axis=0) == len(groups)).all()
    assert 0.55 < (counts > 0).sum(axis=0).mean() / len(groups) < 0.72, "1 − 1/e of them at least once"
    assert counts.any(axis=1).all() and len(drawn) < len(groups)
    assert not (counts == counts[:, :1]).all(), "each head has its own"
    assert all(pair.draws == group[0].draws for group in drawn for pair in group), "a ranking stands or falls together"
    assert drawn == bootstrapped(groups, heads=MEMBERS, seed=0) != bootstrapped(groups, heads=MEMBERS, seed=1)


@pytest.mark.parametrize("make", [new_ensemble, lambda: RewardModel.from_language_model(tiny_gpt2(), tiny_tokenizer())])
def test_a_bootstrap_changes_what_is_learned(make: Callable[[], RewardModel], tmp_path: Path) -> None:
    states = []
    for i, config in enumerate((CONFIG, replace(CONFIG, bootstrap=True), replace(CONFIG, bootstrap=True))):
        reward = make()
        train_reward_model(reward, PREFERENCES, heldout=HELDOUT, config=config, output_dir=tmp_path / str(i))
        states.append(torch.cat([p.detach().flatten() for p in reward.parameters()]))
    assert (states[0] - states[1]).abs().max() > 1e-5
    assert torch.equal(states[1], states[2])


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, save_steps=1, bootstrap=True, micro_batch_size=1)
    whole = new_ensemble()
    metrics = train_reward_model(whole, PREFERENCES, heldout=HELDOUT, config=config, output_dir=tmp_path / "whole")
    assert [n.to_dict() for n in whole.normalizers] == [RewardNormalizer().to_dict()] * MEMBERS

    class Stop(Exception):
        pass

    calls, real = [], torch.optim.AdamW.step

    def step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Stop):
            train_reward_model(new_ensemble(), PREFERENCES, heldout=HELDOUT, config=config, output_dir=tmp_path / "cut")
    resumed = new_ensemble()
    again = train_reward_model(resumed, PREFERENCES, heldout=HELDOUT, config=config, output_dir=tmp_path / "cut")
    assert again == metrics
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    loaded = new_ensemble()
    assert train_reward_model(loaded, PREFERENCES, heldout=HELDOUT, config=config, output_dir=tmp_path / "cut") == again
    np.testing.assert_array_equal(loaded.score_texts(*TEXTS), whole.score_texts(*TEXTS))


# --- where it is used -------------------------------------------------------------------------------------------------


def test_an_environment_takes_it_as_a_folder_and_shared(tmp_path: Path) -> None:
    ensemble = new_ensemble()
    ensemble.save_pretrained(tmp_path / "reward")
    scores = []
    for reward in (Shared(ensemble), tmp_path / "reward"):
        env = TokenVectorEnv(
            2,
            prompts=["the film", "a plot"],
            tokenizer=tiny_tokenizer(),
            reference=None,
            reward=reward,
            max_new_tokens=2,
            kl_coef=0.0,
        )
        env.reset(seed=0)
        env.step(np.array([3, 4]))
        scores.append(env.step(np.array([5, 6]))[1])
    assert np.abs(scores[0]).min() > 0
    np.testing.assert_array_equal(*scores)


def test_a_run_trains_one_and_learns_from_it(tmp_path: Path) -> None:
    pretrained = save_model(tmp_path / "pretrained")
    config = tiny_config(tmp_path / "run")
    config = replace(
        config,
        reward=replace(
            config.reward,
            members=2,
            trunk="shared",
            aggregate="uwo",
            uncertainty_weight=0.5,
            training=replace(config.reward.training, bootstrap=True),
        ),
    )
    console = quiet()
    folder = RunFolder(run(config, task=tiny_task(pretrained), console=console))
    assert "2 models on" in said(console)
    ensemble = prepare(config, task=tiny_task(pretrained), console=quiet()).load_reward(1)
    assert (len(ensemble), ensemble.aggregate, ensemble.uncertainty_weight) == (2, "uwo", 0.5)
    assert len({n.mean for n in ensemble.normalizers}) == 2
    left = {path.name for path in folder.stage("reward", 1).iterdir()}
    assert left == {"manifest.json", "metrics.json", "model", "timing.json"}

    own = tiny_config(tmp_path / "own", seed=5)  # a run with it as the user's own is put into the unit and left alone
    own = replace(own, task=replace(own.task, reward_model=str(folder.stage("reward", 1) / "model")))
    for stage in ("sft", "reward"):
        run(own, task=tiny_task(pretrained), console=quiet(), only=stage)
    found = prepare(own, task=tiny_task(pretrained), console=quiet()).load_reward(1)
    assert len(found) == 2 and found.normalizers != ensemble.normalizers
    for changes, message in (
        ({"trunk": "shared"}, "members >= 2 to share a trunk, got 1"),
        ({"trunk": "half"}, "trunk to be one of .*, got 'half'"),
        ({"uncertainty_weight": -1.0}, "uncertainty_weight >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(tiny_config(tmp_path).reward, **changes)  # type: ignore[arg-type]
