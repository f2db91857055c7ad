"""python scripts/studies/kl_control.py: does each controller of β hold the KL where it should? On the embedded reviews.

PPO learns from the shipped r_φ by the settings of `rlhf-gym run` (learning rate falling to 0, β = .1 at first), as long
as a run of that does. "fixed" leaves β alone; "adaptive" is Ziegler's rule with a horizon of 1,000 responses (that of
its paper, 10,000, moves β by no more than a tenth in so short a run); "constraint" is `ConstraintKL`. The table has the
mean KL per response over the second half of each run, its distance from δ, that of single rollouts, and the highest of
the whole run (means over the seeds; a few responses far off carry a rollout's mean). Prints it and draws
docs/images/kl_control.png; ten minutes on one core. A measurement that was interrupted goes on.

Left out: other learning rates, other first β, other tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import study

from rlhf_gym.runs import iterations
from rlhf_gym.settings import KLControl, PPOSettings, RewardConfig, TaskConfig

TOKENS = PPOSettings().total_tokens
TARGETS = (3.0, 6.0, 9.0)  # δ, nats per response
Runs = dict[tuple[str, float], list[dict[str, np.ndarray]]]  # by controller and target, one a seed, see `learn`


def learn(root: Path, control: Any, target: float, seed: int) -> dict[str, list[float]]:
    """Train an agent once: tokens generated, mean KL per response in nats and β, an entry a rollout."""
    task = study.task_from_sft()
    agent = PPOSettings(kl_control=control, kl_target=target, kl_horizon=1_000)
    shipped = TaskConfig(reward_model=str(task.reward_model))
    config = study.run_config(root, seed, task=shipped, reward=RewardConfig(), agent=agent, without_kl=False)
    log = iterations(study.quiet_run(config, task, "reward", "train").seed("train", 1, seed))
    columns = {"tokens": "tokens", "kl": "rlhf/kl", "kl_coef": "rlhf/kl_coef"}
    return {name: [float(record[column]) for record in log] for name, column in columns.items()}


def table(runs: Runs) -> str:
    """A row for each controller and target."""
    header = ["controller", "δ", "mean KL, second half", "its distance from δ", "within 10 %", "a rollout's distance"]
    rows = []
    for (name, target), logs in runs.items():
        halves = [log["kl"][len(log["kl"]) // 2 :] for log in logs]
        means = [float(half.mean()) for half in halves]
        off = [abs(mean / target - 1) for mean in means]
        single = np.mean([np.abs(half / target - 1).mean() for half in halves])
        highest = np.mean([log["kl"].max() for log in logs])
        beta = np.exp(np.mean([np.log(log["kl_coef"][-1]) for log in logs]))
        close = f"{sum(distance <= 0.1 for distance in off)} of {len(logs)}"
        cells = [name, f"{target:g}", study.spread(means), f"{np.mean(off):.1%}", close, f"{single:.0%}"]
        rows.append([*cells, f"{highest:.1f}", f"{beta:.3f}"])
    return study.markdown_table([*header, "highest rollout", "last β"], rows)


def draw_figure(runs: Runs, path: Path) -> None:
    """KL over tokens, a panel for each controller; the targets dashed."""
    names = list(dict.fromkeys(name for name, _ in runs))
    with study.picture(path, 1, len(names), (3 * len(names), 3), sharey=True) as axes:
        for (name, target), logs in runs.items():
            axis = axes[0, names.index(name)]
            colour = study.COLOURS[TARGETS.index(target)]
            axis.axhline(target, color=colour, linestyle="--", linewidth=1)
            for log in logs:
                line = study.SOFT if name == "fixed" else colour
                axis.plot(log["tokens"] / 1000, log["kl"], color=line, linewidth=0.9, alpha=0.7)
            axis.set(title=name, xlabel="thousand tokens", ylim=(0, 1.6 * max(TARGETS)))
        axes[0, 0].set_ylabel("KL per response, nats")


def main(
    controllers: tuple[KLControl, ...] = get_args(KLControl),
    seeds: int = 5,
    run_dir: Path = Path("runs/kl_control"),
    output: Path = study.IMAGES / "kl_control.png",
) -> None:
    """Measure these controllers, with so many seeds of each and each target."""
    runs: Runs = {(name, target): [] for name in controllers for target in TARGETS}
    for (name, target), logs in runs.items():
        for seed in range(seeds):
            root = run_dir / f"{name}-{'any' if name == 'fixed' else f'{target:g}'}-{seed}"  # no target moves "fixed"
            figures = study.kept(root.with_suffix(".json"), lambda: learn(root, name, target, seed))  # noqa: B023
            logs.append({column: np.array(values) for column, values in figures.items()})
    print(table(runs))
    draw_figure(runs, output)


if __name__ == "__main__":
    study.run_script(main)
