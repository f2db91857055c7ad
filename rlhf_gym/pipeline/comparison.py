"""Comparing policies: win rates with ties half, their intervals, means with standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlhf_gym.functional.intervals import Rate, share_interval


class Mean(NamedTuple):
    """A mean with its standard error."""

    mean: float
    """The mean."""
    se: float
    """The mean's standard error."""


def win_rate(ours: ArrayLike, theirs: ArrayLike) -> Rate:
    """Share of prompts on which `ours` scores higher, ties counting half, with Wilson's 95 % interval.

    Shapes: both (prompts,).
    """
    ours = np.asarray(ours, dtype=np.float64)
    theirs = np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"expected scores of one shape (prompts,), got {ours.shape} and {theirs.shape}")
    return share_interval(float((0.5 * (1 + np.sign(ours - theirs))).mean()), len(ours))


def mean_with_error(values: ArrayLike) -> Mean:
    """Mean and standard error of values (n,)."""
    values = np.asarray(values, dtype=np.float64)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Mean(float(values.mean()), spread / math.sqrt(len(values)))


def median_index(values: ArrayLike) -> int:
    """Index of the median (the lower one of an even number)."""
    values = np.asarray(values)
    return int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])


class EqualDifference(NamedTuple):
    """The result of `difference_at_equal`."""

    difference: float
    """The difference δ."""
    se: float
    """Its standard error; NaN where there are too few points to tell."""
    slope: float
    """b, the common slope of y over x within the two groups."""


def difference_at_equal(x: ArrayLike, y: ArrayLike, other_x: ArrayLike, other_y: ArrayLike) -> EqualDifference:
    """How far `other_y` is above y at equal x: δ = (ȳ₂ − ȳ₁) − b·(x̄₂ − x̄₁), the analysis of covariance.

    b = S_xy/S_xx is the slope within the groups, S sums over both of products of deviations from each one's means. The
    standard error is s·√(1/n₁ + 1/n₂ + (x̄₂ − x̄₁)²/S_xx), s² the residual variance on n₁ + n₂ − 3 degrees of freedom.
    With x the KL and y the gold of several seeds, this compares two recipes at one distance from the reference.

    Shapes: x and y (n₁,), other_x and other_y (n₂,).
    """
    xs = [np.asarray(values, dtype=np.float64) for values in (x, other_x)]
    ys = [np.asarray(values, dtype=np.float64) for values in (y, other_y)]
    if any(a.shape != b.shape or a.ndim != 1 or not len(a) for a, b in zip(xs, ys, strict=True)):
        raise ValueError(f"expected x and y of one shape (n,), got {[a.shape for a in xs]} and {[b.shape for b in ys]}")
    from_x = [a - a.mean() for a in xs]
    from_y = [b - b.mean() for b in ys]
    s_xx = float(sum((a * a).sum() for a in from_x))
    s_xy = float(sum((a * b).sum() for a, b in zip(from_x, from_y, strict=True)))
    slope = s_xy / s_xx if s_xx > 0 else 0.0
    residual = float(sum(((b - slope * a) ** 2).sum() for a, b in zip(from_x, from_y, strict=True)))
    apart = float(xs[1].mean() - xs[0].mean())
    free = len(xs[0]) + len(xs[1]) - 3
    difference = float(ys[1].mean() - ys[0].mean()) - slope * apart
    if free < 1 or s_xx == 0:
        return EqualDifference(difference, math.nan, slope)
    leverage = 1 / len(xs[0]) + 1 / len(xs[1]) + apart**2 / s_xx
    return EqualDifference(difference, math.sqrt(residual / free * leverage), slope)
