"""What the studies of this folder share; nothing here is run by itself.

    from study import kept, quiet_run, run_config, task_from_sft

Their command lines, settings and seeds, runs that say nothing, figures kept in files so that an interrupted study goes
on, means with standard errors, a run's path through KL, tables, pictures in one style. It leaves out everything about a
single figure.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from rlhf_gym.pipeline import Run, prepare, run
from rlhf_gym.preferences import Preference
from rlhf_gym.report import smooth
from rlhf_gym.rewards import RewardModel
from rlhf_gym.runs import RunFolder, iterations
from rlhf_gym.settings import CollectConfig, EvaluateConfig, PPOSettings, RewardConfig, RunConfig, StageName
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.training import RewardModelingConfig, train_reward_model

DOCS = Path(__file__).resolve().parents[2] / "docs"
IMAGES = DOCS / "images"
INK = "#1c1d20"
SOFT = "#5f646c"
HAIR = "#e5e4df"
COLOURS = ("#1f56a5", "#bf4a14", "#4a7a55", "#7e3cbe", "#a07a2c", "#c2428b")
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": HAIR,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": HAIR,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": SOFT,
}
REWARD_TRAINING = RewardModelingConfig(
    epochs=3, learning_rate=1e-3, batch_size=32, save_steps=0, evaluate_each_epoch=False, use_cpu=True
)


def run_script(main: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Run a script's `main` on one thread, its arguments as options; the script's text is the help.

    Args:
        main: the function.
        arguments: those of the command line, by default the process's own.
    """
    torch.set_num_threads(1)
    tyro.cli(main, args=arguments, description=sys.modules[main.__module__].__doc__)


def task_from_sft() -> Task:
    """The embedded task with its shipped SFT policy, so that a run trains none."""
    task = reviews_task()
    return replace(task, pretrained=task.sft, demonstrations=(), heldout_demonstrations=())


def run_config(run_dir: Path, seed: int, *, labels: int = 2_000, tokens: int = 24_000, **changes: Any) -> RunConfig:
    """A run small enough that its policy exploits r_φ within a minute on one core.

    Two pairs of SFT responses to each of `labels`/2 prompts, a reward model of three epochs on them, and PPO by its
    defaults for `tokens` tokens. `changes` replace whole settings: `run_config(d, 0, agent=PPOSettings(…))`.
    """
    config = RunConfig(
        run_dir=run_dir,
        seed=seed,
        seeds=1,
        device="cpu",
        threads=1,
        evaluate=EvaluateConfig(shown=0),
        collect=CollectConfig(num_prompts=-(-labels // 2), samples_per_prompt=4, temperatures=(1.0,)),
        reward=RewardConfig(training=REWARD_TRAINING),
        agent=PPOSettings(total_tokens=tokens),
    )
    return replace(config, **changes)


def quiet_run(config: RunConfig, task: Task, *stages: Any) -> RunFolder:
    """A whole run or these stages of it, without a word; what is there already is not made again."""
    for stage in stages or (None,):
        run(config, task=task, only=stage, console=_silent())
    return RunFolder(config.run_dir)


def quiet_prepare(config: RunConfig, task: Task) -> Run:
    """A run that has been checked and prints nothing."""
    return prepare(config, task=task, console=_silent())


def _silent() -> Console:
    return Console(file=io.StringIO())


def measured(folder: RunFolder, stage: StageName = "evaluate") -> dict[str, Any]:
    """What a stage of a complete run measured."""
    metrics = folder.metrics(stage)
    if metrics is None:
        raise ValueError(f"expected a complete run in {folder.root}, got one without {stage}")
    return metrics


def train_r_phi(
    policy: Any,
    task: Task,
    preferences: Sequence[Preference],
    seed: int,
    *,
    training: RewardModelingConfig = REWARD_TRAINING,
    head_alone: bool = False,
) -> RewardModel:
    """A reward model on the trunk of `policy`, a model or its folder, trained on these preferences; or its head is."""
    reward = RewardModel.from_language_model(policy, task.tokenizer, dtype=torch.float32, seed=seed)
    reward.trunk.requires_grad_(not head_alone)
    config = replace(training, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train_reward_model(reward, preferences, heldout=preferences[:2], config=config, output_dir=folder)
    return reward


def share_ordered_right(proxy: np.ndarray, gold: np.ndarray) -> float:
    """How often r_φ orders two neighbouring responses as gold does, both (…, N); gold's ties are left out."""
    even = gold.shape[-1] // 2 * 2
    by_proxy, by_gold = (values[..., 1:even:2] - values[..., 0:even:2] for values in (proxy, gold))  # (…, N/2)
    return float((0.5 * (1 + np.sign(by_proxy * by_gold)))[by_gold != 0].mean())


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures in a JSON file; where there is none, `make()` is called and its result kept there."""
    if not path.is_file():
        text = json.dumps(make(), indent=2) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        os.replace(partial, path)
    return json.loads(path.read_text(encoding="utf-8"))


class Point(NamedTuple):
    """A smoothed point of a trajectory: tokens learned from, KL in nats a response, mean gold, mean score of r_φ."""

    tokens: float
    kl: float
    gold: float
    proxy: float


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What one run of an agent logged, an entry an iteration, all of shape (iterations,)."""

    tokens: np.ndarray
    """Tokens that the policy had learned from before it wrote the iteration's responses."""
    kl: np.ndarray
    """KL(π‖π_SFT) of a response in nats, estimated from these responses."""
    gold: np.ndarray
    """Mean gold of these responses."""
    proxy: np.ndarray
    """Mean score of r_φ of these responses, shaped and before any KL penalty."""

    def smoothed(self, window: int = 5) -> Trajectory:
        """Running means of KL, gold and proxy over this many iterations."""
        return Trajectory(self.tokens, smooth(self.kl, window), smooth(self.gold, window), smooth(self.proxy, window))

    def at(self, kl: float, window: int = 5) -> Point:
        """The point at which the smoothed KL first reached `kl`, interpolated; NaN where it never did."""
        path = self.smoothed(window)
        reached = np.flatnonzero(path.kl >= kl)
        if not len(reached):
            return Point(math.nan, kl, math.nan, math.nan)
        i = int(reached[0])
        before = max(i - 1, 0)
        apart = path.kl[i] - path.kl[before]
        share = (kl - path.kl[before]) / apart if apart > 0 else 1.0
        tokens, gold, proxy = (
            float(v[before] + share * (v[i] - v[before])) for v in (path.tokens, path.gold, path.proxy)
        )
        return Point(tokens, kl, gold, proxy)

    def best(self, window: int = 5) -> Point:
        """The point at which the smoothed gold was highest."""
        path = self.smoothed(window)
        i = int(path.gold.argmax())
        return Point(float(path.tokens[i]), float(path.kl[i]), float(path.gold[i]), float(path.proxy[i]))

    def last(self, window: int = 5) -> Point:
        """The means over the last iterations."""
        ends = (float(v[-window:].mean()) for v in (self.kl, self.gold, self.proxy))
        return Point(float(self.tokens[-1]), *ends)


def trajectory_of(log: Sequence[dict[str, Any]]) -> Trajectory:
    """The trajectory of a log of iterations; those without a measurement of gold are left out.

    Raises:
        ValueError: no iteration has gold.
    """
    found = [
        (tokens, record.get("rlhf/kl_initial", record["rlhf/kl"]), record["rlhf/gold"], record["rlhf/score"])
        for tokens, record in zip(tokens_before(log), log, strict=True)
        if "rlhf/gold" in record
    ]
    if not found:
        raise ValueError(f"expected iterations with gold, got {len(log)} iterations without")
    return Trajectory(*np.array(found, dtype=np.float64).T)


def tokens_before(log: Sequence[dict[str, Any]]) -> list[int]:
    """The tokens learned from before each iteration's responses were written: it is logged after its update."""
    return [0, *(record["tokens"] for record in log)][: len(log)]


def read_trajectory(folder: RunFolder, stage: Any, seed: int) -> Trajectory:
    """The trajectory of one seed's agent in the first round of a run."""
    return trajectory_of(iterations(folder.seed(stage, 1, seed)))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the error of a single value is NaN."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), deviation / math.sqrt(len(values))


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard error in this format, with real minus signs; the mean alone of a single value."""
    mean, error = mean_and_error(values)
    return minus(format(mean, form) if math.isnan(error) else f"{mean:{form}} ± {error:{form.removeprefix('+')}}")


def minus(text: str) -> str:
    """The text with real minus signs before numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a header that ends in ":" belongs to a column of numbers."""
    head = [name.removesuffix(":") for name in header]
    line = ["---:" if name.endswith(":") else "---" for name in header]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, line, *rows))


def put_into_page(path: Path, name: str, script: str, text: str) -> None:
    """Put text between a page's marks of this name, leaving what is written around them.

    Raises:
        ValueError: the page has no such marks.
    """
    begin = f"<!-- {name}: scripts/{script} -->"
    end = f"<!-- end of {name} -->"
    page = path.read_text(encoding="utf-8")
    if begin not in page or end not in page:
        raise ValueError(f"expected {begin} and {end} in {path}, got a page without")
    head, rest = page.split(begin, 1)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


@contextmanager
def picture(path: Path, rows: int, columns: int, size: tuple[float, float], **shared: Any) -> Iterator[np.ndarray]:
    """Axes (rows, columns) in the studies' style, to be drawn on; the picture is written when the block ends."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        yield figure.subplots(rows, columns, squeeze=False, **shared)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    print(f"wrote {path}")
