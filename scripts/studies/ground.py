"""The common ground of the studies: one task, one set of settings to depart from, quiet runs whose figures are kept."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlhf_gym.pipeline import run
from rlhf_gym.runs import CollectConfig, EvaluateConfig, PPOConfig, RewardConfig, RunConfig, RunFolder
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.training import RewardModelingConfig
from rlhf_gym.training.folder import write_json

LABELS, TOKENS = 2_000, 24_000


def task_from_sft() -> Task:
    """The embedded task, its shipped SFT policy taken as it is."""
    task = reviews_task()
    return replace(task, pretrained=task.sft, demonstrations=(), heldout_demonstrations=())


def study_config(run_dir: Path, seed: int, *, labels: int = LABELS, tokens: int = TOKENS, **changes: Any) -> RunConfig:
    """A run small enough that a reward model can be hacked within a minute on one core, one seed of everything.

    Two pairs of SFT responses to each of `labels`/2 prompts, a reward model of three epochs on them, PPO by its
    defaults for `tokens` tokens. `changes` replace whole settings: `study_config(d, 0, ppo=PPOConfig(…))`.
    """
    config = RunConfig(
        run_dir=run_dir, seed=seed, seeds=1, device="cpu", threads=1, evaluate=EvaluateConfig(shown=0),
        collect=CollectConfig(num_prompts=-(-labels // 2), samples_per_prompt=4, temperatures=(1.0,)),
        reward=RewardConfig(
            training=RewardModelingConfig(epochs=3, learning_rate=1e-3, batch_size=32, evaluate_each_epoch=False)
        ),
        ppo=PPOConfig(total_tokens=tokens),
    )  # fmt: skip
    return replace(config, **changes)


def quiet_run(config: RunConfig, task: Task) -> RunFolder:
    """A whole run, or the rest of it, saying nothing; its folder."""
    run(config, task=task, console=Console(file=io.StringIO()))
    return RunFolder(config.run_dir)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the JSON file holds; without one, what `make()` returns, which is then kept there.

    So an interrupted study goes on with the first figures that are missing.
    """
    if not path.is_file():
        figures = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, figures)
    return json.loads(path.read_text())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the latter NaN of a single value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), deviation / math.sqrt(len(values))


def spread(values: Sequence[float], *, percent: bool = False) -> str:
    """Mean ± standard error, for a table."""
    mean, error = mean_and_error(values)
    return f"{mean:.1%} ± {error:.1%}" if percent else f"{mean:.2f} ± {error:.2f}"
