"""What came out, arm by arm: gold at equal KL, each one's best, the end, and the difference to no remedy by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from study import mean_and_error

from remedy_study.arms import NONE, Arm
from remedy_study.runs import trajectory
from rlhf_gym.functional import student_t_quantile

LEVELS = (5.0, 15.0, 30.0)
"""Nats from the SFT policy at which arms are compared."""
FAR = LEVELS[1:]
"""Those at which the difference to no remedy is taken, seed by seed: beyond the peak."""

Figures = dict[int, dict[str, Any]]
"""Of one arm, by seed."""


@dataclass(frozen=True)
class Paired:
    """An arm less no remedy, seed by seed."""

    mean: float
    """Mean difference in gold; NaN without a pair."""
    error: float
    """Its standard error."""
    wins: int
    """Seeds in which the arm has more."""
    n: int
    """Seeds in which both have a value."""

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the 95 % interval of Student's t."""
        return self.n > 1 and abs(self.mean) > student_t_quantile(0.95, self.n - 1) * self.error


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    arm: Arm
    """Which."""
    at: tuple[list[float], ...]
    """Gold at each of `LEVELS`, of the seeds that came so far."""
    best: list[float]
    """Each seed's highest gold on the way, smoothed."""
    best_kl: list[float]
    """Where it was."""
    end: list[float]
    """Gold of the policy that came out, on held-out prompts."""
    end_kl: list[float]
    """Its KL."""
    far: tuple[Paired, ...]
    """Difference to no remedy at each of `FAR`."""
    at_end: Paired
    """The same of what came out."""


def row(arm: Arm, figures: Figures, base: Figures) -> Row:
    """From the figures of an arm and of no remedy."""
    ways = {seed: trajectory(f) for seed, f in figures.items()}
    at = {level: {seed: way.at(level).gold for seed, way in ways.items()} for level in LEVELS}
    best = [way.best() for way in ways.values()]
    base_at = {level: {seed: trajectory(f).at(level).gold for seed, f in base.items()} for level in FAR}
    end = {seed: f["final"]["gold"] for seed, f in figures.items()}
    return Row(
        arm,
        tuple([value for value in at[level].values() if not math.isnan(value)] for level in LEVELS),
        [point.gold for point in best],
        [point.kl for point in best],
        list(end.values()),
        [f["final"]["kl"] for f in figures.values()],
        tuple(paired(at[level], base_at[level]) for level in FAR),
        paired(end, {seed: f["final"]["gold"] for seed, f in base.items()}),
    )


def paired(values: dict[int, float], base: dict[int, float]) -> Paired:
    """Over the seeds in which both are numbers."""
    seeds = [seed for seed in values if seed in base and not math.isnan(values[seed]) and not math.isnan(base[seed])]
    differences = [values[seed] - base[seed] for seed in seeds]
    if not differences:
        return Paired(math.nan, math.nan, 0, 0)
    return Paired(*mean_and_error(differences), sum(d > 0 for d in differences), len(differences))


def rows(found: dict[Arm, Figures]) -> list[Row]:
    """A row for each arm that has figures.

    Raises:
        ValueError: there are none of no remedy to compare with.
    """
    if not found.get(NONE):
        raise ValueError(f"expected figures of {NONE.label!r} to compare with, got {[arm.name for arm in found]}")
    return [row(arm, figures, found[NONE]) for arm, figures in found.items() if figures]


def cell(values: Sequence[float], seeds: int) -> str:
    """Mean ± standard error; how many came so far where not all did; a dash where none did."""
    if not values:
        return "–"
    mean, error = mean_and_error(values)
    some = "" if len(values) == seeds else f" ({len(values)})"
    return (f"{mean:+.2f}" if math.isnan(error) else f"{mean:+.2f} ± {error:.2f}") + some


def difference(pair: Paired) -> str:
    """The difference, its error, seeds won; a star where it is clear."""
    if not pair.n:
        return "–"
    error = "" if math.isnan(pair.error) else f" ± {pair.error:.2f}"
    return f"{pair.mean:+.2f}{error}{'*' if pair.clear else ''}, {pair.wins}/{pair.n}"


HEADER = ("remedy", *(f"gold at {level:g} nats" for level in LEVELS), "best on the way", "at nats", "gold at the end",
          "nats", *(f"less none at {level:g}" for level in FAR), "less none at the end")  # fmt: skip


def cells(line: Row) -> tuple[str, ...]:
    """One line of the table as texts."""
    n = len(line.end)
    plain = line.arm == NONE
    return (
        line.arm.label,
        *(cell(values, n) for values in line.at),
        cell(line.best, n),
        f"{np.mean(line.best_kl):.0f}",
        cell(line.end, n),
        f"{np.mean(line.end_kl):.0f}",
        *("" if plain else difference(pair) for pair in (*line.far, line.at_end)),
    )


def as_text(lines: Sequence[Row]) -> str:
    """For a terminal."""
    table = [HEADER, *(cells(line) for line in lines)]
    widths = [max(len(entry[i]) for entry in table) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(entry, widths, strict=True))
        )
        for entry in table
    )


def as_markdown(lines: Sequence[Row]) -> str:
    """For docs/remedies.md, best at the end first but for no remedy, which leads."""
    first, *others = lines
    ordered = [first, *sorted(others, key=lambda line: -float(np.mean(line.end)))]
    table = [HEADER, ("---",) * len(HEADER), *(cells(line) for line in ordered)]
    return "\n".join("| " + " | ".join(entry) + " |" for entry in table)
