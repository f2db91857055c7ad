"""How choices come from scores: the probabilities of comparisons, ties, rankings and ratings, and draws from them.

One family: a score plus logistic or Gumbel noise. Without noise all of them say what the scores say; a temperature is
the noise's size, so that scores may as well be divided by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def bradley_terry(delta: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """P(y1 ≻ y2) = σ(Δ/τ) of differences Δ = r(y1) − r(y2), (n,) → (n,); τ = 0: 1, ½ or 0 by the sign of Δ.

    Bradley & Terry 1952.
    """
    delta = np.asarray(delta, dtype=np.float64)
    if temperature == 0:
        return 0.5 * (1 + np.sign(delta))
    return 0.5 * (1 + np.tanh(delta / (2 * temperature)))  # σ, without overflow


def rao_kupper(delta: ArrayLike, threshold: float, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(P(y1 ≻ y2), P(tie)): whoever is ahead by less than η, noise included, is not told apart (Rao & Kupper 1967).

    P(y1 ≻ y2) = σ((Δ − η)/τ), P(y2 ≻ y1) = σ((−Δ − η)/τ), and what is left is a tie. η is in the unit of the scores.

    Args:
        delta: differences of scores, (n,).
        threshold: η ≥ 0; 0 for no ties (but where τ = 0 and Δ = 0, a coin).
        temperature: τ.
    """
    delta = np.asarray(delta, dtype=np.float64)
    if temperature == 0 and threshold > 0:
        first, second = 1.0 * (delta > threshold), 1.0 * (delta < -threshold)
    else:
        first = bradley_terry(delta - threshold, temperature)
        second = bradley_terry(-delta - threshold, temperature)
    return first, np.clip(1 - first - second, 0, 1)


def plackett_luce_log_prob(scores: ArrayLike, ranking: Sequence[int], temperature: float = 1.0) -> float:
    """log P(ranking) = Σ_k [s(k-th)/τ − log Σ_{j ≥ k} e^{s(j-th)/τ}].

    The best is drawn first, then the best of the rest (Plackett 1975).

    Args:
        scores: of the K items, (K,).
        ranking: the rank of each item, 1 the best, no two equal.
        temperature: τ > 0.

    Raises:
        ValueError: ranks that are no permutation of 1 … K.
    """
    scaled = np.asarray(scores, dtype=np.float64) / temperature
    if sorted(ranking) != list(range(1, len(scaled) + 1)):
        raise ValueError(f"expected ranks that are a permutation of 1 … {len(scaled)}, got {list(ranking)}")
    by_rank = scaled[np.argsort(ranking)]  # (K,), the best first
    rest = np.logaddexp.accumulate(by_rank[::-1])[::-1]  # (K,), log Σ over this and all later ones
    return float((by_rank - rest).sum())


def draw_ranking(scores: ArrayLike, rng: np.random.Generator, temperature: float = 1.0) -> list[int]:
    """The rank of each of K items, 1 the best, drawn from Plackett–Luce: the order of s/τ plus Gumbel noise.

    Two of the items are then ordered as Bradley–Terry has it (Yellott 1977). τ = 0: the order of the scores themselves,
    equal ones in a random order.
    """
    values = np.asarray(scores, dtype=np.float64)
    noise = rng.gumbel(size=len(values))  # (K,)
    order = np.lexsort((noise, values))[::-1] if temperature == 0 else np.argsort(values + temperature * noise)[::-1]
    ranks = np.empty(len(values), dtype=int)
    ranks[order] = np.arange(1, len(values) + 1)
    return ranks.tolist()


def rating_probabilities(scores: ArrayLike, thresholds: Sequence[float], temperature: float = 1.0) -> np.ndarray:
    """P(rating) of ratings 1 … C+1, (n, C+1): P(rating ≤ j) = σ((c_j − s)/τ), the cumulative logit (McCullagh 1980).

    Args:
        scores: (n,).
        thresholds: c_1 < … < c_C, in the unit of the scores.
        temperature: τ.

    Raises:
        ValueError: thresholds that do not rise.
    """
    cuts = np.asarray(thresholds, dtype=np.float64)
    if not len(cuts) or (np.diff(cuts) <= 0).any():
        raise ValueError(f"expected thresholds that rise, at least one, got {list(thresholds)}")
    below = bradley_terry(cuts - np.asarray(scores, dtype=np.float64)[:, None], temperature)  # (n, C)
    edges = np.concatenate([np.zeros((len(below), 1)), below, np.ones((len(below), 1))], axis=1)  # (n, C + 2)
    return np.diff(edges, axis=1)


def draw_ratings(
    scores: ArrayLike, thresholds: Sequence[float], rng: np.random.Generator, temperature: float = 1.0
) -> list[int]:
    """A rating 1 … C+1 of each of n scores, drawn from `rating_probabilities`."""
    cumulative = rating_probabilities(scores, thresholds, temperature).cumsum(axis=1)[:, :-1]  # (n, C)
    return (1 + (rng.random((len(cumulative), 1)) >= cumulative).sum(axis=1)).tolist()
