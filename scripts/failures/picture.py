"""A picture for each failure: failure and cure beside each other, lines labelled where they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from failures.measures import Measured, different, occurrences
from failures.runs import CERTAIN

matplotlib.use("Agg")

COLOURS = ("#bf4a14", "#1f56a5", "#4a7a55")
"""The failure, its cure, another cure."""
GREY, INK, SOFT = "#7d828b", "#1c1d20", "#5f646c"
CAP = 32
"""Longest response of the embedded task, in tokens."""


def draw_pictures(found: dict[str, list[Measured]], sound: Measured, folder: Path) -> list[Path]:
    """One PNG a failure; `sound` is what faulty annotators are compared with."""
    folder.mkdir(parents=True, exist_ok=True)
    panels = {"hacking": _hacking, "collapse": _collapse, "length": _length, "confidence": _confidence}
    paths = []
    for name, arms in found.items():
        figure = Figure(figsize=(12.6, 3.7), layout="constrained", facecolor="white")
        panels[name](figure.subplots(1, 3), arms, sound)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        paths.append(path)
    return paths


def _hacking(axes: Sequence[Axes], arms: Sequence[Measured], sound: Measured) -> None:
    curves(axes[0], arms, "score", r"score of $r_\varphi$: what PPO sees", alarms=True)
    curves(axes[1], arms, "gold", "gold: what is good", levels={"SFT": arms[0].sft["gold"][0]})
    curves(axes[2], arms, "kl", r"KL from $\pi_{\mathrm{ref}}$, nats a response")


def _collapse(axes: Sequence[Axes], arms: Sequence[Measured], sound: Measured) -> None:
    curves(
        axes[0],
        arms,
        "entropy",
        "entropy, nats a token",
        levels={"SFT": arms[0].sft["entropy"]},
        alarms=True,
        zero=True,
    )
    curves(axes[1], arms, "gold", "gold", levels={"SFT": arms[0].sft["gold"][0]})
    values = [(float(different(rows)), 0.0) for rows in (arms[0].before, *(arm.responses for arm in arms))]
    title = f"different ones of {len(arms[0].before)} responses"
    bars(axes[2], ["SFT", *(arm.label for arm in arms)], values, title, first=GREY, digits=0)


def _length(axes: Sequence[Axes], arms: Sequence[Measured], sound: Measured) -> None:
    curves(axes[0], arms, "length", "response length, tokens", levels={"SFT": arms[0].sft["length"]}, alarms=True)
    axes[0].axhline(CAP, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes[0].text(0, CAP - 0.3, "longest there can be", fontsize=8.5, color=INK, va="top")
    curves(axes[1], arms, "gold", "gold", levels={"SFT": arms[0].sft["gold"][0], "no fault": sound.gold})
    models = [arm for arm in arms if arm.probes.get("baselines")]
    prices = [(arm.probes["word_price"], arm.probes["word_price_error"]) for arm in models]
    title = r"before PPO: $r_\varphi$ for a word more, SFT's σ"
    bars(axes[2], [arm.label for arm in models], prices, title, digits=3)


def _confidence(axes: Sequence[Axes], arms: Sequence[Measured], sound: Measured) -> None:
    before = [(arm.inserted.change, arm.inserted.error) for arm in arms if arm.inserted is not None]
    title = r"before PPO: $r_\varphi$ for such words put in, SFT's σ"
    bars(axes[0], [arm.label for arm in arms], before, title)
    rates = [occurrences(responses, CERTAIN) for responses in (arms[0].before, *(arm.responses for arm in arms))]
    bars(axes[1], ["SFT", *(arm.label for arm in arms)], rates, "such words in a response, after PPO", first=GREY)
    curves(axes[2], arms, "gold", "gold", levels={"SFT": arms[0].sft["gold"][0], "no fault": sound.gold}, alarms=True)


def curves(
    axis: Axes,
    arms: Sequence[Measured],
    name: str,
    title: str,
    *,
    levels: Mapping[str, float] | None = None,
    alarms: bool = False,
    zero: bool = False,
) -> None:
    """A quantity over training, each arm's line named at its end."""
    ends = []
    for arm, colour in zip(arms, COLOURS, strict=False):
        x, y = arm.curves["tokens"] / 1000, arm.curves[name]
        axis.plot(x, y, color=colour, linewidth=2)
        ends.append((float(x[-1]), float(y[-1]), arm.label, colour))
    last = max(x for x, _, _, _ in ends)
    for text, level in (levels or {}).items():
        axis.plot([0, last], [level, level], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        ends.append((last, level, text, GREY))
    if zero:
        axis.set_ylim(bottom=0)
    _names(axis, ends)
    if alarms and arms[0].alarms:
        first = arms[0].alarms[0]
        axis.axvline(first["tokens"] / 1000, color=COLOURS[0], linewidth=1, linestyle=(0, (1, 1.5)))
        axis.annotate(
            f"first alarm: {first['name'].replace('_', ' ')}", (first["tokens"] / 1000, 0.6),
            xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points", fontsize=8.5,
            color=COLOURS[0], bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip
    axis.set_xlabel("response tokens in training, thousands", fontsize=9, color=SOFT)
    _plain(axis, title)


def bars(
    axis: Axes,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    title: str,
    *,
    first: str = COLOURS[0],
    digits: int = 2,
) -> None:
    """Horizontal bars with twice their standard error, the first on top, each with its value."""
    colours = [first, *(COLOURS if first == GREY else COLOURS[1:])][: len(names)]
    places = np.arange(len(names))[::-1]
    means = [value[0] for value in values]
    axis.barh(places, means, height=0.56, color=colours)
    ends = [m + 2 * e * (1 if m >= 0 else -1) for m, e in values]
    for place, (mean, error), end in zip(places, values, ends, strict=True):
        if error:
            axis.plot([mean - 2 * error, mean + 2 * error], [place, place], color=INK, linewidth=1)
        text = f"{mean:+.{digits}f}" if any(m < 0 for m in means) or digits == 3 else f"{mean:.{digits}f}"
        side = "left" if mean >= 0 else "right"
        axis.annotate(
            text.replace("-", "−"), (end, place), xytext=(4 if mean >= 0 else -4, 0), textcoords="offset points",
            ha=side, va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axis.axvline(0, color=INK, linewidth=0.8)
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.2 * (high - low or 1.0)
    axis.set_xlim(low - 2 * room * (low < 0), high + room)
    pad = max(0.0, (4 - len(names)) / 2)
    axis.set_ylim(-0.5 - pad, len(names) - 0.5 + pad)
    axis.set_yticks(places, names, fontsize=9)
    axis.tick_params(axis="y", length=0)
    _plain(axis, title)
    axis.spines["left"].set_visible(False)


def _names(axis: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Each line's name to the right of its end, moved apart where they would touch."""
    low, high = axis.get_ylim()
    least = 0.075 * (high - low)
    placed: list[float] = []
    for _, y, _, _ in sorted(ends, key=lambda e: e[1]):
        placed.append(max(y, placed[-1] + least) if placed else y)
    over = max(0.0, placed[-1] - high)
    for (x, _, text, colour), y in zip(sorted(ends, key=lambda e: e[1]), placed, strict=True):
        axis.annotate(
            text, (x, y - over), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9, color=colour,
            annotation_clip=False,
        )  # fmt: skip


def _plain(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10, loc="left", color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#c9c8c2")
    axis.tick_params(labelsize=8.5, colors=SOFT)
    for label in axis.get_yticklabels():
        label.set_color(SOFT)
