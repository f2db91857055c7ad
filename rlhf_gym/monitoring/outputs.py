"""Where a learner's figures go besides a run's own files: TensorBoard, CSV, Weights & Biases, each as SB3 writes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, make_output_format

from rlhf_gym.extras import needs
from rlhf_gym.settings import LogFormat


class WandbOutput(KVWriter):
    """Weights & Biases as an output of SB3's logger; each line is logged at its number of tokens.

    Project, entity and mode are those of W&B's own variables, such as WANDB_PROJECT and WANDB_MODE=offline.

        agent.set_logger(Logger("logs", [WandbOutput("logs", name="ppo")]))

    Args:
        folder: where W&B keeps its files.
        name: the name shown; W&B's own choice by default.
        group: what it is shown together with, such as the other seeds of a run.
    """

    def __init__(self, folder: str | Path, *, name: str | None = None, group: str | None = None) -> None:
        check_loggers(("wandb",))
        import wandb  # an extra

        self._run = wandb.init(dir=str(folder), name=name, group=group)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log the line's numbers."""
        figures = {
            name: float(value)
            for name, value in key_values.items()
            if isinstance(value, int | float | np.number) and "wandb" not in (key_excluded[name] or ())
        }
        self._run.log(figures, step=step)

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()


def check_loggers(names: Sequence[LogFormat]) -> None:
    """The packages that these outputs need are installed.

    Raises:
        ImportError: one is not.
    """
    for name in names:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise ImportError(needs(f"logger {name}", name, name))


def logger_outputs(
    names: Sequence[LogFormat],
    folder: str | Path,
    *,
    name: str | None = None,
    group: str | None = None,
    before: Sequence[dict[str, Any]] = (),
) -> list[KVWriter]:
    """Outputs for SB3's `Logger`, which write into `folder`: TensorBoard's events, progress.csv, W&B's files.

    Args:
        names: "tensorboard", "csv", "wandb".
        folder: made if it is not there.
        name, group: what W&B calls the run, and what it belongs to.
        before: lines that were logged before an interruption, for the CSV, which begins anew each time.
    """
    check_loggers(names)
    outputs: list[KVWriter] = []
    for kind in names:
        if kind == "wandb":
            outputs.append(WandbOutput(folder, name=name, group=group))
            continue
        output = make_output_format(kind, str(folder))
        if kind == "csv":
            for line in before:
                output.write(line, dict.fromkeys(line, ()))
        outputs.append(output)
    return outputs
