"""Line charts as SVG text. Colours are CSS classes, so that one drawing serves a light page and a dark one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 380.0, 236.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 38.0


class Line(NamedTuple):
    """A curve, or a cloud of points."""

    x: ArrayLike
    """Where, (n,)."""
    y: ArrayLike
    """What, (n,)."""
    kind: str
    """CSS class that colours it: the kind of run."""
    name: str = ""
    """What the pointer is told; curves without a name say nothing."""
    style: str = "line"
    """CSS class of its form: "line", "thin", "dashed" or "points"."""
    weight: ArrayLike | None = None
    """What each point stands for, (n,): its area, where the style is "points"; None: all the same."""


class Band(NamedTuple):
    """A shaded region between two curves. It does not stretch the picture: what is outside is cut off."""

    x: ArrayLike
    """Where, (n,), ascending."""
    low: ArrayLike
    """Its lower edge, (n,)."""
    high: ArrayLike
    """Its upper edge, (n,)."""
    kind: str
    """CSS class that colours it."""


class Level(NamedTuple):
    """A horizontal line to compare with."""

    y: float
    """Where."""
    kind: str
    """Its colour's class."""
    label: str
    """Written beside it."""


class Mark(NamedTuple):
    """A point that is pointed out."""

    x: float
    """Where."""
    y: float
    """Where."""
    kind: str
    """Its colour's class."""
    label: str
    """Written beside it."""


@dataclass(frozen=True)
class Chart:
    """One picture."""

    title: str
    """What is shown, with its unit."""
    x_label: str
    """What runs along the bottom, with its unit."""
    lines: Sequence[Line]
    """Drawn in order, later ones on top."""
    levels: Sequence[Level] = field(default_factory=tuple)
    """Lines to compare with."""
    bands: Sequence[Band] = field(default_factory=tuple)
    """Shaded regions, under everything else."""
    marks: Sequence[Mark] = field(default_factory=tuple)
    """Points that are pointed out."""
    breaks: Sequence[float] = field(default_factory=tuple)
    """Where a new round begins, on the x axis."""
    from_zero: bool = False
    """Whether the y axis must show 0."""

    def svg(self) -> str:
        """The picture as an `<svg>` element; the pointer's figures are in its `data-lines`."""
        x_axis, y_axis = self._axes()
        parts = [*_grid(x_axis, y_axis), *_breaks(self.breaks, x_axis)]
        parts += [_band(band, x_axis, y_axis) for band in self.bands]
        parts += [_level(level, y_axis) for level in self.levels]
        parts += [_line(line, x_axis, y_axis) for line in self.lines]
        parts += [_level_label(level, y_axis) for level in self.levels]
        parts += [_mark(mark, x_axis, y_axis) for mark in self.marks]
        parts.append(
            f'<text class="axis-label" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 5:.0f}" '
            f'text-anchor="middle">{_with_subscripts(self.x_label)}</text>'
        )
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(self.title)}" '
            f'data-x="{escape(self.x_label)}" data-lines="{_for_pointer(self.lines, x_axis, y_axis)}">'
            f"{''.join(parts)}"
            '<g class="pointer" hidden=""></g></svg>'
        )

    def _axes(self) -> tuple[Axis, Axis]:
        xs = [np.asarray(line.x, dtype=float) for line in self.lines]
        ys = [np.asarray(line.y, dtype=float) for line in self.lines]
        x_all = np.concatenate([*xs, [mark.x for mark in self.marks]]) if xs else np.zeros(1)
        y_all = np.concatenate(
            [*ys, [level.y for level in self.levels], [mark.y for mark in self.marks], [0.0] * self.from_zero]
        )
        x_axis = Axis.over(x_all, LEFT, WIDTH - RIGHT, pad=0.0, ticks=5)
        return x_axis, Axis.over(y_all, HEIGHT - BOTTOM, TOP, pad=0.06, ticks=5)


class Axis(NamedTuple):
    """From values to places on the picture."""

    low: float
    """Value at `start`."""
    high: float
    """Value at `end`."""
    start: float
    """Place of the lowest value."""
    end: float
    """Place of the highest value."""
    ticks: tuple[float, ...]
    """Round values, for labels."""

    @classmethod
    def over(cls, values: np.ndarray, start: float, end: float, *, pad: float, ticks: int) -> Axis:
        """An axis that shows all finite values."""
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        low, high = low - pad * (high - low), high + pad * (high - low)
        return cls(low, high, start, end, round_ticks(low, high, ticks))

    def place(self, value: ArrayLike) -> np.ndarray:
        """Where values stand."""
        share = (np.asarray(value, dtype=float) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def round_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """About `count` values 1, 2 or 5 times a power of ten apart, between low and high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * m for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return tuple(round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1))


def tick_label(value: float) -> str:
    """Short: 200k, 0.5, −2."""
    text = f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"
    return text.replace("-", "−")


def smooth(values: ArrayLike, window: int) -> np.ndarray:
    """Centred running mean, (n,) → (n,); shorter at the ends."""
    values = np.asarray(values, dtype=float)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - window // 2, 0), np.minimum(places + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _with_subscripts(label: str) -> str:
    """Escaped, π_ref and r_φ set as such (by `dy`: not every browser knows `baseline-shift` in SVG)."""
    lowered = r'<tspan dy="2.5" font-size="78%">\1</tspan><tspan dy="-2.5">&#8203;</tspan>'
    return re.sub(r"_(ref|φ)\b", lowered, escape(label))


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for tick in y_axis.ticks:
        y = float(y_axis.place(tick))
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT:.0f}" x2="{WIDTH - RIGHT:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_tick(LEFT - 6, y + 3.5, "end", tick))
    for tick in x_axis.ticks:
        parts.append(_tick(float(x_axis.place(tick)), HEIGHT - BOTTOM + 14, "middle", tick))
    return parts


def _tick(x: float, y: float, anchor: str, value: float) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{tick_label(value)}</text>'


def _breaks(breaks: Sequence[float], axis: Axis) -> list[str]:
    parts = []
    for number, value in enumerate(breaks, start=2):
        x = float(axis.place(value))
        parts.append(f'<line class="break" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:.0f}" y2="{HEIGHT - BOTTOM:.0f}"/>')
        parts.append(f'<text class="tick" x="{x + 4:.1f}" y="{TOP + 9:.0f}">round {number}</text>')
    return parts


def _band(band: Band, x_axis: Axis, y_axis: Axis) -> str:
    edges = [np.clip(np.asarray(edge, dtype=float), y_axis.low, y_axis.high) for edge in (band.low, band.high)]
    x = np.asarray(band.x, dtype=float)
    shown = np.isfinite(x) & np.isfinite(edges[0]) & np.isfinite(edges[1])
    if not shown.any():
        return ""
    there = zip(x_axis.place(x[shown]), y_axis.place(edges[0][shown]), strict=True)
    back = zip(x_axis.place(x[shown][::-1]), y_axis.place(edges[1][shown][::-1]), strict=True)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in [*there, *back])
    return f'<polygon class="band {band.kind}" points="{points}"/>'


def _level(level: Level, axis: Axis) -> str:
    y = float(axis.place(level.y))
    return f'<line class="level {level.kind}" x1="{LEFT:.0f}" x2="{WIDTH - RIGHT:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _level_label(level: Level, axis: Axis) -> str:
    y = float(axis.place(level.y))
    return (
        f'<text class="note {level.kind}" x="{WIDTH - RIGHT - 2:.0f}" y="{y - 4:.1f}" text-anchor="end">'
        f"{escape(level.label)}</text>"
    )


def _line(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    x, y = x_axis.place(line.x), y_axis.place(line.y)
    shown = np.isfinite(x) & np.isfinite(y)
    points = [f"{a:.1f},{b:.1f}" for a, b in zip(x[shown], y[shown], strict=True)]
    if line.style == "points":
        radii = _radii(line.weight, len(x))[shown]  # (shown,)
        dots = "".join(
            f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="{r:.1f}"/>'
            for p, r in zip(points, radii, strict=True)
        )
        return f'<g class="points {line.kind}">{dots}</g>'
    return f'<polyline class="{line.style} {line.kind}" points="{" ".join(points)}"/>'


def _radii(weight: ArrayLike | None, n: int) -> np.ndarray:
    """Areas in proportion to the weights, the largest a circle of radius 8, none too small to see, (n,)."""
    if weight is None:
        return np.full(n, 1.7)
    weights = np.asarray(weight, dtype=float)
    return np.maximum(8 * np.sqrt(weights / weights.max()), 1.7)


def _mark(mark: Mark, x_axis: Axis, y_axis: Axis) -> str:
    x, y = float(x_axis.place(mark.x)), float(y_axis.place(mark.y))
    anchor = "end" if x > WIDTH * 0.7 else "start"
    shift = -7 if anchor == "end" else 7
    return (
        f'<circle class="mark {mark.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        f'<text class="note {mark.kind}" x="{x + shift:.1f}" y="{y - 6:.1f}" text-anchor="{anchor}">'
        f"{escape(mark.label)}</text>"
    )


def _for_pointer(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> str:
    """Named curves as [name, class, [[x place, y place, x, y] …]], for the script that answers the pointer."""
    named = []
    for line in lines:
        if not line.name:
            continue
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
        rows = np.stack([x_axis.place(x), y_axis.place(y), x, y], axis=1).tolist()  # (n, 4)
        points = [
            [round(a, 1), round(b, 1), float(f"{c:.5g}"), float(f"{d:.4g}")] for a, b, c, d in rows if math.isfinite(b)
        ]
        named.append([line.name, line.kind, points])
    return escape(json.dumps(named, separators=(",", ":")), quote=True)
