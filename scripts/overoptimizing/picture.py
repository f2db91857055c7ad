"""The figure: gold and proxy over √KL, for PPO and for the best of n, a panel a factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from overoptimizing.outcome import Outcome, Way, points
from overoptimizing.sweep import Factor
from overoptimizing.table import TITLES, level_name
from rlhf_gym.functional import OveroptimizationFit
from rlhf_gym.report.charts import smooth

INK, SOFT, HAIR = "#1c1d20", "#5f646c", "#e5e4df"
COLOURS = ("#d8a13a", "#c65d3b", "#8a3a72", "#2c3f8f", "#0f766e")
"""From the first level to the last, light to dark."""
TOP = 2.6
"""Highest value shown; proxies that go further leave the picture."""


def draw(found: dict[Factor, list[Outcome]], path: Path) -> None:
    """Two rows, PPO and the best of n; gold solid with its band, r_φ dashed, peaks marked."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(found), figsize=(4.9 * len(found), 8.4), layout="constrained", squeeze=False, sharey="row", sharex="row"
    )
    for column, (factor, outcomes) in enumerate(found.items()):
        for axis, way in zip(axes[:, column], ("ppo", "best_of_n"), strict=True):
            _panel(axis, factor, outcomes, way)
            axis.set_xlabel("√KL from the SFT policy, √nats", color=SOFT)
        axes[0, column].set_title(TITLES[factor].replace("r_φ", r"$r_\varphi$"), fontsize=11, color=INK)
    for axis, name in zip(axes[:, 0], ("PPO without KL penalty", "best of n"), strict=True):
        axis.set_ylabel(f"{name}\nrise over SFT, in its standard deviations", color=SOFT)
    seeds = max(len(o.runs) for outcomes in found.values() for o in outcomes)
    over = f"{seeds} seeds" if seeds > 1 else "1 seed"
    title = rf"gold (solid: fit; band: 95 %, {over}; dots: seen) and $r_\varphi$ (dashed); peaks with 95 % intervals"
    figure.suptitle(title, fontsize=11, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


def _panel(axis: Any, factor: Factor, outcomes: list[Outcome], way: Way) -> None:
    lowest = 0.0
    for colour, outcome in zip(_colours(len(outcomes)), outcomes, strict=True):
        each = [points(run, way) for run in outcome.runs]
        fit = outcome.ppo if way == "ppo" else outcome.best_of_n
        reach = outcome.reach(way)
        for p in each:
            axis.plot(np.sqrt(p.kl), p.gold, ".", ms=4, color=colour, alpha=0.32, mew=0)
        grid = np.linspace(0, reach, 160)
        axis.plot(grid, fit.curve(grid**2), color=colour, lw=2, label=level_name(factor, outcome), zorder=3)
        low, high = fit.band(grid**2)
        axis.fill_between(grid, low, high, color=colour, alpha=0.14, lw=0)
        axis.plot(*_mean_proxy(each, way), color=colour, lw=1.2, ls=(0, (4, 2.5)), alpha=0.9)
        _mark_peak(axis, fit, reach, colour)
        lowest = min(lowest, *(float(p.gold.min()) for p in each))
    axis.axhline(0, color=SOFT, lw=0.8)
    axis.set_ylim(max(lowest, -3.4) - 0.1 if way == "ppo" else -0.6, TOP)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=SOFT)
    axis.grid(axis="y", color=HAIR, lw=0.8)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=9, loc="lower left" if way == "ppo" else "upper left", labelcolor=INK)


def _colours(levels: int) -> list[str]:
    return [COLOURS[round(i * (len(COLOURS) - 1) / max(levels - 1, 1))] for i in range(levels)]


def _mean_proxy(each: list[Any], way: Way) -> tuple[np.ndarray, np.ndarray]:
    """r_φ over √KL, the mean of the seeds where all of them are."""
    if way == "best_of_n":
        return np.sqrt(each[0].kl), np.mean([p.proxy for p in each], axis=0)
    grid = np.linspace(0, min(float(np.sqrt(p.kl).max()) for p in each), 80)
    curves = []
    for p in each:
        order = np.argsort(p.kl, kind="stable")
        curves.append(np.interp(grid, smooth(np.sqrt(p.kl)[order], 5), smooth(p.proxy[order], 5)))
    return grid, np.mean(curves, axis=0)


def _mark_peak(axis: Any, fit: OveroptimizationFit, reach: float, colour: str) -> None:
    """The fitted peak, where it is within what was measured, with the interval of its place."""
    if not 0 < fit.peak_distance <= reach:
        return
    low, high = fit.peak_interval()
    axis.plot([low, min(high, reach)], [fit.peak_gold] * 2, color=colour, lw=1.4, zorder=4, solid_capstyle="butt")
    axis.plot(fit.peak_distance, fit.peak_gold, "o", ms=7, color=colour, mec="white", mew=1.4, zorder=5)
