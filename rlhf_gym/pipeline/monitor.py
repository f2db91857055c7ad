"""The monitor in a run: what watches each seed, and what the stage's line says of its alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_gym.monitoring import RLHFMonitor
from rlhf_gym.pipeline.preparation import Run
from rlhf_gym.preferences import Demonstration, read_texts
from rlhf_gym.runs.folder import StageName


def make_monitor(run: Run, stage: StageName, folder: Path) -> RLHFMonitor:
    """What watches a seed's run, and keeps what it saw in its folder.

    Of the run without KL penalty, which is there to go wrong, the stage's line alone tells the alarms.
    """
    config = run.config.monitor
    return RLHFMonitor(
        patterns=config.by_name,
        held_out_texts=held_out_texts(run),
        every=config.every,
        thresholds=config.thresholds,
        stop_on=() if stage == "unleashed" else config.stop_on,
        folder=folder,
        console=run.console,
        verbose=0 if stage == "unleashed" else 1,
    )


def held_out_texts(run: Run) -> list[str] | list[Demonstration]:
    """The texts that the policy should not forget; the task's held-out demonstrations where the settings name none."""
    config = run.config.monitor
    if config.held_out is not None:
        return list(read_texts(config.held_out))[: config.held_out_texts]
    return list(run.task.heldout_demonstrations[: config.held_out_texts])


def what_it_said(monitor: RLHFMonitor) -> dict[str, Any]:
    """For a seed's metrics: its alarms in brief, and the one that ended it, if one did."""
    alarms = [{"name": alarm.name, "tokens": alarm.tokens} for alarm in monitor.alarms]
    return {"alarms": alarms, "ended_by": monitor.ended_by}
