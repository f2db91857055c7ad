"""Whether a reward's probabilities are calibrated, and whether its accuracy is more than luck or more than length.

A reward model prefers y to y' with probability σ(Δ), Δ = r(y) − r(y'); an annotator says whether it was right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc

Array = NDArray[np.float64]


class ReliabilityCurve(NamedTuple):
    """The points of a reliability diagram, a bin each; bins without answers have NaN for both means."""

    low: Array
    """Lower end of each bin of confidence, (bins,)."""
    high: Array
    """Upper end of the bin, (bins,)."""
    n: NDArray[np.int64]
    """How many answers the bin holds, (bins,)."""
    confidence: Array
    """The mean confidence of these answers, (bins,)."""
    accuracy: Array
    """The share of these answers that were right, (bins,)."""

    @property
    def error(self) -> float:
        """Expected calibration error: Σ_b (n_b/n)·|accuracy_b − confidence_b|."""
        used = self.n > 0
        gaps = self.n[used] * np.abs(self.accuracy[used] - self.confidence[used])  # (used,)
        return float(gaps.sum() / self.n.sum())


def confidence(delta: ArrayLike) -> Array:
    """max(σ(Δ), 1 − σ(Δ)) = σ(|Δ|): how sure a reward is of its own answer. Shapes: any, and so is the result."""
    return 0.5 * (1 + np.tanh(np.abs(np.asarray(delta, dtype=np.float64)) / 2))


def rightness(delta: ArrayLike) -> Array:
    """1 where Δ > 0 (the chosen response scores higher), 0 where Δ < 0, ½ at a tie. Shapes: any, as the result."""
    return 0.5 * (1 + np.sign(np.asarray(delta, dtype=np.float64)))


def reliability_curve(confidence: ArrayLike, right: ArrayLike, *, bins: int = 10) -> ReliabilityCurve:
    """Confidence against accuracy in equal bins of [½, 1] (Guo et al. 2017, arXiv 1706.04599, section 2).

    Two answers are possible, so the one given never has a probability below ½.

    Args:
        confidence: the probability of the answer given, (n,), in [½, 1].
        right: 1 where it was right, 0 where it was wrong, ½ at a tie, (n,).
        bins: how many.

    Raises:
        ValueError: no answers, shapes that differ, or a confidence out of range.
    """
    p = np.asarray(confidence, dtype=np.float64)  # (n,)
    right = np.asarray(right, dtype=np.float64)  # (n,)
    if p.ndim != 1 or p.shape != right.shape or not p.size:
        raise ValueError(f"expected confidence and right of one shape (n,), n >= 1, got {p.shape} and {right.shape}")
    if not (np.all(p >= 0.5) and np.all(p <= 1)):
        raise ValueError(f"expected confidence in [0.5, 1], got {p[~((p >= 0.5) & (p <= 1))][0]}")
    which = np.minimum(((p - 0.5) * 2 * bins).astype(int), bins - 1)  # (n,)
    count = np.bincount(which, minlength=bins)  # (bins,)
    sums = [np.bincount(which, weights=values, minlength=bins) for values in (p, right)]  # (bins,) each
    means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]  # (bins,) each
    edges = np.linspace(0.5, 1.0, bins + 1)  # (bins + 1,)
    return ReliabilityCurve(edges[:-1], edges[1:], count, means[0], means[1])


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike, *, bins: int = 10) -> float:
    """Σ_b (n_b/n)·|accuracy_b − confidence_b| over equal bins of confidence in [½, 1]. See `reliability_curve`."""
    return reliability_curve(confidence, right, bins=bins).error


def chance_probability(right: float, n: int) -> float:
    """P(X ≥ right) for X ~ Binomial(n, ½): how often tossing a coin n times does as well. One-sided and exact.

    Ties count half, and a half is rounded down. The answers are taken as independent; those about one prompt are not
    quite, so read a probability near the threshold with care.

    Raises:
        ValueError: no answers, or more right ones than answers.
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"expected 0 <= right <= n and n >= 1, got right={right} and n={n}")
    return float(bdtrc(math.floor(right) - 1, n, 0.5))


class LengthControlled(NamedTuple):
    """What `length_controlled_accuracy` returns."""

    accuracy: float
    """The accuracy, NaN where no bucket has pairs of both kinds."""
    used: int
    """How many pairs the buckets hold that it is measured on."""


def length_controlled_accuracy(
    right: ArrayLike, longer: ArrayLike, *, edges: Sequence[float] = (0, 2, 5, 10)
) -> LengthControlled:
    """Accuracy after weighting pairs so that "the longer one is the better one" tells nothing.

    With ℓ = words of the chosen response − words of the rejected one, pairs fall into buckets b of |ℓ|: 0, then up to
    each edge, then beyond. In every bucket pairs whose chosen response is the longer and those whose chosen is the
    shorter get the same total weight:

        LC = Σ_b (n_b/Σ n) · ½·(accuracy_b(ℓ > 0) + accuracy_b(ℓ < 0)),   and accuracy_b(ℓ = 0) itself in bucket 0

    Buckets that lack either kind are left out. A reward that always prefers the longer response, or the shorter one,
    gets exactly ½, however often annotators choose the longer. AlpacaEval's length control (Dubois et al. 2024, arXiv
    2404.04475) fits a logistic model of ℓ instead; weighting has no parameter to fit.

    Args:
        right: 1, ½ at a tie, or 0, (n,).
        longer: ℓ of each pair, (n,).
        edges: upper ends of the buckets of |ℓ|, rising from 0.

    Raises:
        ValueError: shapes that differ, or edges that do not rise from 0.
    """
    right = np.asarray(right, dtype=np.float64)  # (n,)
    longer = np.asarray(longer, dtype=np.float64)  # (n,)
    if right.ndim != 1 or right.shape != longer.shape:
        raise ValueError(f"expected right and longer of one shape (n,), got {right.shape} and {longer.shape}")
    if not edges or edges[0] != 0 or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"expected edges that rise from 0, got {tuple(edges)}")
    bucket = np.searchsorted(np.asarray(edges, dtype=np.float64), np.abs(longer))  # (n,): 0 is equal length
    total = 0.0
    used = 0
    for b in range(len(edges) + 1):
        here = bucket == b
        halves = [right[here]] if b == 0 else [right[here & (longer > 0)], right[here & (longer < 0)]]
        if all(len(half) for half in halves):
            total += here.sum() * float(np.mean([half.mean() for half in halves]))
            used += int(here.sum())
    return LengthControlled(total / used if used else math.nan, used)
