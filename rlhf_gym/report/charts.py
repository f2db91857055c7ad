"""All drawing of the report, as SVG text. Colours are CSS classes, so one drawing serves a light and a dark page."""

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

WIDTH = 380.0
HEIGHT = 236.0
LEFT = 46.0
RIGHT = 12.0
TOP = 12.0
BOTTOM = 38.0


class Line(NamedTuple):
    """A curve, or a cloud of points."""

    x: ArrayLike
    """Its values on the x axis, (n,)."""
    y: ArrayLike
    """Its values on the y axis, (n,)."""
    kind: str
    """CSS class that colours it: the kind of run."""
    name: str = ""
    """Its name beside the pointer; a curve without one is not shown there."""
    style: str = "line"
    """CSS class of its form: "line", "thin", "dashed" or "points"."""
    weight: ArrayLike | None = None
    """Areas of points, (n,), relative to the largest; None draws small points of one size."""


class Band(NamedTuple):
    """A shaded region between two curves. It does not stretch the picture; parts outside are cut off."""

    x: ArrayLike
    """Its values on the x axis, (n,), ascending."""
    low: ArrayLike
    """The band's lower edge, (n,)."""
    high: ArrayLike
    """The band's upper edge, (n,)."""
    kind: str
    """CSS class that colours it."""


class Level(NamedTuple):
    """A horizontal line to compare with."""

    y: float
    """Its value on the y axis."""
    kind: str
    """CSS class that colours it."""
    label: str
    """The text beside it."""


class Mark(NamedTuple):
    """A point with a label."""

    x: float
    """Its value on the x axis."""
    y: float
    """Its value on the y axis."""
    kind: str
    """CSS class that colours it."""
    label: str
    """The text beside it."""


@dataclass(frozen=True)
class Chart:
    """A picture of curves over one axis."""

    title: str
    """The quantity that is shown, with its unit."""
    x_label: str
    """The quantity of the x axis, with its unit."""
    lines: Sequence[Line]
    """Drawn in order, later ones on top."""
    levels: Sequence[Level] = field(default_factory=tuple)
    """Horizontal lines to compare with."""
    bands: Sequence[Band] = field(default_factory=tuple)
    """Shaded regions, under everything else."""
    marks: Sequence[Mark] = field(default_factory=tuple)
    """Points with a label."""
    breaks: Sequence[float] = field(default_factory=tuple)
    """Values on the x axis at which a new round begins."""
    from_zero: bool = False
    """Whether the y axis must show 0."""

    def svg(self) -> str:
        """The picture as an `<svg>` element; the script reads the figures under the pointer from `data-lines`."""
        x_axis, y_axis = self._axes()
        parts = [*_grid(x_axis, y_axis), *_breaks(self.breaks, x_axis)]
        parts += [_band(band, x_axis, y_axis) for band in self.bands]
        parts += [_level(level, y_axis) for level in self.levels]
        parts += [_line(line, x_axis, y_axis) for line in self.lines]
        parts += [_level_label(level, y_axis) for level in self.levels]
        parts += [_mark(mark, x_axis, y_axis) for mark in self.marks]
        parts.append(_axis_label(self.x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5))
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(self.title)}" '
            f'data-x="{escape(self.x_label)}" data-lines="{_for_pointer(self.lines, x_axis, y_axis)}">'
            f"{''.join(parts)}"
            '<g class="pointer" hidden=""></g></svg>'
        )

    def _axes(self) -> tuple[Axis, Axis]:
        xs = [*(line.x for line in self.lines), [mark.x for mark in self.marks]]
        ys = [*(line.y for line in self.lines), [mark.y for mark in self.marks], [level.y for level in self.levels]]
        x_all = np.concatenate([np.asarray(x, dtype=float) for x in xs])
        y_all = np.concatenate([*(np.asarray(y, dtype=float) for y in ys), [0.0] * self.from_zero])
        x_axis = Axis.over(x_all, LEFT, WIDTH - RIGHT, pad=0.0, ticks=5)
        return x_axis, Axis.over(y_all, HEIGHT - BOTTOM, TOP, pad=0.06, ticks=5)

    @property
    def moves(self) -> bool:
        """Whether a curve of it has more than one value."""
        curves = [np.asarray(line.y, dtype=float) for line in self.lines]
        return any(np.unique(curve[np.isfinite(curve)]).size > 1 for curve in curves)


class IntervalChart(NamedTuple):
    """A row a subject, with estimates as points and two standard errors on either side, around 0."""

    title: str
    """The text for readers who do not see the picture."""
    x_label: str
    """The quantity of the x axis, with its unit."""
    rows: Sequence[tuple[str, Sequence[tuple[float, float, str]]]]
    """Each row's name and its estimates: value, standard error, and the CSS class that colours it."""

    def svg(self) -> str:
        """The picture as an `<svg>` element."""
        width = 420.0
        left = 92.0
        row_height = 30.0
        bottom = TOP + row_height * len(self.rows)
        ends = [0.0, *(v + side * e for _, estimates in self.rows for v, e, _ in estimates for side in (-2, 2))]
        axis = Axis.over(np.array(ends), left, width - 14, pad=0.05, ticks=5)
        parts = []
        for tick in axis.ticks:
            x = float(axis.place(tick))
            kind = "zero" if tick == 0 else "grid"
            parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:.0f}" y2="{bottom:.0f}"/>')
            parts.append(_tick(x, bottom + 14, "middle", tick))
        for i, (name, estimates) in enumerate(self.rows):
            y = TOP + row_height * (i + 0.5)
            parts.append(f'<text x="{left - 10:.0f}" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>')
            for place, (value, error, kind) in enumerate(estimates):
                below = y + 9 * (place - (len(estimates) - 1) / 2)
                low, middle, high = axis.place([value - 2 * error, value, value + 2 * error])
                parts.append(_interval(low, middle, high, below, kind, radius=3.2))
        parts.append(_axis_label(self.x_label, (left + width) / 2, bottom + 32))
        return (
            f'<svg class="chart" viewBox="0 0 {width:.0f} {bottom + BOTTOM:.0f}" role="img" '
            f'aria-label="{escape(self.title)}" data-lines="[]">{"".join(parts)}</svg>'
        )


def share_bar(rate: Sequence[float], kind: str) -> str:
    """A share with its interval, (share, low, high), on a line from 0 to 1 with a mark at a half."""
    middle, low, high = (4 + 96 * share for share in rate)
    return (
        '<svg viewBox="0 0 104 14" aria-hidden="true"><line class="track" x1="4" x2="100" y1="7" y2="7"/>'
        '<line class="half" x1="52" x2="52" y1="0" y2="14"/>'
        f"{_interval(low, middle, high, 7, kind, radius=4)}</svg>"
    )


def length_bar(share: float, kind: str) -> str:
    """A bar as long as a share of the longest one."""
    return (
        '<svg class="length" viewBox="0 0 100 10" aria-hidden="true">'
        f'<line class="{kind}" stroke-width="8" x1="0" x2="{96 * share:.1f}" y1="5" y2="5"/></svg>'
    )


def _interval(low: float, middle: float, high: float, y: float, kind: str, *, radius: float) -> str:
    return (
        f'<line class="{kind}" stroke-width="2.5" stroke-linecap="round" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" '
        f'y2="{y:.1f}"/><circle class="{kind}" fill="currentColor" cx="{middle:.1f}" cy="{y:.1f}" r="{radius:g}"/>'
    )


def _axis_label(text: str, x: float, y: float) -> str:
    return f'<text class="axis-label" x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{_with_subscripts(text)}</text>'


class Axis(NamedTuple):
    """The places of values on the picture."""

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
        low = float(values.min()) if len(values) else 0.0
        high = float(values.max()) if len(values) else 1.0
        room = pad * (high - low) if high > low else 0.5
        return cls(low - room, high + room, start, end, round_ticks(low - room, high + room, ticks))

    def place(self, value: ArrayLike) -> np.ndarray:
        """The places of values on the picture."""
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
    """A short label for a tick, such as 200k, 0.5 or −2."""
    text = f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"
    return text.replace("-", "−")


def smooth(values: ArrayLike, window: int) -> np.ndarray:
    """Centred running mean, (n,) → (n,); shorter at the ends."""
    values = np.asarray(values, dtype=float)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low = np.maximum(places - window // 2, 0)
    high = np.minimum(places + window // 2 + 1, len(values))
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
    return _note(level.label, level.kind, WIDTH - RIGHT - 2, float(axis.place(level.y)) - 4, "end")


def _note(text: str, kind: str, x: float, y: float, anchor: str) -> str:
    return f'<text class="note {kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    x = x_axis.place(line.x)  # (n,)
    y = y_axis.place(line.y)  # (n,)
    shown = np.isfinite(x) & np.isfinite(y)
    if line.style == "points":
        dots = zip(x[shown], y[shown], _radii(line.weight, len(x))[shown], strict=True)
        circles = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius:.1f}"/>' for a, b, radius in dots)
        return f'<g class="points {line.kind}">{circles}</g>'
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[shown], y[shown], strict=True))
    return f'<polyline class="{line.style} {line.kind}" points="{points}"/>'


def _radii(weight: ArrayLike | None, n: int) -> np.ndarray:
    """Areas in proportion to the weights, the largest a circle of radius 8, none too small to see, (n,)."""
    if weight is None:
        return np.full(n, 1.7)
    weights = np.asarray(weight, dtype=float)
    return np.maximum(8 * np.sqrt(weights / weights.max()), 1.7)


def _mark(mark: Mark, x_axis: Axis, y_axis: Axis) -> str:
    x = float(x_axis.place(mark.x))
    y = float(y_axis.place(mark.y))
    left = x > WIDTH * 0.7
    note = _note(mark.label, mark.kind, x - 7 if left else x + 7, y - 6, "end" if left else "start")
    return f'<circle class="mark {mark.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>{note}'


def _for_pointer(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> str:
    """Named curves as [name, class, [[x place, y place, x, y] …]], for the script that answers the pointer."""
    named = []
    for line in lines:
        if not line.name:
            continue
        x = np.asarray(line.x, dtype=float)
        y = np.asarray(line.y, dtype=float)
        rows = np.stack([x_axis.place(x), y_axis.place(y), x, y], axis=1).tolist()  # (n, 4)
        points = [
            [round(a, 1), round(b, 1), float(f"{c:.5g}"), float(f"{d:.4g}")] for a, b, c, d in rows if math.isfinite(b)
        ]
        named.append([line.name, line.kind, points])
    return escape(json.dumps(named, separators=(",", ":")), quote=True)
