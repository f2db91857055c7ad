"""Confidence intervals: Student's t, the ratio of two estimates, and a share (Wilson's)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def student_t_cdf(t: float, dof: int) -> float:
    """P(T ≤ t) of Student's t with `dof` degrees of freedom, in closed form for whole ones.

    With θ = arctan(|t|/√ν), P(|T| ≤ |t|) is (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)

        sin θ·(1 + 1/2·cos²θ + (1·3)/(2·4)·cos⁴θ + … to cos^{ν−2} θ)                      for even ν,
        2/π·(θ + sin θ·(cos θ + 2/3·cos³θ + (2·4)/(3·5)·cos⁵θ + … to cos^{ν−2} θ))       for odd ν.

    Raises:
        ValueError: `dof` is below 1.
    """
    if dof < 1:
        raise ValueError(f"expected dof >= 1, got {dof}")
    theta = math.atan2(abs(t), math.sqrt(dof))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = dof % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(odd, dof - 1, 2):  # k: the power of cos θ
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    inside = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return 0.5 + math.copysign(0.5 * min(inside, 1.0), t)


def student_t_quantile(level: float, dof: int) -> float:
    """t with P(|T| ≤ t) = level: estimate ± t·(standard error) holds the truth so often. 2.776 at .95 and 4.

    Raises:
        ValueError: the level is not in [0, 1), or `dof` is below 1.
    """
    if not 0 <= level < 1:
        raise ValueError(f"expected level in [0, 1), got {level}")
    low, high = 0.0, 1.0
    while 2 * student_t_cdf(high, dof) - 1 < level:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * student_t_cdf(middle, dof) - 1 < level else (low, middle)
    return high


def fieller_interval(numerator: float, denominator: float, covariance: ArrayLike, t: float) -> tuple[float, float]:
    """The ratios ρ = a/b that two estimates a and b > 0 leave possible: (a − ρb)² ≤ t²·Var(a − ρb).

    Fieller 1954, "Some Problems in Interval Estimation". For normal estimates the coverage is that of t, which the
    delta method's is not where b is hardly told from 0. Where it is not told from 0 at all, the interval has no upper
    end, inf, as b may be as small as one likes; ratios to a negative b are left out, as are negative ratios to a b that
    may be 0: what is asked for is where something that turns does so.

    Args:
        numerator: a.
        denominator: b, above 0.
        covariance: of (a, b), shape (2, 2).
        t: half the interval's width, in standard errors; see `student_t_quantile`.

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


class Rate(NamedTuple):
    """A share with its 95 % interval."""

    rate: float
    """The share."""
    low: float
    """The interval's lower end."""
    high: float
    """The interval's upper end."""


def share_interval(share: float, n: int) -> Rate:
    """A share of n with Wilson's 95 % interval; which does not shrink to a point at 0 or 1.

    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
    """
    p, z2 = share, 1.96**2
    middle = p + z2 / (2 * n)
    spread = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    scale = 1 + z2 / n
    return Rate(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))
