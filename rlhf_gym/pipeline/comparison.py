"""Comparing policies: win rates with ties half, their intervals, means with standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Rate(NamedTuple):
    """A share with its 95 % interval."""

    rate: float
    """The share."""
    low: float
    """The interval's lower end."""
    high: float
    """The interval's upper end."""


class Mean(NamedTuple):
    """A mean with its standard error."""

    mean: float
    """The mean."""
    se: float
    """Its standard error."""


def win_rate(ours: ArrayLike, theirs: ArrayLike) -> Rate:
    """Share of prompts on which `ours` scores higher, ties counting half, with Wilson's 95 % interval.

    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = 1.96. Unlike the bootstrap's, the interval does not shrink
    to a point where all is won.

    Shapes: both (prompts,).
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"expected scores of one shape (prompts,), got {ours.shape} and {theirs.shape}")
    return share_interval(float((0.5 * (1 + np.sign(ours - theirs))).mean()), len(ours))


def share_interval(share: float, n: int) -> Rate:
    """A share of n with Wilson's 95 % interval; see `win_rate`."""
    p, z2 = share, 1.96**2
    middle = p + z2 / (2 * n)
    spread = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    scale = 1 + z2 / n
    return Rate(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def mean_with_error(values: ArrayLike) -> Mean:
    """Mean and standard error of values (n,)."""
    values = np.asarray(values, dtype=np.float64)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Mean(float(values.mean()), spread / math.sqrt(len(values)))


def median_index(values: ArrayLike) -> int:
    """Index of the median (the lower one of an even number)."""
    values = np.asarray(values)
    return int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])
