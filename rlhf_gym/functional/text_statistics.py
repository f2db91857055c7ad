"""Statistics of texts: how much one repeats itself, which tokens a sum comes from. A token is an id, or a word."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class TokenShare(NamedTuple):
    """One token's part of a sum over tokens."""

    token: int
    """The token's id."""
    occurrences: int
    """How often the token occurs."""
    total: float
    """The sum over the token's occurrences."""
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
    lengths = range(1, len(tokens))
    return bisect_left(lengths, True, key=lambda n: repetition(tokens, n) == 0)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two samples, (n,) each, ties at their mean rank; NaN where one is constant.

    Raises:
        ValueError: their shapes differ.
    """
    from scipy.stats import spearmanr  # takes a second to import

    a = np.asarray(x, dtype=np.float64)  # (n,)
    b = np.asarray(y, dtype=np.float64)  # (n,)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two samples of one shape (n,), got {a.shape} and {b.shape}")
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def token_shares(tokens: ArrayLike, values: ArrayLike) -> list[TokenShare]:
    """Which tokens a sum of values comes from, (n,) each, the largest part first; ties by id.

    With values log π − log π_ref and the tokens of a rollout it says which ones carry the KL.
    """
    ids = np.asarray(tokens, dtype=np.int64)  # (n,)
    amounts = np.asarray(values, dtype=np.float64)  # (n,)
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
