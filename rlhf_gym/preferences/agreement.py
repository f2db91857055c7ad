"""How far annotators agree: raw, and beyond what chance would give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from rlhf_gym.preferences.records import Preference


def raw_agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Share of items (n,) that two annotators put into the same category.

    Raises:
        ValueError: no items, or not as many from the one as from the other.
    """
    _check(first, second)
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """κ = (p_o − p_e)/(1 − p_e): agreement p_o beyond the p_e = Σ_c p₁(c)·p₂(c) that chance gives (Cohen 1960).

    1 for full agreement, 0 for what independent answers give; 1 too where both only ever say one and the same thing.
    Two people who both always look at the better of two responses have p_e = ½ if the sides are drawn.

    Raises:
        ValueError: no items, or not as many from the one as from the other.
    """
    observed = raw_agreement(first, second)
    n = len(first)
    categories = set(first) | set(second)
    expected = sum(list(first).count(c) * list(second).count(c) for c in categories) / n**2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(counts: ArrayLike) -> float:
    """κ of any number of annotators (Fleiss 1971), items having possibly been judged by different ones.

    With n_ij of the n_i ≥ 2 annotators of item i in category j: agreement p_o is the mean over the items of
    Σ_j n_ij(n_ij − 1)/(n_i(n_i − 1)), p_e = Σ_j p_j², p_j the share of category j; κ = (p_o − p_e)/(1 − p_e).

    Args:
        counts: n_ij, (items, categories).

    Raises:
        ValueError: another shape, or an item with fewer than two judgements.
    """
    table = np.asarray(counts, dtype=np.float64)  # (items, categories)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"expected counts of shape (items, categories), at least one item, got {table.shape}")
    total = table.sum(axis=1)  # (items,)
    if total.min() < 2:
        raise ValueError(f"expected at least 2 judgements of each item, got {total.min():g} of item {total.argmin()}")
    observed = float(((table * (table - 1)).sum(axis=1) / (total * (total - 1))).mean())
    expected = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def pair_counts(preferences: Iterable[Preference]) -> np.ndarray:
    """For `fleiss_kappa`: of each pair judged at least twice, how often each of its two responses won, (pairs, 2).

    Which of two responses is the first category is the order of their texts: arbitrary, as it should be.
    """
    wins: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for p in preferences:
        first, second = sorted((p.chosen, p.rejected))
        wins[p.prompt, first, second][p.chosen == second] += 1
    return np.array([w for w in wins.values() if sum(w) >= 2]).reshape(-1, 2)


def pairwise_agreement(preferences: Iterable[Preference]) -> float:
    """Share of the pairs of judgements on one and the same pair of responses that agree; NaN if nothing met twice."""
    agreeing = compared = 0
    for wins in pair_counts(preferences).tolist():
        answers = [0] * wins[0] + [1] * wins[1]
        agreeing += sum(a == b for a, b in combinations(answers, 2))
        compared += len(answers) * (len(answers) - 1) // 2
    return agreeing / compared if compared else float("nan")


def _check(first: Sequence[Hashable], second: Sequence[Hashable]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected both annotators' answers to the same items, got {len(first)} and {len(second)}")
