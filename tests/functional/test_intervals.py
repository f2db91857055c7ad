"""Fieller's interval against its definition and by simulation, Wilson's against a printed table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_gym.functional import fieller_interval, share_interval


def test_fieller_holds_exactly_the_ratios_that_are_not_rejected() -> None:
    a, b, v, t = 1.2, 0.6, np.array([[0.02, 0.005], [0.005, 0.01]]), 2.0
    low, high = fieller_interval(a, b, v, t)
    ratios = np.linspace(-2, 8, 100_001)
    spread = np.sqrt(v[0, 0] - 2 * ratios * v[0, 1] + ratios**2 * v[1, 1])
    kept = ratios[np.abs(a - ratios * b) <= t * spread]
    assert (low, high) == pytest.approx((kept.min(), kept.max()), abs=2e-4)
    assert low < a / b < high


def test_fieller_without_an_upper_end() -> None:
    v = np.diag([0.01, 1.0])
    low, high = fieller_interval(3.0, 0.5, v, 2.0)  # b is not told from 0, a is
    assert 0 < low < 6 and high == math.inf
    assert fieller_interval(0.1, 0.5, np.diag([1.0, 1.0]), 2.0) == (-math.inf, math.inf)
    low, high = fieller_interval(-3.0, 0.5, v, 2.0)
    assert low == -math.inf and -6 < high < 0


def test_fieller_is_a_point_where_nothing_is_unsure() -> None:
    assert fieller_interval(1.0, 0.5, np.zeros((2, 2)), 2.0) == pytest.approx((2.0, 2.0))


def test_fieller_covers_as_often_as_it_says() -> None:
    """b is 2.5 standard errors from 0: the delta method would be far off."""
    rng = np.random.default_rng(0)
    truth, v = (2.0, 1.0), np.array([[0.16, 0.02], [0.02, 0.16]])
    draws = rng.multivariate_normal(truth, v, 4000)
    inside = []
    for a, b in draws:
        if b > 0:
            low, high = fieller_interval(a, b, v, 1.96)
            inside.append(low <= 2 <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_fieller_refuses() -> None:
    with pytest.raises(ValueError, match="denominator > 0, got -1"):
        fieller_interval(1.0, -1.0, np.eye(2), 2.0)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got \(3,\)"):
        fieller_interval(1.0, 1.0, np.ones(3), 2.0)


def test_wilsons_interval_of_a_printed_table() -> None:
    """Newcombe 1998 (Statistics in Medicine 17), table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    table = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718))
    for wins, count, low, high in table:
        found = share_interval(wins / count, count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(ValueError, match=r"of at least 1, got 0\.5 of 0"):
        share_interval(0.5, 0)
