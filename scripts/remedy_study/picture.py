"""Gold over √KL under every remedy, a panel a family, no remedy in grey in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from remedy_study.arms import NONE, Arm
from remedy_study.runs import trajectory
from remedy_study.table import Figures

INK, SOFT, HAIR = "#1c1d20", "#5f646c", "#e5e4df"
COLOURS = ("#1f56a5", "#bf4a14", "#4a7a55", "#7e3cbe", "#a07a2c", "#c2428b")
STYLE: dict[str, Any] = {
    "font.size": 9.5, "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": HAIR, "xtick.color": SOFT,
    "ytick.color": SOFT, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": HAIR,
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.axisbelow": True,
}  # fmt: skip


def picture(found: dict[Arm, Figures], path: Path) -> None:
    """Means over the seeds that are still on their way, bands ± a standard error; a dot where runs end on average."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    families = list(dict.fromkeys(arm.family for arm, figures in found.items() if arm.family and figures))
    columns = 3 if len(families) > 2 else max(1, len(families))
    count = -(-len(families) // columns)
    farthest = max(np.sqrt(max(trajectory(f).smoothed().kl)) for f in found[NONE].values())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            count, columns, figsize=(4.7 * columns, 3.9 * count), layout="constrained", squeeze=False, sharex=True,
            sharey=True,
        )  # fmt: skip
        for axis, family in zip(axes.flat, families, strict=False):
            _line(axis, NONE.label, found[NONE], "#9aa0a8", farthest, wide=True)
            arms = [arm for arm, figures in found.items() if arm.family == family and figures]
            for arm, colour in zip(arms, COLOURS, strict=False):
                _line(axis, arm.label, found[arm], colour, farthest)
            axis.set_title(family)
            axis.legend(frameon=False, fontsize=8, labelcolor=SOFT, loc="lower left")
        for axis in axes.flat[len(families) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("√KL from the SFT policy, √nats")
        for axis in axes[:, 0]:
            axis.set_ylabel("gold")
        seeds = max(len(figures) for figures in found.values())
        figure.suptitle(
            f"means of {seeds} seeds, bands ± a standard error; a dot where runs end", fontsize=11, color=INK
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, facecolor="white")
        plt.close(figure)


def _line(axis: Any, label: str, figures: Figures, colour: str, farthest: float, *, wide: bool = False) -> None:
    begin = max(float(np.sqrt(max(trajectory(f).smoothed().kl[0], 0))) for f in figures.values())
    grid = np.linspace(begin, farthest, 120)
    golds = np.array([[trajectory(f).at(float(x) ** 2).gold for x in grid] for f in figures.values()])  # (seeds, grid)
    there = ~np.isnan(golds)
    enough = there.sum(axis=0) * 2 > len(golds)  # a mean of the few that went farther would be of other seeds
    mean = np.where(there, golds, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    spread = np.where(there, (golds - mean) ** 2, 0).sum(axis=0) / np.maximum(there.sum(axis=0) - 1, 1)
    error = np.sqrt(spread / np.maximum(there.sum(axis=0), 1))
    axis.plot(grid[enough], mean[enough], color=colour, lw=2.4 if wide else 1.6, label=label, zorder=2 if wide else 3)
    axis.fill_between(grid[enough], (mean - error)[enough], (mean + error)[enough], color=colour, alpha=0.14, lw=0)
    ends = [trajectory(f).last() for f in figures.values()]
    axis.plot(
        np.mean([np.sqrt(e.kl) for e in ends]), np.mean([e.gold for e in ends]), "o", color=colour, ms=5, mec="white"
    )
