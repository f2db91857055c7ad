"""The monitor in a run: its settings, its files, its line, and a run that goes on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.monitoring import REFUSAL, AlarmThresholds
from rlhf_gym.pipeline import run
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.summaries import alarm_line
from rlhf_gym.settings import MonitorConfig, PPOSettings
from rlhf_gym.settings.saved import from_json, to_json
from tests.tiny_runs import quiet, said, tiny_config, tiny_task

SOUNDS = AlarmThresholds(kl_high=1e-9, baseline=1, window=1, noise=0.0)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_settings() -> None:
    config = MonitorConfig(patterns=("good=\\bgood\\b", "eq=a=b"), refusals=True, thresholds=SOUNDS)
    assert config.by_name == {"refusal": REFUSAL, "good": "\\bgood\\b", "eq": "a=b"}
    assert from_json(MonitorConfig, to_json(config)) == config
    MonitorConfig(patterns=("good=good",), stop_on=("pattern/good", "entropy"))
    for wrong, message in (
        ({"patterns": ("good",)}, "patterns as NAME=EXPRESSION, got 'good'"),
        ({"patterns": ("good=(",)}, r"a regular expression in 'good=\('"),
        ({"patterns": ("good=a", "good=b")}, "a name of its own, got 'good' twice"),
        ({"patterns": ("refusal=a",), "refusals": True}, "a name of its own, got 'refusal' twice"),
        ({"stop_on": ("pattern/good",)}, "expected one of the alarms disagreement"),
        ({"every": 0}, "every >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MonitorConfig(**wrong)


def test_the_line() -> None:
    seeds = [
        {"alarms": [{"name": "drift", "tokens": 9_400}, {"name": "kl_high", "tokens": 7_100}], "ended_by": None},
        {
            "alarms": [{"name": "kl_high", "tokens": 8_000}, {"name": "kl_high", "tokens": 20_000}],
            "ended_by": "kl_high",
        },
    ]
    expected = "; alarms: kl_high after 7k tokens (2 of 2 seeds), drift after 9k tokens (1 of 2 seeds)"
    assert alarm_line(seeds) == f"{expected}; ended by kl_high"
    assert alarm_line(seeds[:1]) == "; alarms: kl_high after 7k tokens, drift after 9k tokens"
    assert alarm_line([{"alarms": [], "ended_by": None}]) == "; no alarm"
    assert alarm_line([{"seed": 0}, None]) == ""


def test_a_run_is_watched_and_says_so(copied: Callable[[Path], Path], tmp_path: Path, pretrained: Path) -> None:
    """A quiet one, one that an alarm ends, and another policy's text to hold on to."""
    held_out = tmp_path / "texts.txt"
    held_out.write_text("the film was good\na plot\n")
    task = tiny_task(pretrained)
    console = quiet()
    config = tiny_config(
        copied(tmp_path / "run"),
        without_kl=True,
        monitor=MonitorConfig(
            patterns=("good=good",), held_out=held_out, every=2, stop_on=("kl_high",), thresholds=SOUNDS
        ),
        agent=replace(tiny_config(tmp_path).agent, total_tokens=400),
    )
    run(config, task=task, console=console, redo="train")
    folder = RunFolder(config.run_dir)
    seed = folder.seed("train", 1, 0)
    records, metrics = lines(seed / "monitor.jsonl"), lines(seed / "metrics.jsonl")
    assert len(records) == len(metrics) < 8
    assert [r["tokens"] for r in records] == [m["tokens"] for m in metrics]
    for record, logged in zip(records, metrics, strict=True):
        assert all(logged[f"monitor/{name}"] == value for name, value in record["figures"].items())
        assert "monitor/kl_tokens" not in logged
    assert "pattern/good" in records[0]["figures"] and "held_out_perplexity" in records[0]["figures"]
    assert "alarm/kl_high" in metrics[-1]
    (alarm, *_) = lines(seed / "alarms.jsonl")
    assert alarm["name"] == "kl_high" and metrics[-1]["tokens"] == alarm["tokens"] < 400
    end = json.loads((seed / "metrics.json").read_text())
    assert end["ended_by"] == "kl_high" and end["tokens"] == alarm["tokens"]
    free = folder.seed("without_kl", 1, 0)
    assert lines(free / "alarms.jsonl") and lines(free / "metrics.jsonl")[-1]["tokens"] >= 400
    text = " ".join(said(console).split())
    assert text.count("alarm kl_high, after") == 1, "the run without KL penalty keeps it to its line"
    assert "ended by kl_high" in text and text.count("alarms: kl_high after 0k tokens") == 2


def test_a_run_that_was_interrupted_is_told_as_one_that_never_was(
    copied: Callable[[Path], Path], tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_gym.monitoring import RLHFMonitor

    task = tiny_task(pretrained)
    ppo = PPOSettings(
        total_tokens=300, n_episodes=16, batch_size=8, n_epochs=1, num_envs=8, learning_rate=1e-3, checkpoint_every=2
    )
    settings = {"agent": ppo, "monitor": MonitorConfig(every=2, thresholds=SOUNDS)}
    only: dict[str, Any] = {"task": task, "only": "train"}
    run(tiny_config(copied(tmp_path / "whole"), **settings), **only, console=quiet(), redo="train")
    take, count = RLHFMonitor._on_rollout_end, iter(range(100))

    def interrupting(self: RLHFMonitor) -> None:
        take(self)
        if next(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RLHFMonitor, "_on_rollout_end", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(copied(tmp_path / "half"), **settings), **only, console=quiet(), redo="train")
    monkeypatch.undo()
    run(tiny_config(tmp_path / "half", **settings), **only, console=quiet())
    whole, half = (RunFolder(tmp_path / name).seed("train", 1, 0) for name in ("whole", "half"))
    assert lines(whole / "monitor.jsonl") == lines(half / "monitor.jsonl")
    assert lines(whole / "alarms.jsonl") == lines(half / "alarms.jsonl") != []
    assert (whole / "model" / "model.safetensors").read_bytes() == (half / "model" / "model.safetensors").read_bytes()
