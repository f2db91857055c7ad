"""Does each controller of β hold the KL where it should? On the embedded reviews.

    python scripts/kl_control.py                          # a table, and docs/images/kl_control.png; ten minutes
    python scripts/kl_control.py --targets 6 --seeds 2    # quicker
    python scripts/kl_control.py --draw-only              # table and picture of what there is

`TokenPPO` learns from the shipped r_φ by the settings of `rlhf-gym run` (learning rate falling to 0, β = .1 at first),
as long as a run of that does. "fixed" leaves β alone; "adaptive" is Ziegler's rule with a horizon of 1,000 responses
(that of its paper, 10,000, moves β by no more than a tenth in so short a run); "constraint" is `ConstraintKL`. The
table has the mean KL per response over the second half of each run, its distance from δ, that of single rollouts, and
the highest of the whole run (means over the seeds; a few responses far off carry a rollout's mean). Every run is kept
in `--results`; a measurement that was interrupted goes on.

Left out: other learning rates, other first β, other tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from study import COLOURS, IMAGES, SOFT, kept, markdown_table, picture, spread

import rlhf_gym  # noqa: F401  (registers the environments)
from rlhf_gym.agents import AdaptiveKL, ConstraintKL, FixedKL, KLController, TokenPPO
from rlhf_gym.lm import quiet_transformers
from rlhf_gym.settings import PPOSettings

FIRST = PPOSettings().kl_coef
CONTROLLERS: dict[str, Callable[[float], KLController]] = {
    "fixed": lambda target: FixedKL(FIRST),
    "adaptive": lambda target: AdaptiveKL(FIRST, target, horizon=1_000),
    "constraint": lambda target: ConstraintKL(FIRST, target),
}
TARGETS = (3.0, 6.0, 9.0)


class Log(NamedTuple):
    """One run, an entry a rollout: tokens generated up to its end, mean KL per response in nats, β, mean score."""

    tokens: np.ndarray
    kl: np.ndarray
    kl_coef: np.ndarray
    score: np.ndarray

    @property
    def second_half(self) -> np.ndarray:
        """KL of the second half of the run."""
        return self.kl[len(self.kl) // 2 :]


class Rows(KVWriter):
    """A log that keeps the figures of each rollout."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float, float]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep one rollout."""
        names = ("rlhf/kl", "rlhf/kl_coef", "rlhf/score")
        self.rows.append((step, *(float(key_values[name]) for name in names)))  # type: ignore[arg-type]

    def close(self) -> None:
        """Do nothing: nothing is open."""


def learn(controller: KLController, seed: int, tokens: int) -> dict[str, Any]:
    """Train an agent once."""
    config = PPOSettings()
    log = Rows()
    env = gym.make_vec("rlhf_gym/Reviews-v0", num_envs=config.num_envs, reward_timing="deferred", kl_coef=FIRST)
    agent = TokenPPO(
        "LMPolicy",
        env,  # type: ignore[arg-type]
        learning_rate=LinearSchedule(config.learning_rate, 0.0, 1.0),
        n_episodes=config.n_episodes,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        kl_controller=controller,
        seed=seed,
        device="cpu",
    )
    agent.set_logger(Logger(folder=None, output_formats=[log]))
    agent.learn(tokens)
    return dict(zip(Log._fields, map(list, zip(*log.rows, strict=True)), strict=True))


def measure(options: argparse.Namespace, name: str, target: float) -> list[Log]:
    """A controller's runs, one a seed; those of "fixed", which no target moves, are the same for all."""
    found = []
    for seed in range(options.seeds):
        told = "any" if name == "fixed" else f"{target:g}"
        label = f"{name}-{told}-{seed}"
        path = options.results / f"{label}-{options.tokens}.json"
        if options.draw_only and not path.is_file():
            continue
        if not path.is_file():
            print(label, flush=True)
        figures = kept(path, lambda seed=seed: learn(CONTROLLERS[name](target), seed, options.tokens))  # type: ignore[misc]
        found.append(Log(**{key: np.array(values) for key, values in figures.items()}))
    return found


def table(runs: dict[tuple[str, float], list[Log]]) -> str:
    """A row for each controller and target."""
    header = ["controller", "δ", "mean KL, second half", "its distance from δ", "within 10 %", "a rollout's distance"]
    rows = []
    for (name, target), logs in runs.items():
        if not logs:
            continue
        means = [float(log.second_half.mean()) for log in logs]
        off = [abs(mean / target - 1) for mean in means]
        single = np.mean([np.abs(log.second_half / target - 1).mean() for log in logs])
        highest = np.mean([log.kl.max() for log in logs])
        beta = np.exp(np.mean([np.log(log.kl_coef[-1]) for log in logs]))
        close = f"{sum(distance <= 0.1 for distance in off)} of {len(logs)}"
        cells = [name, f"{target:g}", spread(means), f"{np.mean(off):.1%}", close, f"{single:.0%}"]
        rows.append([*cells, f"{highest:.1f}", f"{beta:.3f}"])
    return markdown_table([*header, "highest rollout", "last β"], rows)


def draw_figure(runs: dict[tuple[str, float], list[Log]], path: Path) -> None:
    """KL over tokens, a panel for each controller; the targets dashed."""
    names = list(dict.fromkeys(name for name, _ in runs))
    targets = sorted({target for _, target in runs})
    with picture(path, 1, len(names), (3 * len(names), 3), sharey=True) as axes:
        for axis, name in zip(axes[0], names, strict=True):
            for target, colour in zip(targets, COLOURS, strict=False):
                axis.axhline(target, color=colour, linestyle="--", linewidth=1)
                for log in runs[name, target]:
                    line = SOFT if name == "fixed" else colour
                    axis.plot(log.tokens / 1000, log.kl, color=line, linewidth=0.9, alpha=0.7)
            axis.set(title=name, xlabel="thousand tokens", ylim=(0, 1.6 * max(targets)))
        axes[0, 0].set_ylabel("KL per response, nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = list(CONTROLLERS)
    parser.add_argument("--controllers", nargs="+", choices=every, default=every, help=", ".join(every))
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS), help="δ, nats per response")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=PPOSettings().total_tokens)
    parser.add_argument("--results", type=Path, default=Path("runs/kl_control"))
    parser.add_argument("--picture", type=Path, default=IMAGES / "kl_control.png")
    parser.add_argument("--draw-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.seeds < 1 or not all(target > 0 for target in options.targets) or len(options.targets) > len(COLOURS):
        parser.error(f"expected --seeds >= 1 and at most {len(COLOURS)} --targets > 0")
    names = [name for name in CONTROLLERS if name in options.controllers]
    torch.set_num_threads(1)
    with quiet_transformers():
        runs = {(name, target): measure(options, name, target) for name in names for target in options.targets}
    print(table(runs))
    draw_figure(runs, options.picture)


if __name__ == "__main__":
    main()
