"""Does each controller of β hold the KL where it should? On the embedded reviews.

    python scripts/kl_control.py                          # a table, and docs/images/kl_control.png; ten minutes
    python scripts/kl_control.py --targets 6 --seeds 2    # quicker

`TokenPPO` learns from the shipped r_φ by the settings of `rlhf-gym run` (learning rate falling to 0, β = .1 at first),
as long as a run of that does. "fixed" leaves β alone; "adaptive" is Ziegler's rule with a horizon of 1,000 responses
(that of its paper, 10,000, moves β by no more than a tenth in so short a run); "constraint" is `ConstraintKL`. The
table has the mean KL per response over the second half of each run, its distance from δ, that of single rollouts, and
the highest of the whole run (means over the seeds; a few responses far off carry a rollout's mean). Every run is kept
in `--results`; a measurement that was interrupted goes on.

Left out: other learning rates, other first β, other tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from study import COLOURS, IMAGES, SOFT, command, kept, markdown_table, picture, spread

import rlhf_gym  # noqa: F401  (registers the environments)
from rlhf_gym.agents import AdaptiveKL, ConstraintKL, FixedKL, KLController, TokenPPO
from rlhf_gym.lm import quiet_transformers
from rlhf_gym.settings import PPOSettings

CONFIG = PPOSettings()
FIRST = CONFIG.kl_coef
CONTROLLERS: dict[str, Callable[[float], KLController]] = {
    "fixed": lambda target: FixedKL(FIRST),
    "adaptive": lambda target: AdaptiveKL(FIRST, target, horizon=1_000),
    "constraint": lambda target: ConstraintKL(FIRST, target),
}


class Log(NamedTuple):
    """One run, an entry a rollout: tokens generated up to its end, mean KL per response in nats, β."""

    tokens: np.ndarray
    kl: np.ndarray
    kl_coef: np.ndarray

    @property
    def second_half(self) -> np.ndarray:
        """KL of the second half of the run."""
        return self.kl[len(self.kl) // 2 :]


Runs = dict[tuple[str, float], list[Log]]  # by controller and target, one a seed


class Rows(KVWriter):
    """A log that keeps the figures of each rollout."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep one rollout."""
        self.rows.append((step, float(key_values["rlhf/kl"]), float(key_values["rlhf/kl_coef"])))

    def close(self) -> None:
        """Do nothing: nothing is open."""


def learn(controller: KLController, seed: int, tokens: int) -> dict[str, Any]:
    """Train an agent once."""
    log = Rows()
    agent = TokenPPO(
        "LMPolicy",
        gym.make_vec("rlhf_gym/Reviews-v0", num_envs=CONFIG.num_envs, reward_timing="deferred", kl_coef=FIRST),  # type: ignore[arg-type]
        learning_rate=LinearSchedule(CONFIG.learning_rate, 0.0, 1.0),
        n_episodes=CONFIG.n_episodes,
        batch_size=CONFIG.batch_size,
        n_epochs=CONFIG.n_epochs,
        kl_controller=controller,
        seed=seed,
        device="cpu",
    )
    agent.set_logger(Logger(folder=None, output_formats=[log]))
    with quiet_transformers():
        agent.learn(tokens)
    return dict(zip(Log._fields, map(list, zip(*log.rows, strict=True)), strict=True))


def table(runs: Runs) -> str:
    """A row for each controller and target."""
    header = ["controller", "δ", "mean KL, second half", "its distance from δ", "within 10 %", "a rollout's distance"]
    rows = []
    for (name, target), logs in runs.items():
        means = [float(log.second_half.mean()) for log in logs]
        off = [abs(mean / target - 1) for mean in means]
        single = np.mean([np.abs(log.second_half / target - 1).mean() for log in logs])
        highest = np.mean([log.kl.max() for log in logs])
        beta = np.exp(np.mean([np.log(log.kl_coef[-1]) for log in logs]))
        close = f"{sum(distance <= 0.1 for distance in off)} of {len(logs)}"
        cells = [name, f"{target:g}", spread(means), f"{np.mean(off):.1%}", close, f"{single:.0%}"]
        rows.append([*cells, f"{highest:.1f}", f"{beta:.3f}"])
    return markdown_table([*header, "highest rollout", "last β"], rows)


def draw_figure(runs: Runs, path: Path) -> None:
    """KL over tokens, a panel for each controller; the targets dashed."""
    names = list(dict.fromkeys(name for name, _ in runs))
    colours = dict(zip(dict.fromkeys(target for _, target in runs), COLOURS, strict=False))
    with picture(path, 1, len(names), (3 * len(names), 3), sharey=True) as axes:
        for (name, target), logs in runs.items():
            axis = axes[0, names.index(name)]
            axis.axhline(target, color=colours[target], linestyle="--", linewidth=1)
            for log in logs:
                line = SOFT if name == "fixed" else colours[target]
                axis.plot(log.tokens / 1000, log.kl, color=line, linewidth=0.9, alpha=0.7)
            axis.set(title=name, xlabel="thousand tokens", ylim=(0, 1.6 * max(colours)))
        axes[0, 0].set_ylabel("KL per response, nats")


def main() -> None:
    names = tuple(CONTROLLERS)
    a = command(
        __doc__,
        controllers=(names, ", ".join(names), names),
        targets=((3.0, 6.0, 9.0), f"δ, nats per response; at most {len(COLOURS)}"),
        seeds=(5, "of each controller and target"),
        tokens=(CONFIG.total_tokens, "of each run"),
        results=(Path("runs/kl_control"), "folder of the runs, gone on with if it is there"),
        output=(IMAGES / "kl_control.png", "the picture"),
    )
    runs: Runs = {(name, target): [] for name in a.controllers for target in a.targets}
    for (name, target), logs in runs.items():
        for seed in range(a.seeds):
            told = "any" if name == "fixed" else f"{target:g}"  # no target moves it
            path = a.results / f"{name}-{told}-{seed}-{a.tokens}.json"
            figures = kept(path, lambda: learn(CONTROLLERS[name](target), seed, a.tokens))  # noqa: B023
            logs.append(Log(*(np.array(figures[field]) for field in Log._fields)))
    print(table(runs))
    draw_figure(runs, a.output)


if __name__ == "__main__":
    main()
