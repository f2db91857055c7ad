"""Probabilities by hand, and draws that have them: within 4 standard errors on fixed seeds."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from rlhf_gym.preferences.choice_models import (
    bradley_terry,
    draw_ranking,
    draw_ratings,
    plackett_luce_log_prob,
    rao_kupper,
    rating_probabilities,
)

N = 20_000


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bradley_terry() -> None:
    assert bradley_terry([-0.5, 0.0, 1e6, -1e6]).tolist() == pytest.approx([0.377541, 0.5, 1, 0], abs=1e-6)
    assert bradley_terry([-0.5], 2.0)[0] == pytest.approx(sigma(-0.25), abs=1e-12)
    assert bradley_terry([-0.1, 0, 0.1], 0).tolist() == [0, 0.5, 1]


def test_rao_kupper() -> None:
    """With π = e^s and θ = e^η, P(y1 ≻ y2) = π1/(π1 + θ·π2), P(tie) = π1·π2(θ² − 1)/((π1 + θπ2)(θπ1 + π2))."""
    p1, p2, theta = math.exp(1.0), math.exp(0.4), math.exp(0.3)
    first, tie = rao_kupper([0.6, -0.6], 0.3)
    assert first.tolist() == pytest.approx([p1 / (p1 + theta * p2), p2 / (p2 + theta * p1)], abs=1e-12)
    expected = p1 * p2 * (theta**2 - 1) / ((p1 + theta * p2) * (theta * p1 + p2))
    assert tie.tolist() == pytest.approx([expected] * 2, abs=1e-12)
    first, tie = rao_kupper([0.6, 0.0], 0.0)
    assert first.tolist() == pytest.approx([sigma(0.6), 0.5]) and tie.tolist() == pytest.approx([0, 0], abs=1e-15)
    first, tie = rao_kupper([0.2, 0.4, -0.4], 0.3, 0.0)
    assert first.tolist() == [0, 1, 0] and tie.tolist() == [1, 0, 0]


def test_plackett_luce_is_a_distribution_over_rankings_and_is_drawn_from() -> None:
    scores, temperature = [0.0, 0.5, 1.2], 0.8
    probabilities = {r: math.exp(plackett_luce_log_prob(scores, r, temperature)) for r in permutations((1, 2, 3))}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-12)
    e = [math.exp(s / temperature) for s in scores]
    assert probabilities[3, 2, 1] == pytest.approx(e[2] / sum(e) * e[1] / (e[0] + e[1]), abs=1e-12)
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(draw_ranking(scores, rng, temperature)) for _ in range(N))
    chi_squared = sum((drawn[r] - N * p) ** 2 / (N * p) for r, p in probabilities.items())
    assert chi_squared < 20.5, "the 99.9 % point of χ² with 5 degrees of freedom"
    wins = sum(n for ranking, n in drawn.items() if ranking[2] < ranking[0])
    p = sigma(1.2 / temperature)
    assert abs(wins / N - p) < 4 * math.sqrt(p * (1 - p) / N), "two of them are ordered as Bradley–Terry has it"


def test_rankings_without_noise() -> None:
    rng = np.random.default_rng(0)
    assert draw_ranking([0.1, 3.0, -1.0], rng, 0) == [2, 1, 3]
    ties = Counter(tuple(draw_ranking([1.0, 1.0, 0.0], rng, 0)) for _ in range(2000))
    assert set(ties) == {(1, 2, 3), (2, 1, 3)} and abs(ties[1, 2, 3] - 1000) < 4 * math.sqrt(500)


def test_ratings() -> None:
    table = rating_probabilities([0.0, 1.0], [-1.0, 0.5], 0.5)
    assert table.shape == (2, 3) and table.sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-12)
    assert table[0].tolist() == pytest.approx([sigma(-2), sigma(1) - sigma(-2), 1 - sigma(1)], abs=1e-12)
    drawn = Counter(draw_ratings([0.0] * N, [-1.0, 0.5], np.random.default_rng(0), 0.5))
    chi_squared = sum((drawn[j + 1] - N * p) ** 2 / (N * p) for j, p in enumerate(table[0]))
    assert chi_squared < 13.8, "the 99.9 % point of χ² with 2 degrees of freedom"
    assert draw_ratings([-2.0, 0.0, 2.0], [-1.0, 0.5], np.random.default_rng(0), 0) == [1, 2, 3]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"permutation of 1 … 2, got \[1, 1\]"):
        plackett_luce_log_prob([0.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match=r"thresholds that rise, at least one, got \[1.0, 1.0\]"):
        rating_probabilities([0.0], [1.0, 1.0])
