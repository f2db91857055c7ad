"""How much a text repeats itself, and whether scores go with length. Tokens are ids, or words: anything hashable."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class TokenShare(NamedTuple):
    """One token's part of a sum over tokens."""

    token: int
    """Its id."""
    occurrences: int
    """How often it occurs."""
    total: float
    """What its occurrences add up to."""
    share: float
    """Its part of the whole sum, which may exceed 1 where other tokens lower the sum."""


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """The n-grams of a text in their order, T − n + 1 of them; none if it is shorter.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"expected n >= 1, got {n}")
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Distinct n-grams over all n-grams, among all the texts together (Li et al. 2016, arXiv:1510.03055); 0 for none.

    It falls with the number of texts and with their length: compare sets of one size.
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / max(1, len(found))


def repetition(tokens: Sequence[Hashable], n: int) -> float:
    """The share of n-grams that were there before, 1 − distinct n-grams / n-grams; 0 for a text shorter than n.

    seq-rep-n of Welleck et al. 2020 (arXiv:1908.04319).
    """
    found = ngrams(tokens, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def longest_repeat(tokens: Sequence[Hashable]) -> int:
    """Tokens in the longest stretch that occurs at two places of the text; they may overlap: (a, a, a) has 2.

    A stretch of k occurs twice only if one of k − 1 does, so k is found by bisection.
    """
    low, high = 0, max(0, len(tokens) - 1)  # a repeat of `low` is known; none is longer than `high`
    while low < high:
        middle = (low + high + 1) // 2
        found = ngrams(tokens, middle)
        low, high = (middle, high) if len(set(found)) < len(found) else (low, middle - 1)
    return low


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Cov[x, y] / √(Var[x]·Var[y]) of two samples, (n,) each; NaN where one of them is constant.

    Raises:
        ValueError: their shapes differ.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)  # (n,)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two samples of one shape (n,), got {a.shape} and {b.shape}")
    if len(a) < 2:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else float("nan")


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank; (n,) each."""
    return pearson(_ranks(x), _ranks(y))


def token_shares(tokens: ArrayLike, values: ArrayLike) -> list[TokenShare]:
    """Which tokens a sum of values comes from, (n,) each, the largest part first; ties by id.

    With values log π − log π_ref and the tokens of a rollout it says which ones carry the KL.
    """
    ids, amounts = np.asarray(tokens, dtype=np.int64), np.asarray(values, dtype=np.float64)  # (n,)
    if ids.ndim != 1 or ids.shape != amounts.shape:
        raise ValueError(f"expected tokens and values of one shape (n,), got {ids.shape} and {amounts.shape}")
    kinds, places, counts = np.unique(ids, return_inverse=True, return_counts=True)  # (k,), (n,), (k,)
    sums = np.bincount(places, weights=amounts, minlength=len(kinds))  # (k,)
    whole = float(amounts.sum())
    order = np.argsort(-sums, kind="stable")
    return [
        TokenShare(int(kinds[i]), int(counts[i]), float(sums[i]), float(sums[i]) / whole if whole else float("nan"))
        for i in order
    ]


def _ranks(values: ArrayLike) -> np.ndarray:
    """Ranks from 1, ties at their mean, (n,) float64."""
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)  # (n,), (k,)
    last = np.cumsum(counts)  # (k,)
    return (last - (counts - 1) / 2)[places]
