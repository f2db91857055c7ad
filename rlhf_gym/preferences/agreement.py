"""How far annotators agree: raw, and beyond what chance would give (Cohen's and Fleiss' κ); and how far scores do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlhf_gym.preferences.store_records import Item, Judgement


class Opinion(NamedTuple):
    """What one annotator said about one thing that can be agreed on."""

    unit: Hashable
    """The thing: two responses to a prompt."""
    annotator: str
    """Who."""
    category: str
    """"first", "second" or "tie"."""


class Agreement(NamedTuple):
    """How far annotators agree."""

    annotators: int
    """Annotators who share at least one unit with another."""
    units: int
    """Units that at least two have judged."""
    raw: float
    """Share of pairs of judgements of one unit that say the same, each unit counting alike."""
    cohen: float | None
    """Cohen's κ, where it is two annotators; None where it is more, or where chance alone would always agree."""
    fleiss: float | None
    """Fleiss' κ; None where chance alone would always agree."""


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """κ = (p_o − p_e)/(1 − p_e) of two annotators, p_e = Σ_c p₁(c)·p₂(c) (Cohen 1960).

    Args:
        first: what one said, of each unit, length (units,).
        second: what the other said of the same.

    Returns:
        κ; None where both always say the same one thing: p_e = 1, and there is nothing to be beyond.

    Raises:
        ValueError: no units, or unequally many.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"expected two annotators' judgements of the same units, got {len(first)} and {len(second)}")
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    one, other = Counter(first), Counter(second)
    expected = sum(one[c] * other[c] for c in one) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """κ = (P̄ − P_e)/(1 − P_e) of several annotators (Fleiss 1971, Psychological Bulletin 76).

    P_i = Σ_c n_ic·(n_ic − 1)/(n_i·(n_i − 1)), P̄ their mean, p_c = Σ_i n_ic/Σ_i n_i, P_e = Σ_c p_c². Fleiss has the same
    n_i for every unit; where they differ this is the plain generalisation, each unit counting alike in P̄.

    Args:
        counts: n_ic, how many annotators put unit i into category c, shape (units, categories), at least 2 a unit.

    Returns:
        κ; None where everything is in one category: P_e = 1.

    Raises:
        ValueError: another shape, a negative count, or a unit with fewer than two judgements.
    """
    table = np.asarray(counts, dtype=np.float64)  # (units, categories)
    if table.ndim != 2 or not table.size or (table < 0).any():
        raise ValueError(f"expected counts >= 0 of shape (units, categories), got shape {table.shape}")
    if (table.sum(axis=1) < 2).any():
        raise ValueError(f"expected at least 2 judgements of each unit, got {table.sum(axis=1).min():.0f}")
    shares = table.sum(axis=0) / table.sum()  # (categories,)
    chance = float((shares**2).sum())
    return None if chance == 1 else (raw_agreement(table) - chance) / (1 - chance)


def raw_agreement(counts: ArrayLike) -> float:
    """P̄ of `fleiss_kappa`: the chance that two of a unit's judgements, drawn at random, say the same."""
    table = np.asarray(counts, dtype=np.float64)  # (units, categories)
    each = table.sum(axis=1)  # (units,)
    return float(((table * (table - 1)).sum(axis=1) / (each * (each - 1))).mean())


def agreement(opinions: Iterable[Opinion]) -> Agreement | None:
    """How far annotators agree on the units that more than one of them has judged; None where there are none."""
    by_unit: dict[Hashable, dict[str, str]] = defaultdict(dict)
    for unit, annotator, category in opinions:
        by_unit[unit][annotator] = category
    shared = [said for said in by_unit.values() if len(said) > 1]
    if not shared:
        return None
    categories = sorted({category for said in shared for category in said.values()})
    counts = np.array([[list(said.values()).count(c) for c in categories] for said in shared])  # (units, categories)
    names = sorted({name for said in shared for name in said})
    cohen = None
    if len(names) == 2:
        cohen = cohen_kappa([said[names[0]] for said in shared], [said[names[1]] for said in shared])
    return Agreement(len(names), len(shared), raw_agreement(counts), cohen, fleiss_kappa(counts))


def opinions_of(judgements: Iterable[Judgement], items: Iterable[Item]) -> list[Opinion]:
    """Judgements as opinions on pairs of responses: a ranking or ratings of K say something about each of C(K,2)."""
    kinds = {item.id: item for item in items}
    found = []
    for judgement in judgements:
        for (i, j), category in _categories(judgement, len(kinds[judgement.item].candidates)).items():
            found.append(Opinion((judgement.item, i, j), judgement.annotator, category))
    return found


def _categories(judgement: Judgement, k: int) -> dict[tuple[int, int], str]:
    if judgement.action == "tie":
        return {(0, 1): "tie"}
    if judgement.action == "chosen":
        return {(0, 1): "first" if judgement.value[0] == 0 else "second"}
    if judgement.action not in ("ranking", "ratings"):
        return {}
    good = np.asarray(judgement.value) * (-1 if judgement.action == "ranking" else 1)  # (K,), higher is better
    names = {1: "first", -1: "second", 0: "tie"}
    return {(i, j): names[int(np.sign(good[i] - good[j]))] for i, j in combinations(range(k), 2)}


def score_agreement(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Share of preferences in which r_φ scores the chosen response higher, equal scores counting half.

    Shapes: both (preferences,).
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise ValueError(f"expected scores of one shape (preferences,), got {chosen.shape} and {rejected.shape}")
    return float((0.5 * (1 + np.sign(chosen - rejected))).mean())
