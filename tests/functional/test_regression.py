"""Linear models of preferences and of scores: numbers by hand, planted weights, nothing explained by leaks."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_gym.functional import cross_fitted_r2, fit_preference_weights, fit_ridge


def test_one_feature_by_hand() -> None:
    """73 wins of 100 by a feature that is 1 apart: its weight is log(73/27) = .9946, as in Bradley and Terry."""
    d = np.where(np.arange(100) < 73, 1.0, -1.0)[:, None]
    assert fit_preference_weights(d, l2=1e-9) == pytest.approx([0.99462], abs=1e-4)
    assert fit_preference_weights(d[[0, 99]], weight=[73, 27], l2=1e-9) == pytest.approx([0.99462], abs=1e-4)


def test_the_penalty_by_hand() -> None:
    """One pair, d = 1: the gradient l2·w − σ(−w) is 0."""
    (w,) = fit_preference_weights([[1.0]], l2=0.25)
    assert 0.25 * w == pytest.approx(1 / (1 + np.exp(w)), abs=1e-7)


def test_planted_weights_are_found_and_found_again() -> None:
    rng = np.random.default_rng(0)
    d, truth = rng.standard_normal((6000, 3)), np.array([1.0, -2.0, 0.0])
    wins = rng.random(6000) < 1 / (1 + np.exp(-d @ truth))
    d = np.where(wins[:, None], d, -d)
    found = fit_preference_weights(d, l2=1e-6)
    assert found == pytest.approx(truth, abs=0.12)
    assert np.array_equal(found, fit_preference_weights(d, l2=1e-6))


def test_ridge_by_hand() -> None:
    """x = 0, 1, 2 and y = 1 + 2x: with l2 = Σ(x − x̄)² = 2 the slope is halved, and the line still goes through x̄."""
    x, y = np.arange(3.0)[:, None], np.array([1.0, 3.0, 5.0])
    assert fit_ridge(x, y, l2=2.0)[:2] == (pytest.approx([1.0]), pytest.approx(2.0))
    # least squares of 0, 1, 1, 2 on 0 … 3: slope .6, s² = .2/2, standard error √(.1/5)
    fit = fit_ridge(np.arange(4.0)[:, None], [0, 1, 1, 2], l2=1e-9)
    assert fit.weights == pytest.approx([0.6]) and fit.intercept == pytest.approx(0.1)
    assert fit.error == pytest.approx([0.1**0.5 / 5**0.5])


def test_what_was_not_fitted_is_what_counts() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 4))
    groups = list(np.repeat(np.arange(60), 5))
    assert cross_fitted_r2(x, x @ [1, 2, 3, 4], groups) == pytest.approx(1, abs=1e-5)
    assert cross_fitted_r2(x, rng.standard_normal(300), groups) < 0.05
    # a feature a group tells the group's value by heart, which is worth nothing about other groups
    by_heart, value = np.eye(60)[groups], rng.standard_normal(60)[groups]
    assert cross_fitted_r2(by_heart, value, groups) < 0.05
    assert cross_fitted_r2(by_heart, value, list(range(300))) > 0.9
    assert np.isnan(cross_fitted_r2(x, np.ones(300), groups))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="expected l2 > 0, got 0"):
        fit_preference_weights([[1.0]], l2=0)
    with pytest.raises(ValueError, match="P >= 1, got"):
        fit_preference_weights(np.zeros((0, 2)), l2=1)
    with pytest.raises(ValueError, match="a weight for each of 1 pairs"):
        fit_preference_weights([[1.0]], l2=1, weight=[1, 2])
    with pytest.raises(ValueError, match="at least 2 different ones, got 2"):
        cross_fitted_r2([[1.0], [2.0]], [1, 2], ["a", "a"])
    with pytest.raises(ValueError, match="features"):
        fit_ridge([[1.0]], [1, 2], l2=1)
