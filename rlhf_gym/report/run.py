"""A run as the report reads it: from its folder alone, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_gym.files import read_jsonl, reading
from rlhf_gym.monitoring.alarms import ALARMS
from rlhf_gym.runs.folder import CONFIG_FILE, RunFolder
from rlhf_gym.runs.records import iterations
from rlhf_gym.settings import RunConfig, StageName

Log = list[dict[str, Any]]
KINDS: dict[StageName, str] = {"train": "with KL penalty", "without_kl": "without KL penalty"}
"""The stages that train a policy, as the page calls them."""
SURPRISE = "monitor/ref_surprise"
"""The log of `monitor/ref_perplexity`, which is drawn since perplexities grow exponentially."""


@dataclass(frozen=True)
class Histories:
    """What each kind of training logged, a log a seed, the rounds one after another."""

    logs: dict[StageName, list[Log]]
    """By kind, "train" and perhaps "without_kl"; tokens count on from round to round."""
    breaks: tuple[float, ...]
    """Tokens at which a new round begins."""

    @classmethod
    def read(cls, folder: RunFolder, seeds: Sequence[int], rounds: int) -> Histories:
        """The logs of a run folder."""
        logs: list[Log] = [[] for _ in seeds]
        ends = [0]
        for round in range(1, rounds + 1):
            for log, seed in zip(logs, seeds, strict=True):
                log += [r | {"tokens": r["tokens"] + ends[-1]} for r in _read_log(folder, "train", round, seed)]
            ends.append(max([ends[-1], *(log[-1]["tokens"] for log in logs if log)]))
        without = [_read_log(folder, "without_kl", 1, seed) for seed in seeds]
        kinds: dict[StageName, list[Log]] = {"train": logs}
        if all(without):
            kinds["without_kl"] = without
        return cls(kinds, tuple(map(float, ends[1:-1])))

    def curve(self, kind: StageName, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The mean over the seeds of a quantity, on a grid of tokens they all reach."""
        logs = [column(log, name) for log in self.logs[kind]]
        logs = [(x, y) for x, y in logs if len(x)]
        if not logs:
            return np.zeros(0), np.zeros(0)
        first = max(x[0] for x, _ in logs)
        last = min(x[-1] for x, _ in logs)
        grid = np.linspace(first, last, max(2, min(len(x) for x, _ in logs)))
        return grid, np.mean([np.interp(grid, x, y) for x, y in logs], axis=0)

    def kl(self, kind: StageName) -> tuple[np.ndarray, np.ndarray]:
        """`curve` of the KL to the π_ref that training began with, where π_ref follows the policy too."""
        moving = any("rlhf/kl_initial" in record for log in self.logs[kind] for record in log)
        return self.curve(kind, "rlhf/kl_initial" if moving else "rlhf/kl")

    @property
    def names(self) -> set[str]:
        """Every quantity that was logged."""
        return {name for logs in self.logs.values() for log in logs for record in log for name in record}


def column(log: Log, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of a quantity, where it was logged."""
    found = [(record["tokens"], record[name]) for record in log if name in record]
    table = np.array(found, dtype=float).reshape(-1, 2)  # (n, 2)
    return table[:, 0], table[:, 1]


def _read_log(folder: RunFolder, stage: StageName, round: int, seed: int) -> Log:
    log = iterations(folder.seed(stage, round, seed))
    for record in log:
        if "monitor/ref_perplexity" in record:
            record[SURPRISE] = math.log(record["monitor/ref_perplexity"])
    return log


@dataclass(frozen=True, eq=False)
class ReportRun:
    """What a section is given."""

    folder: RunFolder
    """The run's folder."""
    name: str
    """Its name on the page, which no other run there has."""
    config: RunConfig
    """The run's settings."""
    metrics: dict[str, Any] | None
    """What `evaluate` left; None where it has not been evaluated."""
    histories: Histories
    """What its agents logged."""

    @property
    def seeds(self) -> list[int]:
        """The random seed of each of its agents."""
        return [self.config.seed + i for i in range(self.config.seeds)]

    @property
    def logged(self) -> bool:
        """Whether its agents have left anything."""
        return bool(self.histories.names)

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `evaluate` left.

        Raises:
            ValueError: it has not been evaluated.
        """
        if self.metrics is None:
            raise ValueError(
                f"expected an evaluated run in {self.folder.root}, got one without: run `rlhf-gym evaluate` first"
            )
        return self.metrics

    def final_row(self, kind: StageName = "train") -> dict[str, Any] | None:
        """The last round's summary of the policies of a kind; None where there are none or they were not evaluated."""
        rows = [row for row in self.metrics["summary"] if row["kind"] == kind] if self.metrics is not None else []
        return rows[-1] if rows else None

    def alarms(self) -> list[dict[str, Any]]:
        """The alarms of all kinds, seeds and rounds, each with its own; empty without a monitor."""
        found = []
        for round in range(1, self.config.rounds + 1):
            for kind in KINDS:
                for seed in self.seeds:
                    where = {"kind": kind, "seed": seed, "round": round}
                    found += [alarm | where for alarm in read_jsonl(self.folder.seed(kind, round, seed) / ALARMS)]
        return found


def read_run(folder: RunFolder, *, name: str | None = None) -> ReportRun:
    """A run from its folder, finished or not.

    Raises:
        ValueError: there is no run in it.
    """
    config = folder.config()
    if config is None:
        raise ValueError(
            f"expected the folder of a run, got {folder.root} without {CONFIG_FILE}: run `rlhf-gym run --run-dir "
            f"{folder.root}` first"
        )
    seeds = [config.seed + i for i in range(config.seeds)]
    metrics = folder.metrics("evaluate")
    with reading("the metrics of evaluate", folder.root):
        rounds = config.rounds if metrics is None else int(metrics["rounds"])
    return ReportRun(folder, name or folder.root.name, config, metrics, Histories.read(folder, seeds, rounds))
