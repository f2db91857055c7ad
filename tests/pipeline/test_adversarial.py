"""Adversarial pairs of a tiny run: what is looked for, what is kept apart, and that later rounds train on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.cli import main
from rlhf_gym.cli.adversarial_command import print_adversarial
from rlhf_gym.pipeline import Run, prepare, run
from rlhf_gym.pipeline.adversarial import (
    EDITS,
    WITHOUT_KL,
    AdversarialConfig,
    add_adversarial_pairs,
    find_pairs,
    kind_of,
)
from rlhf_gym.pipeline.reward import adversarial_folder, training_preferences
from rlhf_gym.preferences import read_preferences
from rlhf_gym.rewards import RewardModel
from tests.tiny_runs import quiet, said, save_model, tiny_config, tiny_task

CONFIG = AdversarialConfig(pairs=20, num_prompts=8, tries=2, words=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run with the policy without KL penalty."""
    root = tmp_path_factory.mktemp("adversarial")
    task = tiny_task(save_model(root / "model"), demonstrations=[])
    config = tiny_config(root / "run", without_kl=True)
    run(config, task=task, console=quiet())
    return prepare(config, task=task, console=quiet())


@pytest.fixture(scope="module")
def metrics(finished: Run) -> dict:
    return add_adversarial_pairs(finished, CONFIG)


def test_pairs_are_edits_of_normal_responses_that_the_policy_could_have_written(finished: Run) -> None:
    words = {"praise": ["good"], "padding": ["the"]}
    reward = finished.load_reward(1)
    found = find_pairs(finished, CONFIG, list(finished.task.prompts[:4]), words, reward, part=0)
    assert {each.kind for each in found} == {*EDITS, WITHOUT_KL}
    for each in found:
        odd, normal = each.pair
        assert odd.prompt == normal.prompt and odd.response != normal.response
        assert normal.source in ("the SFT policy", "policy 0 of round 1")
        assert len(odd.response.split()) <= finished.task.max_new_tokens
        scores = reward.score_texts([odd.prompt] * 2, [odd.response, normal.response])
        assert each.gap == pytest.approx(scores[0] - scores[1], abs=1e-5)
    again = find_pairs(finished, CONFIG, list(finished.task.prompts[:4]), words, reward, part=0)
    assert [each.pair for each in again] == [each.pair for each in found]


def test_pairs_are_those_that_the_reward_model_prefers(finished: Run, metrics: dict) -> None:
    folder = adversarial_folder(finished, 1)
    pairs = read_preferences(folder / "preferences.jsonl")
    assert metrics["pairs"] == len(pairs) == sum(metrics["kinds"].values()) <= 20
    reward = finished.load_reward(1)
    for p in pairs:
        chosen, rejected = reward.score_texts([p.prompt] * 2, [p.chosen, p.rejected])
        odd = kind_of(replace(p, rejected_source=""))
        assert (chosen >= rejected - 1e-6) == (odd != "other") or abs(chosen - rejected) < 1e-5
        assert kind_of(p) in {*EDITS, WITHOUT_KL} and p.annotator == "simulated" and p.round == 1


def test_what_was_held_out_stays_held_out(finished: Run, metrics: dict) -> None:
    folder, collected = adversarial_folder(finished, 1), finished.folder.stage("collect", 1)
    for name in ("preferences.jsonl", "heldout_preferences.jsonl"):
        found = {p.prompt for p in read_preferences(folder / name)}
        assert found <= {p.prompt for p in read_preferences(collected / name)}


def test_before_and_after_are_measured_on_the_same_pairs(finished: Run, metrics: dict) -> None:
    before, after = metrics["before"], metrics["after"]
    normal = finished.folder.metrics("reward")
    assert normal is not None and before["normal"] == pytest.approx(normal["accuracy"])
    for side in (before, after):
        n = sum(n for _, n in side["by_kind"].values())
        assert side["adversarial"] == pytest.approx(sum(a * n for a, n in side["by_kind"].values()) / n)
        assert set(side["raised"]) == {*EDITS, WITHOUT_KL}
    model = RewardModel.from_pretrained(adversarial_folder(finished, 1) / "model")
    assert model.normalizers[0].std != 1.0
    console = quiet()
    print_adversarial(console, metrics)
    assert f"{metrics['pairs']} pairs that r_φ overrates" in said(console) and "  praise" in said(console)


def test_later_reward_models_are_trained_on_them(finished: Run, metrics: dict) -> None:
    train, heldout = training_preferences(finished, 1)
    plain = read_preferences(finished.folder.stage("collect", 1) / "preferences.jsonl")
    assert len(train) == len(plain) + metrics["pairs"]
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in heldout)
    run(finished.config, task=finished.task, console=quiet(), redo="reward")
    done = finished.folder.metrics("reward")
    assert done is not None and done["pairs"] == len(train)


def test_a_run_without_the_round_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tiny_task(save_model(tmp_path / "model"), demonstrations=[])
    prepared = prepare(tiny_config(tmp_path / "run"), task=task, console=quiet())
    with pytest.raises(ValueError, match="expected the reward model of round 1"):
        add_adversarial_pairs(prepared, CONFIG)
    assert main(["adversarial", str(tmp_path / "nothing")]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected tries >= 1, got 0"):
        AdversarialConfig(tries=0)


def test_a_reward_model_that_falls_for_nothing_is_said_to(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_gym.pipeline.adversarial._gaps", lambda reward, pairs: -np.ones(len(pairs)))
    with pytest.raises(ValueError, match="scores each edited response below the unedited one"):
        add_adversarial_pairs(finished, replace(CONFIG, seed=5))
