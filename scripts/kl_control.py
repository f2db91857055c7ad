"""Does each controller of β hold the KL where it should? On the embedded reviews.

    python scripts/kl_control.py                          # a table, and docs/kl_control.png; ten minutes
    python scripts/kl_control.py --targets 6 --seeds 2    # quicker
    python scripts/kl_control.py --draw-only              # table and picture of what there is

`TokenPPO` learns from the shipped r_φ by the settings of `rlhf-gym run` (learning rate falling to 0, β = .1 at first),
as long as a run of that does. "fixed" leaves β alone; "adaptive" is Ziegler's rule with a horizon of 1,000 responses
(that of its paper, 10,000, moves β by no more than a tenth in so short a run); "constraint" is `ConstraintKL`. Told is
the mean KL per response over the second half of each run, how far it is from δ, how far single rollouts are, and the
highest of the whole run (means over the seeds; rollouts have bursts: a few responses far off carry the mean). Every
run is kept in `--results`; a measurement that was interrupted goes on.

Left out: other learning rates, other first β, other tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib
import numpy as np
import torch
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from study import kept, mean_and_error

import rlhf_gym  # noqa: F401  (registers the environments)
from rlhf_gym.agents import AdaptiveKL, ConstraintKL, FixedKL, KLController, TokenPPO
from rlhf_gym.lm import quiet_transformers
from rlhf_gym.settings import PPOSettings

ROOT = Path(__file__).resolve().parent.parent
FIRST = PPOSettings().kl_coef
CONTROLLERS: dict[str, Callable[[float], KLController]] = {
    "fixed": lambda target: FixedKL(FIRST),
    "adaptive": lambda target: AdaptiveKL(FIRST, target, horizon=1_000),
    "constraint": lambda target: ConstraintKL(FIRST, target),
}
TARGETS = (3.0, 6.0, 9.0)
INK, SOFT, HAIR = "#1c1d20", "#5f646c", "#e5e4df"
COLOURS = ("#1f56a5", "#4a7a55", "#bf4a14", "#6d5bd0")


class Way(NamedTuple):
    """One run, an entry a rollout."""

    tokens: np.ndarray
    """Generated up to its end."""
    kl: np.ndarray
    """Mean KL per response, nats."""
    kl_coef: np.ndarray
    """β."""
    score: np.ndarray
    """Mean score of r_φ."""


class _Rows(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float, float]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One rollout."""
        names = ("rlhf/kl", "rlhf/kl_coef", "rlhf/score")
        self.rows.append((step, *(float(key_values[name]) for name in names)))  # type: ignore[arg-type]

    def close(self) -> None:
        """Nothing is open."""


def learn(controller: KLController, seed: int, tokens: int) -> dict[str, Any]:
    """One run."""
    config, log = PPOSettings(), _Rows()
    env = gym.make_vec(
        "rlhf_gym/Reviews-v0", num_envs=config.num_envs, reward_timing="deferred", kl_coef=config.kl_coef
    )
    agent = TokenPPO(
        "LMPolicy",
        env,  # type: ignore[arg-type]
        learning_rate=LinearSchedule(config.learning_rate, 0.0, 1.0),
        n_episodes=config.n_episodes,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        kl_controller=controller,
        seed=seed,
        device="cpu",
    )
    agent.set_logger(Logger(folder=None, output_formats=[log]))
    agent.learn(tokens)
    return dict(zip(Way._fields, map(list, zip(*log.rows, strict=True)), strict=True))


def measure(options: argparse.Namespace, name: str, target: float) -> list[Way]:
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
        found.append(Way(**{key: np.array(values) for key, values in figures.items()}))
    return found


def held(way: Way, target: float) -> float:
    """Mean KL of the second half of a run, over the target."""
    return float(way.kl[len(way.kl) // 2 :].mean() / target)


def table(runs: dict[tuple[str, float], list[Way]]) -> str:
    """Markdown: a row for each controller and target."""
    lines = [
        "| controller | δ | mean KL, second half | its distance from δ | within 10 % | a rollout's distance "
        "| highest rollout | last β |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, target), ways in runs.items():
        if not ways:
            continue
        ratios = [held(way, target) for way in ways]
        mean, error = mean_and_error([ratio * target for ratio in ratios])
        off = float(np.mean([abs(ratio - 1) for ratio in ratios]))
        single = float(np.mean([np.abs(way.kl[len(way.kl) // 2 :] / target - 1).mean() for way in ways]))
        highest = float(np.mean([way.kl.max() for way in ways]))
        close = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
        beta = float(np.exp(np.mean([np.log(way.kl_coef[-1]) for way in ways])))
        lines.append(
            f"| {name} | {target:g} | {mean:.2f} ± {error:.2f} | {off:.1%} | {close} of {len(ways)} | {single:.0%} | "
            f"{highest:.1f} | "
            f"{beta:.3f} |"
        )
    return "\n".join(lines)


def picture(runs: dict[tuple[str, float], list[Way]], path: Path) -> None:
    """KL over tokens, a panel for each controller; the targets dashed."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {
        "font.size": 10, "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": HAIR, "xtick.color": SOFT,
        "ytick.color": SOFT, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": HAIR, "axes.titlesize": 11, "axes.titlelocation": "left",
    }  # fmt: skip
    with plt.rc_context(style):
        names, targets = list(dict.fromkeys(name for name, _ in runs)), sorted({target for _, target in runs})
        figure, panels = plt.subplots(1, len(names), figsize=(3 * len(names), 3), sharey=True, layout="constrained")
        axes = np.atleast_1d(panels)
        for axis, name in zip(axes, names, strict=True):
            for target, colour in zip(targets, COLOURS, strict=False):
                axis.axhline(target, color=colour, linestyle="--", linewidth=1)
                for way in runs[name, target]:
                    grey = name == "fixed"
                    axis.plot(way.tokens / 1000, way.kl, color=SOFT if grey else colour, linewidth=0.9, alpha=0.7)
            axis.set(title=name, xlabel="thousand tokens", ylim=(0, 1.6 * max(targets)))
        axes[0].set_ylabel("KL per response, nats")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--controllers", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS), metavar="NAME",
        help=", ".join(f'"{name}"' for name in CONTROLLERS),
    )  # fmt: skip
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS), help="δ, nats per response")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=PPOSettings().total_tokens)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "kl_control")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "kl_control.png")
    parser.add_argument("--draw-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.seeds < 1 or not all(target > 0 for target in options.targets) or len(options.targets) > len(COLOURS):
        parser.error(f"expected --seeds >= 1 and at most {len(COLOURS)} --targets > 0")
    names = [name for name in CONTROLLERS if name in options.controllers]
    torch.set_num_threads(1)
    with quiet_transformers():
        runs = {(name, target): measure(options, name, target) for name in names for target in options.targets}
    print(table(runs))
    picture(runs, options.picture)
    print(f"drawn: {options.picture}")


if __name__ == "__main__":
    main()
