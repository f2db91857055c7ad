"""What the studies of over-optimisation share: their common ground, means with errors, and a run's way through KL."""

from studies.ground import kept, mean_and_error, quiet_run, spread, study_config, task_from_sft
from studies.trajectory import Point, Trajectory, read_trajectory

__all__ = [
    "Point",
    "Trajectory",
    "kept",
    "mean_and_error",
    "quiet_run",
    "read_trajectory",
    "spread",
    "study_config",
    "task_from_sft",
]
