"""A run as the report reads it: from its folder alone, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_gym.report.figures import Histories
from rlhf_gym.runs.folder import CONFIG_FILE, RunFolder
from rlhf_gym.settings import RunConfig


@dataclass(frozen=True, eq=False)
class ReportRun:
    """What a section is given."""

    folder: RunFolder
    """Where everything lies."""
    name: str
    """What it is called on the page, where no other run has that name."""
    config: RunConfig
    """Its settings."""
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
        return any(log for logs in self.histories.logs.values() for log in logs)

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
    rounds = config.rounds if metrics is None else metrics["rounds"]
    return ReportRun(folder, name or folder.root.name, config, metrics, Histories.read(folder, seeds, rounds))
