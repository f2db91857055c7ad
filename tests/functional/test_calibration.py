"""Calibration, chance and length: by hand, and what a reward that knows nothing but length gets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_gym.functional import (
    chance_probability,
    confidence,
    expected_calibration_error,
    length_controlled_accuracy,
    reliability_curve,
    rightness,
)


def test_confidence_and_rightness_by_hand() -> None:
    assert confidence([0.0, math.log(3), -math.log(3), 1e4]) == pytest.approx([0.5, 0.75, 0.75, 1.0])
    assert rightness([2.0, 0.0, -1e-9]).tolist() == [1.0, 0.5, 0.0]


def test_a_reliability_curve_by_hand() -> None:
    """Five bins of a tenth: .55 .58 | .62 | | | .95 1."""
    curve = reliability_curve([0.55, 0.58, 0.62, 0.95, 1.0], [1, 0, 1, 1, 0.5], bins=5)
    assert curve.low == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9]) and curve.high[-1] == 1.0
    assert curve.n.tolist() == [2, 1, 0, 0, 2]
    assert curve.confidence == pytest.approx([0.565, 0.62, np.nan, np.nan, 0.975], nan_ok=True)
    assert curve.accuracy == pytest.approx([0.5, 1.0, np.nan, np.nan, 0.75], nan_ok=True)
    assert curve.error == pytest.approx((2 * 0.065 + 0.38 + 2 * 0.225) / 5)


def test_calibration_error_of_calibrated_and_overconfident_answers() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, size=200_000)
    right = (rng.random(200_000) < sure).astype(float)
    assert expected_calibration_error(sure, right) < 0.005
    assert expected_calibration_error(np.ones(4), np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(0.25)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"confidence in \[0.5, 1\], got 0.4"):
        reliability_curve([0.4], [1.0])
    with pytest.raises(ValueError, match="n >= 1"):
        reliability_curve([], [])


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [
        (0, 4, 1.0),
        (4, 4, 1 / 16),
        (3, 4, 5 / 16),  # 3 or 4 heads of 4
        (3.5, 4, 5 / 16),  # a tie is no win
        (8, 10, 56 / 1024),  # 45 + 10 + 1
        (60, 100, 0.0284440),
        (5_000, 10_000, 0.5039894),
    ],
)
def test_the_chance_of_a_coin(right: float, n: int, expected: float) -> None:
    assert chance_probability(right, n) == pytest.approx(expected, rel=1e-5)


def test_more_right_answers_than_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="right=5 and n=4"):
        chance_probability(5, 4)


def test_length_control_by_hand() -> None:
    """Equal length: .5 of 2. |ℓ| ≤ 2: longer 1 of 1, shorter 1 of 3, so ⅔ of 4. Beyond: no shorter ones, left out."""
    longer = [0, 0, 1, -1, -2, -2, 6, 7]
    right = [1, 0, 1, 1, 0, 0, 1, 1]
    result = length_controlled_accuracy(right, longer, edges=(0, 2))
    assert result.used == 6
    assert result.accuracy == pytest.approx((2 * 0.5 + 4 * (1 + 1 / 3) / 2) / 6)


def test_a_reward_of_length_alone_gets_a_half_and_a_perfect_one_gets_all() -> None:
    """Annotators choose the longer response of 80 % of pairs: plain accuracy of "longer wins" is .8."""
    rng = np.random.default_rng(0)
    longer = np.where(rng.random(5000) < 0.8, 1, -1) * rng.integers(1, 20, 5000)
    prefers_long = (longer > 0).astype(float)
    assert prefers_long.mean() == pytest.approx(0.8, abs=0.02)
    assert length_controlled_accuracy(prefers_long, longer).accuracy == pytest.approx(0.5)
    assert length_controlled_accuracy(1 - prefers_long, longer).accuracy == pytest.approx(0.5)
    a_little = np.where(np.abs(longer) <= 5, longer > 0, longer < 0).astype(float)  # longer is better, up to a point
    assert length_controlled_accuracy(a_little, longer).accuracy == pytest.approx(0.5)
    assert length_controlled_accuracy(np.ones(5000), longer) == (1.0, 5000)


def test_without_pairs_of_both_kinds_there_is_nothing_to_control() -> None:
    result = length_controlled_accuracy([1, 0], [3, 4])
    assert math.isnan(result.accuracy) and result.used == 0
    with pytest.raises(ValueError, match="rise from 0"):
        length_controlled_accuracy([1], [0], edges=(0, 2, 2))
