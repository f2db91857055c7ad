"""What is measured of each arm: its final policy on held-out prompts, its way there, its reward model, its alarms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.files import read_jsonl
from rlhf_gym.pipeline.comparison import mean_with_error
from rlhf_gym.report.charts import smooth
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.folder import StageName
from rlhf_gym.runs.records import iterations
from rlhf_gym.tasks.reviews_gold import reviews_gold
from rlhf_gym.training import EditProbe, probe_edits

WINDOW = 3
"""Iterations that curves are averaged over."""
SHOWN = 3
"""Prompts whose responses are shown: the first ones, not picked."""
ALARMS = "alarms.jsonl"


@dataclass(frozen=True)
class Arm:
    """One policy: that of a failure, or of its cure."""

    label: str
    """What was done, in a few words."""
    folder: RunFolder
    """Its run."""
    stage: StageName = "ppo"
    """Which of the run's policies."""


@dataclass(frozen=True, eq=False)
class Measured:
    """An arm's figures."""

    label: str
    """What was done."""
    final: dict[str, Any]
    """Of the final policy on held-out prompts, as `evaluate` left them: gold, kl, entropy, length, distinct_2 …"""
    sft: dict[str, Any]
    """The same of the SFT policy."""
    curves: dict[str, np.ndarray]
    """Over training, smoothed: tokens, score, gold, kl, entropy, length; (iterations,) each. Tokens are those that the
    policy had learned from when it wrote an iteration's responses."""
    probes: dict[str, Any]
    """What the probes of its reward model found; empty where it is another arm's."""
    labels: int
    """Comparisons that its reward model was trained on; 0 where that is another arm's."""
    alarms: list[dict[str, Any]]
    """What the monitor said, in order; its tokens are counted as those of the curves are."""
    responses: list[dict[str, Any]]
    """Its responses to all held-out prompts."""
    before: list[dict[str, Any]]
    """The SFT policy's."""
    inserted: EditProbe | None = None
    """What its reward model makes of SFT responses with certain words put in, where that was asked."""

    @property
    def gold(self) -> float:
        """Mean gold of the final responses."""
        return float(self.final["gold"][0])

    @property
    def peak(self) -> tuple[float, float]:
        """(tokens, gold) where gold was highest."""
        best = int(self.curves["gold"].argmax())
        return float(self.curves["tokens"][best]), float(self.curves["gold"][best])


def occurrences(responses: Sequence[dict[str, Any]], words: Sequence[str]) -> tuple[float, float]:
    """How many of these words a response holds, mean and standard error."""
    return mean_with_error([sum(r["response"].split().count(word) for word in words) for r in responses])


def different(responses: Sequence[dict[str, Any]]) -> int:
    """How many distinct responses there are."""
    return len({r["response"] for r in responses})


def measure(arm: Arm, words: Sequence[str] = ()) -> Measured:
    """An arm's figures, from its run's folder; with words, its reward model is asked what they are worth."""
    metrics, reward = arm.folder.metrics("evaluate"), arm.folder.metrics("reward")
    assert metrics is not None and reward is not None
    sft = next(entry for entry in metrics["policies"] if entry["kind"] == "sft")
    final = next(entry for entry in metrics["policies"] if entry["kind"] == arm.stage)
    folder = arm.folder.seed(arm.stage, 1, final["seed"])
    log = iterations(folder)
    columns = {"score": "rlhf/score", "gold": "rlhf/gold", "kl": "rlhf/kl", "entropy": "rlhf/entropy",
               "length": "rlhf/response_length"}  # fmt: skip
    curves = {name: smooth([record[column] for record in log], WINDOW) for name, column in columns.items()}
    # an iteration is logged after its update, about responses from before it
    curves["tokens"] = np.array([0, *(record["tokens"] for record in log)][: len(log)], dtype=float)
    samples = arm.folder.stage("evaluate") / "samples"
    before = list(read_jsonl(samples / "sft.jsonl"))
    return Measured(
        label=arm.label,
        final=final,
        sft=sft,
        curves=curves,
        probes=reward.get("probes", {}),
        labels=reward["pairs"],
        alarms=_alarms(folder / ALARMS, curves["tokens"]),
        responses=list(read_jsonl(samples / f"{final['name']}.jsonl")),
        before=before,
        inserted=_inserted(arm, before, words) if words else None,
    )


def _alarms(path: Path, tokens: np.ndarray) -> list[dict[str, Any]]:
    """A run's alarms. The monitor counts the tokens of the rollout that set one off too; here it is told when the
    policy was as it saw it, so that an alarm about an iteration stands beside that iteration's gold."""
    if not path.is_file():
        return []
    alarms = [json.loads(line) for line in path.read_text().splitlines()]
    return [alarm | {"tokens": int(tokens[alarm["rollout"] - 1])} for alarm in alarms]


def _inserted(arm: Arm, before: Sequence[dict[str, Any]], words: Sequence[str]) -> EditProbe:
    config = arm.folder.config()
    assert config is not None
    reward = load_reward(config.task.reward_model or arm.folder.stage("reward") / "model")
    prompts, responses = [r["prompt"] for r in before], [r["response"] for r in before]
    return probe_edits(reward, prompts, responses, gold=reviews_gold, words={"such words": words})[-1]
