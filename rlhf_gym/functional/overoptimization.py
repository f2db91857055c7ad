"""How the gold reward moves as a policy is optimised against a proxy of it: rises, peaks, falls.

Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization", arXiv 2210.10760. With d = √KL(π‖π_ref),
KL per sequence in nats, and R the gold reward less that of π_ref:

    best-of-n:  R(d) = d·(α − β·d)        peak at d = α/(2β)
    RL:         R(d) = d·(α − β·log d)    peak at d = e^(α/β − 1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OveroptimizationFit:
    """A curve of Gao et al. fitted to measured points."""

    alpha: float
    """α: how fast the gold reward rises at first."""
    beta: float
    """β: how fast it turns. Without a positive one, it never falls within what was measured."""
    peak_distance: float
    """d = √KL where the fitted gold reward is highest; inf where the curve never turns, 0 where it only falls."""
    peak_gold: float
    """The fitted gold reward there; inf where the curve never turns."""
    residual: float
    """Root mean square of measured − fitted gold reward."""

    @property
    def peak_kl(self) -> float:
        """KL at the peak, d²."""
        return self.peak_distance**2


def best_of_n_kl(n: ArrayLike) -> Array:
    """log n − (n − 1)/n, the KL of best-of-n from the policy it samples (Stiennon et al. 2020, arXiv 2009.01325).

    Exact where no two samples tie; otherwise an upper bound (Beirami et al. 2024, arXiv 2401.01879).

    Shapes: n of any shape, and so is the result.

    Raises:
        ValueError: an n below 1.
    """
    n = np.asarray(n, dtype=np.float64)
    if not np.all(n >= 1):
        raise ValueError(f"expected n >= 1, got {n.min()}")
    return np.log(n) - (n - 1) / n


def best_of_n_curve(kl: ArrayLike, alpha: float, beta: float) -> Array:
    """R(d) = d·(α − β·d) at d = √KL. Shapes: kl of any shape, and so is the result."""
    d = _distance(kl)
    return d * (alpha - beta * d)


def rl_curve(kl: ArrayLike, alpha: float, beta: float) -> Array:
    """R(d) = d·(α − β·log d) at d = √KL, 0 at d = 0. Shapes: kl of any shape, and so is the result."""
    d = _distance(kl)
    return d * alpha - beta * _d_log_d(d)


def fit_best_of_n(kl: ArrayLike, gold: ArrayLike) -> OveroptimizationFit:
    """Least squares of gold on d and −d²: linear in (α, β), so exact and without a start value.

    Args:
        kl: KL(π‖π_ref) per sequence of each point, shape (points,).
        gold: gold reward less that of π_ref, shape (points,).

    Raises:
        ValueError: shapes differ, a KL is negative, something is not finite, or fewer than two distinct KL > 0.
    """
    d, gold = _points(kl, gold)
    alpha, beta, residual = _least_squares(np.stack([d, -(d**2)], axis=1), gold)
    if beta > 0:
        peak = max(alpha / (2 * beta), 0.0)
        return OveroptimizationFit(alpha, beta, peak, float(best_of_n_curve(peak**2, alpha, beta)), residual)
    return _without_a_peak(alpha, beta, residual, rises=beta < 0 or alpha > 0)


def fit_rl(kl: ArrayLike, gold: ArrayLike) -> OveroptimizationFit:
    """Least squares of gold on d and −d·log d: linear in (α, β), so exact and without a start value.

    Arguments and errors as `fit_best_of_n`.
    """
    d, gold = _points(kl, gold)
    alpha, beta, residual = _least_squares(np.stack([d, -_d_log_d(d)], axis=1), gold)
    if beta > 0 and alpha / beta < 300:  # beyond, e^(α/β − 1) is past anything measured and soon past a float
        peak = math.exp(alpha / beta - 1)
        return OveroptimizationFit(alpha, beta, peak, float(rl_curve(peak**2, alpha, beta)), residual)
    return _without_a_peak(alpha, beta, residual, rises=beta != 0 or alpha > 0)


def goodhart_gold(proxy: ArrayLike, noise_std: float) -> Array:
    """E[gold | proxy] = proxy/(1 + σ²): what selecting by a noisy proxy is worth in gold.

    For gold z ~ N(0,1) and proxy z + σε, ε ~ N(0,1) independent. It holds of averages over any selection by the proxy
    alone, best-of-n included: regressional Goodhart (Manheim & Garrabrant 2018, arXiv 1803.04585). A control: gold
    rises with the proxy for ever here, so a peak is never due to noise of this kind.

    Shapes: proxy of any shape, and so is the result.

    Raises:
        ValueError: σ is negative.
    """
    if not noise_std >= 0:
        raise ValueError(f"expected noise_std >= 0, got {noise_std}")
    return np.asarray(proxy, dtype=np.float64) / (1 + noise_std**2)


def _distance(kl: ArrayLike) -> Array:
    kl = np.asarray(kl, dtype=np.float64)
    if not np.all(kl >= 0):
        raise ValueError(
            f"expected KL >= 0, got {kl.min()}: near 0 an estimate from samples can be negative, clip it first"
        )
    return np.sqrt(kl)


def _d_log_d(d: Array) -> Array:
    return d * np.log(np.where(d > 0, d, 1.0))


def _points(kl: ArrayLike, gold: ArrayLike) -> tuple[Array, Array]:
    d, gold = _distance(kl), np.asarray(gold, dtype=np.float64)
    if d.ndim != 1 or gold.shape != d.shape:
        raise ValueError(f"expected kl and gold of one shape (points,), got {d.shape} and {gold.shape}")
    if not (np.isfinite(d).all() and np.isfinite(gold).all()):
        raise ValueError("expected finite kl and gold, got NaN or infinity among them")
    distinct = np.unique(d[d > 0]).size
    if distinct < 2:
        raise ValueError(f"expected at least 2 distinct KL > 0 to fit two parameters, got {distinct}")
    return d, gold


def _least_squares(features: Array, gold: Array) -> tuple[float, float, float]:
    (alpha, beta), *_ = np.linalg.lstsq(features, gold, rcond=None)
    residual = float(np.sqrt(np.mean((gold - features @ np.array([alpha, beta])) ** 2)))
    return float(alpha), float(beta), residual


def _without_a_peak(alpha: float, beta: float, residual: float, *, rises: bool) -> OveroptimizationFit:
    peak, gold = (math.inf, math.inf) if rises else (0.0, 0.0)
    return OveroptimizationFit(alpha, beta, peak, gold, residual)
