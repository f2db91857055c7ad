"""Whole runs on a tiny task: what they leave, what they skip, how they go on, and further rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_gym.agents import TokenPPO
from rlhf_gym.files import read_json, read_jsonl
from rlhf_gym.lm import load_causal_lm, load_tokenizer
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.collect import all_preferences
from rlhf_gym.pipeline.progress import IterationLog, Watch
from rlhf_gym.pipeline.samples import proxy_scores
from rlhf_gym.pipeline.stages import Interrupted, check_inputs
from rlhf_gym.preferences import read_preferences
from rlhf_gym.rewards import RewardEnsemble, RewardModel
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import PPOSettings, RunConfig
from rlhf_gym.training import RewardModelingConfig
from tests.tiny_runs import PROMPTS, quiet, said, tiny_config, tiny_task


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A whole run from random weights, with the run without KL penalty, two seeds; and what it said."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    console = quiet()
    run(tiny_config(root, seeds=2, without_kl=True), task=tiny_task(), console=console)
    return RunFolder(root), said(console)


def test_a_run_leaves_its_folder(finished: tuple[RunFolder, str]) -> None:
    folder, output = finished
    root = folder.root
    for stage in ("pretrain", "sft", "evaluate"):
        assert folder.metrics(stage) is not None, stage
    for stage in ("collect", "reward", "train", "without_kl"):
        assert folder.metrics(stage, 1) is not None, stage
    for name in ("pretrain/model", "sft/model", "round-1/train/seed-0/model", "round-1/without_kl/seed-1/model"):
        assert load_causal_lm(root / name).config.n_embd == 16
        assert load_tokenizer(root / name).get_vocab() == tiny_task().tokenizer.get_vocab()
    assert RewardModel.from_pretrained(root / "round-1/reward/model").normalizers[0].std != 1.0
    assert folder.report.is_file()
    assert not list(root.rglob("*.partial")) and not list(root.rglob("checkpoint*"))
    lines = [line.split()[0] for line in output.splitlines() if line and not line.startswith((" ", "rlhf-gym"))]
    stages = ["pretrain", "sft", "collect", "reward", "train", "without_kl", "evaluate", "report"]
    assert lines[:8] == stages
    assert "PPO without KL" in output and "best of 2" in output


def test_the_folder_holds_its_settings(finished: tuple[RunFolder, str]) -> None:
    folder, _ = finished
    assert folder.config() == tiny_config(folder.root, seeds=2, without_kl=True)
    assert json.loads((folder.root / "config.json").read_text())["config"]["agent"]["total_tokens"] == 240


def test_ppo_logs_every_iteration_with_gold_and_stops_at_its_tokens(finished: tuple[RunFolder, str]) -> None:
    folder, _ = finished
    records = list(read_jsonl(folder.seed("train", 1, 0) / "metrics.jsonl"))
    assert [r["iteration"] for r in records] == list(range(1, len(records) + 1))
    assert records[-1]["tokens"] >= 240 > records[-2]["tokens"]
    for record in records:
        assert {"rlhf/score", "rlhf/kl", "rlhf/gold", "rlhf/entropy", "rlhf/kl_coef", "train/loss"} <= set(record)
        assert record["rlhf/kl_coef"] == 0.1
    assert abs(records[0]["rlhf/kl"]) < 1e-4, "the policy begins as π_ref"
    free = list(read_jsonl(folder.seed("without_kl", 1, 0) / "metrics.jsonl"))
    assert {r["rlhf/kl_coef"] for r in free} == {0.0}
    assert free[0]["rlhf/score"] == pytest.approx(records[0]["rlhf/score"]), "the same seed, the same first rollout"
    other = list(read_jsonl(folder.seed("train", 1, 1) / "metrics.jsonl"))
    assert other[0]["rlhf/score"] != records[0]["rlhf/score"]


def test_rewards_are_in_the_unit_of_the_sft_policy(finished: tuple[RunFolder, str]) -> None:
    """Scores of the samples that they were normalised on: mean 0, standard deviation 1."""
    from rlhf_gym.pipeline.reward import reference_samples

    folder, _ = finished
    prepared = prepare(tiny_config(folder.root, seeds=2, without_kl=True), task=tiny_task(), console=quiet())
    scores = proxy_scores(prepared.load_reward(1), prepared.task.tokenizer, reference_samples(prepared))
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)


def test_preferences_are_held_out_by_prompt(finished: tuple[RunFolder, str]) -> None:
    folder, _ = finished
    train = read_preferences(folder.stage("collect", 1) / "preferences.jsonl")
    heldout = read_preferences(folder.stage("collect", 1) / "heldout_preferences.jsonl")
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in heldout)
    assert {p.prompt for p in train + heldout} <= set(PROMPTS[6:]), "never about the prompts of the evaluation"
    assert {p.chosen_source for p in train} == {"the SFT policy"}
    candidates = list(read_jsonl(folder.stage("collect", 1) / "candidates.jsonl"))
    assert len(candidates) == 14 * 4
    assert [c["prompt"] for c in candidates[:4]] == [candidates[0]["prompt"]] * 4


def test_the_evaluation_is_about_heldout_prompts_and_all_policies(finished: tuple[RunFolder, str]) -> None:
    folder, _ = finished
    metrics = folder.metrics("evaluate")
    assert metrics is not None and metrics["judge"] == "gold" and metrics["prompts"] == 6
    assert [p["kind"] for p in metrics["policies"]] == ["sft", "best_of", "train", "train", "without_kl", "without_kl"]
    assert [(r["kind"], r["seeds"]) for r in metrics["summary"]] == [
        ("sft", 1),
        ("best_of", 1),
        ("train", 2),
        ("without_kl", 2),
    ]
    sft, best, *others = metrics["policies"]
    assert sft["kl"] == [0.0, 0.0] and "wins_sft" not in sft
    assert best["kl"][0] == pytest.approx(np.log(2) - 0.5)
    for entry in others:
        assert 0 <= entry["wins_sft"][1] <= entry["wins_sft"][0] <= entry["wins_sft"][2] <= 1
        assert 0 <= entry["entropy"] <= np.log(29)
    samples = list(read_jsonl(folder.stage("evaluate") / "samples" / "train-round-1-seed-0.jsonl"))
    assert {s["prompt"] for s in samples} == set(PROMPTS[:6])
    entry = others[0]
    assert entry["gold"][0] == pytest.approx(np.mean([s["gold"] for s in samples]))
    assert entry["kl"][0] == pytest.approx(np.mean([s["kl"] for s in samples]), abs=1e-6)
    before = list(read_jsonl(folder.stage("evaluate") / "samples" / "sft.jsonl"))
    wins = [0.5 * (1 + np.sign(a["gold"] - b["gold"])) for a, b in zip(samples, before, strict=True)]
    assert entry["wins_sft"][0] == pytest.approx(np.mean(wins))


def test_tokens_of_the_report_are_those_of_the_samples(finished: tuple[RunFolder, str]) -> None:
    folder, _ = finished
    name = "train-round-1-seed-0"
    samples = list(read_jsonl(folder.stage("evaluate") / "samples" / f"{name}.jsonl"))
    records = list(read_jsonl(folder.stage("evaluate") / "tokens" / f"{name}.jsonl"))
    assert len(records) == 2
    for record, sample in zip(records, samples, strict=False):
        after = record["after"]
        text = "".join(after["tokens"]).replace("<eos>", "").split()
        assert text == sample["response"].split()
        assert sum(after["log_prob"]) - sum(after["ref_log_prob"]) == pytest.approx(sample["kl"], abs=2e-3)


# -- going on ----------------------------------------------------------------------------------------------------------


def test_what_is_complete_is_skipped(finished: tuple[RunFolder, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = finished

    def work(*args: object) -> None:
        raise AssertionError("a complete stage was gone through again")

    for name in ("pretrain", "sft", "collect", "reward", "train", "without_kl", "evaluate"):
        monkeypatch.setattr(f"rlhf_gym.pipeline.stages.{name}_stage", work)
    marks = {path: path.stat().st_mtime_ns for path in folder.root.rglob("metrics.json")}
    console = quiet()
    run(tiny_config(folder.root, seeds=2, without_kl=True), task=tiny_task(), console=console)
    assert marks == {path: path.stat().st_mtime_ns for path in folder.root.rglob("metrics.json")}
    assert said(console).count(" done ") == 7


def weights_of(folder: RunFolder) -> dict[str, np.ndarray]:
    model = load_causal_lm(folder.seed("train", 1, 0) / "model")
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def uninterrupted(before: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run in which nothing happened."""
    root = shutil.copytree(before / "run", tmp_path_factory.mktemp("uninterrupted") / "run")
    return RunFolder(run(tiny_config(root), task=tiny_task(before / "pretrained"), console=quiet()))


@pytest.mark.parametrize("moment", ["rollout", "update", "saving"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    moment: str,
    uninterrupted: RunFolder,
    copied: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretrained: Path,
) -> None:
    task = tiny_task(pretrained)
    whole = uninterrupted
    cut = tiny_config(copied(tmp_path / "cut"))
    calls = 0

    def interrupt(*args: object) -> bool:
        nonlocal calls
        calls += 1
        if calls == (9 if moment == "rollout" else 3):
            raise KeyboardInterrupt
        return True

    original = IterationLog.write

    def write(self: IterationLog, *args: Any, **kwargs: Any) -> None:
        interrupt()
        original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        if moment == "rollout":
            patch.setattr(Watch, "_on_step", interrupt)
        elif moment == "saving":  # all has been learned, and the model is being written
            calls = 2
            patch.setattr(TokenPPO, "save_pretrained", lambda *args, **kwargs: interrupt())
        else:  # just after an update, before its figures are written
            patch.setattr(IterationLog, "write", write)
        with pytest.raises(Interrupted, match="train"):
            run(cut, task=task, console=quiet())
    folder = RunFolder(cut.run_dir)
    assert folder.metrics("reward") is not None and folder.metrics("train") is None
    assert (folder.seed("train", 1, 0) / "checkpoint.zip").is_file()
    run(cut, task=task, console=quiet())
    for name, expected in weights_of(whole).items():
        assert np.array_equal(weights_of(folder)[name], expected), name

    def figures(where: RunFolder) -> list[dict]:
        records = read_jsonl(where.seed("train", 1, 0) / "metrics.jsonl")
        return [{k: v for k, v in r.items() if k.startswith(("rlhf", "train", "tokens", "iteration"))} for r in records]

    assert figures(folder) == figures(whole)
    assert folder.metrics("evaluate")["policies"] == whole.metrics("evaluate")["policies"]  # type: ignore[index]


def test_a_second_round_collects_from_the_new_policy_and_goes_on(tmp_path: Path, pretrained: Path) -> None:
    task = tiny_task(pretrained)
    config = tiny_config(tmp_path / "run", reference="previous")
    run(config, task=task, console=quiet())
    folder = RunFolder(config.run_dir)
    first = folder.metrics("train", 1)
    console = quiet()
    run(replace(config, rounds=2), task=task, console=console)
    assert folder.metrics("train", 1) == first, "the first round stays"
    assert "collect 2" in said(console) and "PPO, round 2" in said(console)
    fresh = read_preferences(folder.stage("collect", 2) / "preferences.jsonl")
    assert {p.chosen_source for p in fresh} == {"policy 0 of round 1"} and {p.round for p in fresh} == {2}
    prepared = prepare(replace(config, rounds=2), task=task, console=quiet())
    train, heldout = all_preferences(prepared, 2)
    assert {p.round for p in train} == {1, 2}
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in heldout)
    assert folder.metrics("reward", 2)["pairs"] == len(train)  # type: ignore[index]
    assert prepared.reference(2, 0) == folder.seed("train", 1, 0) / "model"
    records = list(read_jsonl(folder.seed("train", 2, 0) / "metrics.jsonl"))
    assert abs(records[0]["rlhf/kl"]) < 1e-4, "π_ref is the policy that the round began with"
    evaluation = folder.metrics("evaluate")
    assert evaluation is not None and [r["kind"] for r in evaluation["summary"]] == ["sft", "best_of", "train", "train"]
    assert folder.config() == replace(config, rounds=2)


@pytest.mark.parametrize(("reference", "expected"), [("sft", "sft/model"), ("pretrained", None)])
def test_the_reference_is_what_was_asked_for(
    reference: Any, expected: str | None, pretrained: Path, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", reference=reference)
    prepared = prepare(config, task=tiny_task(pretrained), console=quiet())
    for round in (1, 2):
        assert prepared.reference(round, 0) == (pretrained if expected is None else tmp_path / "run" / expected)


def test_a_stage_alone_wants_what_comes_before_it(tmp_path: Path, pretrained: Path) -> None:
    task, config = tiny_task(pretrained), tiny_config(tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected sft to be complete before collect.*rlhf-gym sft"):
        run(config, task=task, only="collect", console=quiet())
    assert not config.run_dir.exists()
    for stage in ("sft", "collect"):
        run(config, task=task, only=stage, console=quiet())
    folder = RunFolder(config.run_dir)
    assert folder.metrics("collect") is not None and folder.metrics("reward") is None
    with pytest.raises(ValueError, match="expected reward to be complete before evaluate"):
        run(config, task=task, only="evaluate", console=quiet())

    # what --redo begins again from is not needed by itself, in whatever round, nor is what comes after it
    more = prepare(replace(config, rounds=2), task=task, console=quiet())
    check_inputs(more, "collect", redo="collect")
    with pytest.raises(ValueError, match="expected collect to be complete before reward"):
        check_inputs(more, "reward", redo="collect")


def test_redo_begins_again_from_a_stage(copied: Callable[[Path], Path], tmp_path: Path, pretrained: Path) -> None:
    task, config = tiny_task(pretrained), tiny_config(copied(tmp_path / "run"))
    run(config, task=task, console=quiet())
    folder = RunFolder(config.run_dir)
    before = {stage: folder.metrics(stage) for stage in ("sft", "collect", "reward", "train")}
    other = replace(config, agent=replace(config.agent, kl_coef=0.5))
    with pytest.raises(ValueError, match=r"agent\.kl_coef: 0\.1 there, 0\.5 now\n.*--redo train begins again"):
        run(other, task=task, console=quiet())
    with pytest.raises(ValueError, match=r"agent\.kl_coef"):
        run(other, task=task, redo="evaluate", console=quiet())
    run(other, task=task, redo="train", console=quiet())
    for stage in ("sft", "collect", "reward"):
        assert folder.metrics(stage) == before[stage]  # type: ignore[arg-type]
    records = list(read_jsonl(folder.seed("train", 1, 0) / "metrics.jsonl"))
    assert {r["rlhf/kl_coef"] for r in records} == {0.5}
    assert folder.config() == other


# -- other inputs ------------------------------------------------------------------------------------------------------


def test_without_demonstrations_the_model_itself_is_the_sft_policy(tmp_path: Path, pretrained: Path) -> None:
    task = tiny_task(pretrained, demonstrations=[], heldout_demonstrations=[])
    console = quiet()
    folder = RunFolder(run(tiny_config(tmp_path / "run"), task=task, console=console))
    assert "skipped: no demonstrations" in said(console) and "skipped: the pretrained model is there" in said(console)
    assert not folder.stage("sft").exists() and folder.metrics("evaluate") is not None


def test_ones_own_preferences_replace_collecting_and_no_gold_is_said(tmp_path: Path, pretrained: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    lines = [{"prompt": p, "chosen": "good film", "rejected": "bad film"} for p in PROMPTS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny_config(tmp_path / "run")
    config = replace(config, task=replace(config.task, preferences=path), without_kl=True)
    console = quiet()
    folder = RunFolder(run(config, task=tiny_task(pretrained, gold=None), console=console))
    assert folder.metrics("collect")["pairs"] == 18  # type: ignore[index]
    assert folder.metrics("evaluate")["judge"] == "proxy"  # type: ignore[index]
    assert folder.metrics("without_kl") is None, "nothing could be seen by it"
    assert "there is no gold" in said(console)
    assert "overrates" in folder.report.read_text()
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match=r"preferences\.jsonl as it was when"):
        run(config, task=tiny_task(pretrained, gold=None), console=quiet())


def test_a_reward_model_that_is_there_is_put_into_the_unit_and_left_alone(
    finished: tuple[RunFolder, str], tmp_path: Path, pretrained: Path
) -> None:
    own = finished[0].stage("reward", 1) / "model"
    before = (own / "reward_normalizer.json").read_text()
    config = tiny_config(tmp_path / "run")
    config = replace(config, task=replace(config.task, reward_model=str(own)))
    console = quiet()
    folder = RunFolder(run(config, task=tiny_task(pretrained), console=console))
    assert (own / "reward_normalizer.json").read_text() == before
    assert "skipped: the reward model is there" in said(console)
    assert not folder.stage("collect").exists()
    prepared = prepare(config, task=tiny_task(pretrained), console=quiet())
    reward = prepared.load_reward(1)
    assert isinstance(reward, RewardModel)
    assert reward.normalizers[0].to_dict() == read_json(folder.stage("reward") / "normalizers.json")[0]
    assert reward.normalizers[0].to_dict() != json.loads(before)


def test_an_ensemble_of_reward_models(copied: Callable[[Path], Path], tmp_path: Path, pretrained: Path) -> None:
    config = tiny_config(copied(tmp_path / "run"))
    config = replace(config, reward=replace(config.reward, members=2, aggregate="min"))
    folder = RunFolder(run(config, task=tiny_task(pretrained), console=quiet(), redo="reward", only="reward"))
    ensemble = RewardEnsemble.from_pretrained(folder.stage("reward", 1) / "model")
    a, b = ensemble.normalizers
    assert ensemble.aggregate == "min" and a != b
    own = tiny_config(tmp_path / "own")
    own = replace(own, task=replace(own.task, reward_model=str(folder.stage("reward", 1) / "model")))
    found = prepare(own, task=tiny_task(pretrained), console=quiet()).load_reward(1)
    assert isinstance(found, RewardEnsemble) and len(found) == 2, "an ensemble can be one's own too"


def test_the_controller_of_the_kl_moves_beta(copied: Callable[[Path], Path], tmp_path: Path, pretrained: Path) -> None:
    config = tiny_config(copied(tmp_path / "run"))
    config = replace(config, agent=replace(config.agent, kl_control="constraint", kl_target=0.01, learning_rate=1e-2))
    folder = RunFolder(run(config, task=tiny_task(pretrained), console=quiet(), redo="train", only="train"))
    betas = [r["rlhf/kl_coef"] for r in read_jsonl(folder.seed("train", 1, 0) / "metrics.jsonl")]
    assert betas[-1] != betas[0] == 0.1


def test_settings_survive_json(tmp_path: Path) -> None:
    from rlhf_gym.settings.saved import from_json, to_json

    config = replace(
        tiny_config(tmp_path),
        agent=PPOSettings(target_kl=0.1, clip_range_vf=None),
        reward=replace(tiny_config(tmp_path).reward, training=RewardModelingConfig(epochs=3)),
        task=replace(tiny_config(tmp_path).task, corpus=Path("/a/b.jsonl")),
    )
    again = from_json(RunConfig, json.loads(json.dumps(to_json(config))))
    assert again == config
    assert isinstance(again.task.corpus, Path) and isinstance(again.collect.temperatures, tuple)
