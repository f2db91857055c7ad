"""Confidence intervals: of the ratio of two estimates (Fieller's), and of a share (Wilson's)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Rate(NamedTuple):
    """A share with its confidence interval."""

    rate: float
    """The share."""
    low: float
    """The interval's lower end."""
    high: float
    """The interval's upper end."""


def share_interval(share: float, n: int) -> Rate:
    """A share of n with Wilson's 95 % interval (Wilson 1927), which does not shrink to a point at 0 or 1.

    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = 1.96. SciPy's `binomtest(…).proportion_ci` takes whole
    counts alone, and a win rate counts ties half.

    Args:
        share: p, in [0, 1].
        n: how many it is a share of.

    Raises:
        ValueError: a share out of range, or of nothing.
    """
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"expected a share in [0, 1] of at least 1, got {share} of {n}")
    z2 = 1.96**2
    middle = share + z2 / (2 * n)
    spread = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    scale = 1 + z2 / n
    return Rate(share, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def fieller_interval(numerator: float, denominator: float, covariance: ArrayLike, t: float) -> tuple[float, float]:
    """The ratios ρ = a/b that two estimates a and b > 0 leave possible: (a − ρb)² ≤ t²·Var(a − ρb).

    Fieller 1954, "Some Problems in Interval Estimation". For normal estimates the coverage is that of t; the delta
    method's is not where b is hardly told from 0. Where b is not told from 0 at all, it may be as small as one likes,
    and the interval has no upper end: inf. Ratios to a negative b are left out.

    Args:
        numerator: a.
        denominator: b, above 0.
        covariance: of (a, b), shape (2, 2).
        t: half the interval's width, in standard errors.

    Returns:
        (low, high); (−inf, inf) where nothing is ruled out.

    Raises:
        ValueError: b is not above 0, or the covariance has another shape.
    """
    v = np.asarray(covariance, dtype=np.float64)
    if v.shape != (2, 2):
        raise ValueError(f"expected a covariance of shape (2, 2), got {v.shape}")
    if not denominator > 0:
        raise ValueError(f"expected a denominator > 0, got {denominator}")
    # (b² − t²V_bb)·ρ² − 2·(ab − t²V_ab)·ρ + (a² − t²V_aa) ≤ 0
    square = float(denominator**2 - t**2 * v[1, 1])
    half = float(numerator * denominator - t**2 * v[0, 1])
    rest = float(numerator**2 - t**2 * v[0, 0])
    inside = half**2 - square * rest
    if square > 0:
        root = math.sqrt(max(inside, 0.0))
        return (half - root) / square, (half + root) / square
    if inside <= 0 or square == 0:
        return -math.inf, math.inf
    # Two rays are left, and the estimate lies on one: on the upper one for a > 0, where b → 0 sends ρ to +inf.
    roots = sorted(((half - math.sqrt(inside)) / square, (half + math.sqrt(inside)) / square))
    return (roots[1], math.inf) if numerator / denominator >= roots[1] else (-math.inf, roots[0])
