"""How far annotators agree, raw and beyond what chance would give (Cohen's and Fleiss' κ)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import cohen_kappa_score

from rlhf_gym.labeling.store import Item, Judgement
from rlhf_gym.lm.chat import prompt_key
from rlhf_gym.preferences.records import Preference


class Opinion(NamedTuple):
    """What one annotator said about one comparison."""

    unit: Hashable
    """The comparison: two responses to a prompt."""
    annotator: str
    """The annotator's name."""
    category: str
    """"first", "second" or "tie"."""


class Agreement(NamedTuple):
    """How far annotators agree."""

    annotators: int
    """Annotators who share at least one comparison with another."""
    units: int
    """Comparisons that at least two have judged."""
    raw: float
    """The chance that two judgements of one comparison say the same, averaged over comparisons."""
    cohen: float | None
    """Cohen's κ of two annotators; None for more than two, or where chance alone would always agree."""
    fleiss: float | None
    """Fleiss' κ; None where chance alone would always agree."""

    def __str__(self) -> str:
        named = {"Cohen's κ": self.cohen, "Fleiss' κ": self.fleiss}
        beyond = ", ".join(f"{name} = {value:.2f}" for name, value in named.items() if value is not None)
        share = f"{self.annotators} annotators agree on {self.raw:.0%} of {self.units:,} comparisons that they share"
        return f"{share}: {beyond}" if beyond else share


def agreement(opinions: Iterable[Opinion]) -> Agreement | None:
    """How far annotators agree on the comparisons that several of them have judged; None where there are none.

    Cohen's κ = (p_o − p_e)/(1 − p_e) with p_e = Σ_c p₁(c)·p₂(c) (Cohen 1960) is scikit-learn's.
    """
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
    if len(names) == 2 and len(categories) > 1:
        first, second = ([said[name] for said in shared] for name in names)
        cohen = float(cohen_kappa_score(first, second))
    raw, fleiss = fleiss_kappa(counts)
    return Agreement(len(names), len(shared), raw, cohen, fleiss)


def fleiss_kappa(counts: ArrayLike) -> tuple[float, float | None]:
    """(P̄, κ) of several annotators with κ = (P̄ − P_e)/(1 − P_e) (Fleiss 1971, Psychological Bulletin 76).

    P̄ is the mean of P_i = Σ_c n_ic·(n_ic − 1)/(n_i·(n_i − 1)), the chance that two judgements of unit i say the same.
    P_e = Σ_c p_c² with p_c = Σ_i n_ic/Σ_i n_i. Fleiss has the same n_i for every unit, and so has statsmodels. People
    skip items, so n_i differs here, and each unit counts alike in P̄.

    Args:
        counts: n_ic, how many annotators put unit i into category c, shape (units, categories), at least 2 a unit.

    Returns:
        P̄ and κ; κ is None where everything is in one category, so that P_e = 1.

    Raises:
        ValueError: another shape, a negative count, or a unit with fewer than two judgements.
    """
    table = np.asarray(counts, dtype=np.float64)  # (units, categories)
    if table.ndim != 2 or not table.size or (table < 0).any():
        raise ValueError(f"expected counts >= 0 of shape (units, categories), got shape {table.shape}")
    each = table.sum(axis=1)  # (units,)
    if (each < 2).any():
        raise ValueError(f"expected at least 2 judgements of each unit, got {each.min():.0f}")
    raw = float(((table * (table - 1)).sum(axis=1) / (each * (each - 1))).mean())
    chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return raw, None if chance == 1 else (raw - chance) / (1 - chance)


def opinions_of(judgements: Iterable[Judgement], items: Iterable[Item]) -> list[Opinion]:
    """Judgements as opinions on pairs of responses: a ranking or ratings of K say something about each of C(K,2)."""
    sizes = {item.id: len(item.candidates) for item in items}
    return [
        Opinion((judgement.item, *pair), judgement.annotator, category)
        for judgement in judgements
        for pair, category in _categories(judgement, sizes[judgement.item]).items()
    ]


def _categories(judgement: Judgement, k: int) -> dict[tuple[int, int], str]:
    if judgement.action == "tie":
        return {(0, 1): "tie"}
    if judgement.action == "chosen":
        return {(0, 1): "first" if judgement.value[0] == 0 else "second"}
    if judgement.action not in ("ranking", "ratings"):
        return {}
    sign = -1 if judgement.action == "ranking" else 1
    good = sign * np.asarray(judgement.value)  # (K,), higher is better
    names = {1: "first", -1: "second", 0: "tie"}
    return {(i, j): names[int(np.sign(good[i] - good[j]))] for i, j in combinations(range(k), 2)}


def preference_opinions(preferences: Iterable[Preference]) -> list[Opinion]:
    """Preferences as opinions; the first of two responses is the one whose text sorts first."""
    found = []
    for p in preferences:
        first, second = sorted((p.chosen, p.rejected), key=prompt_key)
        found.append(Opinion((p.prompt, first, second), p.annotator, "first" if p.chosen == first else "second"))
    return found
