"""Fits recover the curves they were made from; Goodhart's control is simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_gym.functional import best_of_n_curve, best_of_n_kl, fit_best_of_n, fit_rl, goodhart_gold, rl_curve

KL = np.linspace(0.0, 40.0, 25)


def test_best_of_n_kl() -> None:
    assert best_of_n_kl([4, 16, 64]).tolist() == pytest.approx([0.6363, 1.8351, 3.1745], abs=5e-5)
    assert best_of_n_kl(1) == 0


def test_best_of_n_kl_is_the_kl_of_the_best_of_n() -> None:
    """The best of n among M equally likely, distinct scores, summed; as M grows the bound becomes exact."""
    n, m = 4, 200_000
    ranks = np.arange(1, m + 1) / m
    p = np.diff(np.concatenate([[0.0], ranks**n]))
    assert float(np.sum(p * np.log(p * m))) == pytest.approx(float(best_of_n_kl(n)), abs=1e-4)


@pytest.mark.parametrize(("alpha", "beta"), [(1.3, 0.11), (0.4, 0.05)])
def test_best_of_n_fit_recovers_the_curve(alpha: float, beta: float) -> None:
    fit = fit_best_of_n(KL, best_of_n_curve(KL, alpha, beta))
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta), abs=1e-8)
    assert fit.residual == pytest.approx(0, abs=1e-8)
    assert fit.peak_distance == pytest.approx(alpha / (2 * beta), rel=1e-8)
    assert fit.peak_kl == pytest.approx((alpha / (2 * beta)) ** 2, rel=1e-8)
    assert fit.peak_gold == pytest.approx(alpha**2 / (4 * beta), rel=1e-8)


@pytest.mark.parametrize(("alpha", "beta"), [(1.3, 0.6), (0.2, 0.4)])
def test_rl_fit_recovers_the_curve(alpha: float, beta: float) -> None:
    fit = fit_rl(KL, rl_curve(KL, alpha, beta))
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta), abs=1e-8)
    assert fit.residual == pytest.approx(0, abs=1e-8)
    assert fit.peak_distance == pytest.approx(math.exp(alpha / beta - 1), rel=1e-8)
    assert fit.peak_gold == pytest.approx(beta * math.exp(alpha / beta - 1), rel=1e-8)


@pytest.mark.parametrize(("fit", "curve"), [(fit_best_of_n, best_of_n_curve), (fit_rl, rl_curve)])
def test_nothing_is_higher_than_the_peak(fit, curve) -> None:  # type: ignore[no-untyped-def]
    found = fit(KL, curve(KL, 1.3, 0.5))
    nearby = found.peak_kl * np.linspace(0.5, 1.5, 101)
    assert curve(nearby, found.alpha, found.beta).max() == pytest.approx(found.peak_gold, abs=1e-12)


@pytest.mark.parametrize(("fit", "curve"), [(fit_best_of_n, best_of_n_curve), (fit_rl, rl_curve)])
def test_curves_without_a_turn(fit, curve) -> None:  # type: ignore[no-untyped-def]
    rising = fit(KL, curve(KL, 1.0, -0.2))
    assert (rising.peak_distance, rising.peak_gold) == (math.inf, math.inf)


def test_a_curve_that_only_falls_peaks_at_the_start() -> None:
    falling = fit_best_of_n(KL, best_of_n_curve(KL, -1.0, 0.1))
    assert (falling.peak_distance, falling.peak_gold) == (0.0, 0.0)


def test_the_residual_is_the_noise_left() -> None:
    rng = np.random.default_rng(0)
    kl = np.linspace(0, 40, 2000)
    fit = fit_rl(kl, rl_curve(kl, 1.3, 0.6) + rng.normal(0, 0.1, kl.size))
    assert fit.residual == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("fit", [fit_best_of_n, fit_rl])
@pytest.mark.parametrize(
    ("kl", "gold", "message"),
    [
        ([1.0, 2.0], [1.0], r"one shape \(points,\), got \(2,\) and \(1,\)"),
        ([-1.0, 2.0], [1.0, 1.0], "expected KL >= 0, got -1"),
        ([1.0, 2.0], [1.0, np.nan], "expected finite"),
        ([0.0, 2.0, 2.0], [0.0, 1.0, 1.0], "2 distinct KL > 0 to fit two parameters, got 1"),
    ],
)
def test_fits_refuse(fit, kl: list[float], gold: list[float], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        fit(kl, gold)


@pytest.mark.parametrize("n", [4, 16, 64])
def test_goodhart_control(n: int) -> None:
    """Best of n by a proxy with noise σ: the gold chosen is proxy/(1 + σ²), within 4 standard errors."""
    sigma, trials = 0.8, 20_000
    rng = np.random.default_rng(n)
    gold = rng.normal(size=(trials, n))
    proxy = gold + sigma * rng.normal(size=(trials, n))
    best = proxy.argmax(axis=1)[:, None]
    chosen_gold, chosen_proxy = (np.take_along_axis(x, best, axis=1)[:, 0] for x in (gold, proxy))
    error = chosen_gold - goodhart_gold(chosen_proxy, sigma)
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(trials)
    assert chosen_proxy.mean() - chosen_gold.mean() > 20 * error.std() / math.sqrt(trials)


def test_goodhart_refuses_negative_noise() -> None:
    with pytest.raises(ValueError, match="noise_std >= 0, got -1"):
        goodhart_gold(1.0, -1.0)


def test_best_of_n_refuses_n_below_1() -> None:
    with pytest.raises(ValueError, match="expected n >= 1, got 0"):
        best_of_n_kl([4, 0])
