"""The comparison as a picture: how fast agents come to the optimum, and what a nat buys on the reviews."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from comparisons.agents import ENTRANTS
from comparisons.places import NEAR, PlaceName
from comparisons.results import Result, Results, Selection, median

INK, SOFT, HAIR = "#1c1d20", "#5f646c", "#e5e4df"
COLOURS = {
    "TokenPPO": "#1f56a5", "TokenA2C": "#2c8fa3", "TokenReinforce": "#4a7a55", "TokenRLOO": "#8aa62b",
    "TokenGRPO": "#6d5bd0", "PPO": "#bf4a14", "MaskablePPO": "#e08a3c", "A2C": "#c2428b", "TRPO": "#8c2f1e",
    "ppo_single_file": "#a07a2c", "DQN": "#5f646c", "QRDQN": "#9aa0a8", "DPO": "#111111", "BestOf4": "#111111",
    "BestOf16": "#111111",
}  # fmt: skip
MARKERS = {"ours": "o", "stock": "s", "value-based": "^", "yardstick": "D"}
STYLE: dict[str, Any] = {
    "font.size": 10, "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": HAIR, "xtick.color": SOFT,
    "ytick.color": SOFT, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": HAIR,
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.axisbelow": True,
}  # fmt: skip
SUBJECTS = {"tabular": "A table as policy", "gpt2": "A small GPT-2"}
FLOOR = 2e-5
"""Below this a gap is drawn here: float32 tells no smaller ones apart."""


def picture(selection: Selection, results: Results, path: Path) -> None:
    """A panel for the environment that is enumerated (the table if it is there), one for the reviews."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    enumerated = [place for place in ("tabular", "gpt2") if _any(selection, results, place)][:1]  # type: ignore[arg-type]
    panels: list[PlaceName] = [*enumerated, *(["reviews"] if _any(selection, results, "reviews") else [])]  # type: ignore[list-item]
    if not panels:
        raise ValueError("expected at least one run to draw, got none")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(6.9 * len(panels), 5.2), layout="constrained")
        for place, axis in zip(panels, np.atleast_1d(axes), strict=True):
            draw = _reviews if place == "reviews" else _curves
            draw(axis, place, {agent: selection.found(results, place, agent) for agent in selection.agents})
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _any(selection: Selection, results: Results, place: PlaceName) -> bool:
    return any(selection.found(results, place, agent) for agent in selection.agents)


def _curves(axis: Any, place: PlaceName, runs: dict[str, list[Result]]) -> None:
    ends = []
    for agent, found in runs.items():
        if ENTRANTS[agent].group == "value-based" or not any(run.tokens for run in found):
            continue
        grid = np.geomspace(max(run.curve[1][0] for run in found), min(run.tokens for run in found), 120)
        gaps = np.maximum([_interpolate(run, grid) for run in found], FLOOR)  # (seeds, grid)
        dashes = "--" if ENTRANTS[agent].group == "stock" else ":" if ENTRANTS[agent].group == "yardstick" else "-"
        axis.plot(grid, np.median(gaps, axis=0), color=COLOURS[agent], ls=dashes, lw=1.6)
        axis.fill_between(grid, gaps.min(axis=0), gaps.max(axis=0), color=COLOURS[agent], alpha=0.06, lw=0)
        ends.append((float(np.median(gaps, axis=0)[-1]), agent, float(grid[-1])))
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="J* − J (what is below 2·10⁻⁵ is drawn there)")
    for kind, dashes in (("ours", "-"), ("others'", "--"), ("yardsticks", ":")):
        axis.plot([], [], color=SOFT, ls=dashes, lw=1.6, label=kind)
    axis.legend(frameon=False, fontsize=9, labelcolor=SOFT, loc="lower left")
    axis.axhline(NEAR, color=SOFT, lw=1)
    axis.annotate(f"J* − {NEAR:.2g}", (0.01, NEAR), xycoords=("axes fraction", "data"), xytext=(0, 3),
                  textcoords="offset points", color=SOFT, fontsize=9)  # fmt: skip
    seeds = max(len(found) for found in runs.values())
    axis.set_title(f"{SUBJECTS[place]}, everything enumerated: medians of {seeds} seeds, bands their range")
    for (_, agent, x), y in zip(sorted(ends), _spread([np.log10(end[0]) for end in sorted(ends)], 0.165), strict=True):
        axis.annotate(agent, (x, 10**y), (7, 0), textcoords="offset points", color=COLOURS[agent], fontsize=8.5,
                      va="center", annotation_clip=False)  # fmt: skip
    _constants(axis, runs)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * 2.4)


def _constants(axis: Any, runs: dict[str, list[Result]]) -> None:
    """Yardsticks that learn nothing: one level each."""
    for agent, found in runs.items():
        if found and not any(run.tokens for run in found):
            level = median(found, "gap")
            axis.axhline(level, color=COLOURS[agent], lw=1, ls=":")
            axis.annotate(f"{agent}, no learning", (0.01, level), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", color=COLOURS[agent], fontsize=8.5)  # fmt: skip


def _interpolate(run: Result, grid: np.ndarray) -> np.ndarray:
    tokens = [point[0] for point in run.curve]
    return np.interp(grid, tokens, [point[1]["gap"] for point in run.curve])


def _spread(values: Sequence[float], least: float) -> list[float]:
    """The same ascending values, moved apart until neighbours are `least` apart, their middle kept."""
    placed = np.array(values, dtype=float)
    for _ in range(200):
        gaps = np.diff(placed)
        tight = np.flatnonzero(gaps < least - 1e-6)
        if not len(tight):
            break
        for i in tight:
            shift = (least - (placed[i + 1] - placed[i])) / 2
            if shift > 0:
                placed[i] -= shift
                placed[i + 1] += shift
    return placed.tolist()


def _reviews(axis: Any, place: PlaceName, runs: dict[str, list[Result]]) -> None:
    points = []
    for agent, found in runs.items():
        if not found:
            continue
        x, y = median(found, "kl"), median(found, "wins")
        axis.plot(
            [x, x], [median(found, "wins_low"), median(found, "wins_high")], color=COLOURS[agent], lw=1, alpha=0.4
        )
        axis.plot([run.figures["kl"] for run in found], [run.figures["wins"] for run in found], ls="", ms=6.5,
                  marker=MARKERS[ENTRANTS[agent].group], color=COLOURS[agent])  # fmt: skip
        points.append((y, x, agent))
    axis.axhline(0.5, color=SOFT, lw=1)
    axis.annotate("SFT", (0.01, 0.5), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
                  color=SOFT, fontsize=9)  # fmt: skip
    axis.set(xlabel="KL from π_ref, nats (best of n: its bound)", ylabel="gold prefers it to SFT", xscale="log")
    axis.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100], ["0.5", "1", "2", "5", "10", "20", "50", "100"])
    axis.minorticks_off()
    axis.set_xlim(0.45, max(8.0, 1.25 * max(x for _, x, _ in points)))
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    seeds = max(len(found) for found in runs.values())
    axis.set_title(f"Reviews: what a nat buys ({seeds} seed{'s' if seeds > 1 else ''}, bars 95 % intervals)")
    _name_points(axis, sorted(points))


def _name_points(axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside points (y, x, name) that stand alone; the others in a column, with lines to them."""
    low, high = axis.get_ylim()
    crowded = []
    for point in points:
        others = [other for other in points if other is not point]
        apart = all(abs(y - point[0]) > 0.06 * (high - low) or abs(np.log(x / point[1])) > 0.5 for y, x, _ in others)
        if apart:
            y, x, agent = point
            axis.annotate(agent, (x, y), (7, 4), textcoords="offset points", color=COLOURS[agent], fontsize=8.5)
        else:
            crowded.append(point)
    levels = _spread([y for y, _, _ in crowded], 0.04 * (high - low))
    for (y, x, agent), level in zip(crowded, levels, strict=True):
        axis.annotate(agent, (x, y), (1.01, level), textcoords=("axes fraction", "data"), color=COLOURS[agent],
                      fontsize=8.5, va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": COLOURS[agent], "lw": 0.5, "alpha": 0.45})  # fmt: skip
