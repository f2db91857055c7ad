"""A run whose reward model learns from labelled steps: what is trained, kept and used, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification

from rlhf_gym.pipeline import run
from rlhf_gym.pipeline.preparation import prepare
from rlhf_gym.pipeline.reward import UnfitRewardError
from rlhf_gym.preferences import load_steps
from rlhf_gym.rewards import RewardEnsemble, TokenRewardModel, load_reward
from rlhf_gym.runs.folder import RunFolder
from rlhf_gym.runs.records import iterations
from rlhf_gym.settings import RunConfig, TaskConfig
from tests.tiny_runs import PROMPTS, quiet, save_model, tiny_config, tiny_task


def write_steps(path: Path, *, noise: bool = False) -> Path:
    """Steps are good where they say so; with `noise`, labels are drawn."""
    rng = np.random.default_rng(0)
    rows = []
    for prompt in PROMPTS * 10:
        labels = rng.integers(2, size=2).tolist()
        steps = [f"the film is {'good' if label else 'bad'}" for label in labels]
        shown = rng.integers(2, size=2).tolist() if noise else labels
        rows.append({"prompt": prompt, "completions": steps, "labels": shown})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(tmp_path: Path, steps: Path, **reward) -> RunConfig:
    config = tiny_config(tmp_path / "run", task=TaskConfig(step_labels=steps))
    training = replace(config.reward.training, epochs=15, learning_rate=1e-2)
    return replace(config, reward=replace(config.reward, training=training, step_separator="was", **reward))


def test_a_run_from_labelled_steps_to_the_report(tmp_path: Path) -> None:
    task = tiny_task(save_model(tmp_path / "model"), demonstrations=[], gold=None)
    folder = RunFolder(run(config_of(tmp_path, write_steps(tmp_path / "steps.jsonl")), task=task, console=quiet()))
    assert folder.metrics("collect") is None
    metrics = folder.metrics("reward")
    assert metrics is not None
    assert metrics["accuracy"] > 0.95 and metrics["log_loss"] < 0.2
    assert 0.3 < metrics["good"] < 0.7
    assert metrics["steps"] + metrics["heldout_steps"] == 2 * len(PROMPTS) * 10
    model = folder.stage("reward", 1) / "model"
    assert AutoModelForTokenClassification.from_pretrained(model).config.num_labels == 2
    reward = load_reward(model)
    assert isinstance(reward, TokenRewardModel) and reward.separator == "was"
    assert reward.normalizers[0].std != 1
    log = iterations(folder.seed("train", 1, folder.metrics("train")["seeds"][0]))
    assert log and all(entry["rlhf/dense_reward"] > 0 for entry in log)
    page = (folder.root / "report.html").read_text()
    assert f"right about {metrics['accuracy']:.1%} of {metrics['heldout_steps']}" in page


def test_members_are_an_ensemble(tmp_path: Path) -> None:
    task = tiny_task(save_model(tmp_path / "model"), demonstrations=[], gold=None)
    config = config_of(tmp_path, write_steps(tmp_path / "steps.jsonl"), members=2, aggregate="min", probe_samples=0)
    config = replace(config, reward=replace(config.reward, training=replace(config.reward.training, epochs=4)))
    folder = RunFolder(run(config, task=task, only="reward", console=quiet()))
    reward = load_reward(folder.stage("reward", 1) / "model")
    assert isinstance(reward, RewardEnsemble) and len(reward) == 2 and reward.at_tokens


def test_what_learned_nothing_is_refused(tmp_path: Path) -> None:
    task = tiny_task(save_model(tmp_path / "model"), demonstrations=[], gold=None)
    steps = write_steps(tmp_path / "steps.jsonl", noise=True)
    config = config_of(tmp_path, steps, probe_samples=0)
    weak = replace(config.reward.training, epochs=1, learning_rate=1e-9)
    config = replace(config, reward=replace(config.reward, training=weak))
    with pytest.raises(UnfitRewardError, match=r"held-out steps: saying always the same is in .*--reward\.force"):
        run(config, task=task, only="reward", console=quiet())


def test_what_does_not_go_together_is_said_before_any_work(tmp_path: Path) -> None:
    steps = write_steps(tmp_path / "steps.jsonl")
    task = tiny_task(save_model(tmp_path / "model"), demonstrations=[], gold=None)
    with pytest.raises(ValueError, match="either step labels or preferences or a reward model"):
        TaskConfig(step_labels=steps, reward_model="x")
    config = config_of(tmp_path, steps)
    with pytest.raises(ValueError, match="rounds=1 with preferences, step labels or a reward model"):
        replace(config, rounds=2)
    with pytest.raises(ValueError, match="trunks of their own"):
        replace(config, reward=replace(config.reward, members=2, trunk="shared"))
    lines = replace(config, reward=replace(config.reward, step_separator="\n"))
    with pytest.raises(ValueError, match=r"separator that the tokenizer has tokens for, got '\\n'"):
        prepare(lines, task=task, console=quiet())
    steps.write_text(json.dumps({"prompt": "a", "completions": ["b"], "labels": [1, 0]}) + "\n")
    with pytest.raises(ValueError, match=r"steps\.jsonl, line 1: expected as many"):
        prepare(config, task=task, console=quiet())
    rows = [{"prompt": p, "completions": ["the " * 70], "labels": [1]} for p in PROMPTS]
    steps.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_steps(steps).records) == len(PROMPTS)
    with pytest.raises(ValueError, match=r"at most 64 tokens .*labelled response 0"):
        prepare(config, task=task, console=quiet())
