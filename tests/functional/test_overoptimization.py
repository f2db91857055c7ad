"""Fits recover the curves they were made from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_gym.functional import BEST_OF_N, RL, best_of_n_kl, fit_best_of_n, fit_rl

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


@pytest.mark.parametrize(("alpha", "decline"), [(1.3, 0.11), (0.4, 0.05)])
def test_best_of_n_fit_recovers_the_curve(alpha: float, decline: float) -> None:
    fit = fit_best_of_n(KL, BEST_OF_N.gold(KL, alpha, decline))
    assert (fit.alpha, fit.decline) == pytest.approx((alpha, decline), abs=1e-8)
    assert fit.residual == pytest.approx(0, abs=1e-8)
    assert fit.peak_distance == pytest.approx(alpha / (2 * decline), rel=1e-8)
    assert fit.peak_kl == pytest.approx((alpha / (2 * decline)) ** 2, rel=1e-8)
    assert fit.peak_gold == pytest.approx(alpha**2 / (4 * decline), rel=1e-8)


@pytest.mark.parametrize(("alpha", "decline"), [(1.3, 0.6), (0.2, 0.4)])
def test_rl_fit_recovers_the_curve(alpha: float, decline: float) -> None:
    fit = fit_rl(KL, RL.gold(KL, alpha, decline))
    assert (fit.alpha, fit.decline) == pytest.approx((alpha, decline), abs=1e-8)
    assert fit.residual == pytest.approx(0, abs=1e-8)
    assert fit.peak_distance == pytest.approx(math.exp(alpha / decline - 1), rel=1e-8)
    assert fit.peak_gold == pytest.approx(decline * math.exp(alpha / decline - 1), rel=1e-8)


@pytest.mark.parametrize(("fit", "curve"), [(fit_best_of_n, BEST_OF_N.gold), (fit_rl, RL.gold)])
def test_nothing_is_higher_than_the_peak(fit, curve) -> None:  # type: ignore[no-untyped-def]
    found = fit(KL, curve(KL, 1.3, 0.5))
    nearby = found.peak_kl * np.linspace(0.5, 1.5, 101)
    assert curve(nearby, found.alpha, found.decline).max() == pytest.approx(found.peak_gold, abs=1e-12)


@pytest.mark.parametrize(("fit", "curve"), [(fit_best_of_n, BEST_OF_N.gold), (fit_rl, RL.gold)])
def test_curves_without_a_turn(fit, curve) -> None:  # type: ignore[no-untyped-def]
    rising = fit(KL, curve(KL, 1.0, -0.2))
    assert (rising.peak_distance, rising.peak_gold) == (math.inf, math.inf)


def test_a_curve_that_only_falls_peaks_at_the_start() -> None:
    falling = fit_best_of_n(KL, BEST_OF_N.gold(KL, -1.0, 0.1))
    assert (falling.peak_distance, falling.peak_gold) == (0.0, 0.0)


def test_the_residual_is_the_noise_left() -> None:
    rng = np.random.default_rng(0)
    kl = np.linspace(0, 40, 2000)
    fit = fit_rl(kl, RL.gold(kl, 1.3, 0.6) + rng.normal(0, 0.1, kl.size))
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


# -- how sure a fit is -------------------------------------------------------------------------------------------------


def test_standard_errors_are_least_squares_own() -> None:
    """By hand: y = αx with a second feature that is orthogonal to it here, four points, two degrees of freedom."""
    kl = np.array([1.0, 1.0, math.e**2, math.e**2])  # d = 1, 1, e, e: features (1, 0) and (e, −e)
    gold = np.array([0.9, 1.1, 0.2, 0.4])
    fit = fit_rl(kl, gold)
    assert fit.alpha == pytest.approx(1.0) and fit.decline == pytest.approx(1.0 - 0.3 / math.e)
    s2 = 4 * 0.1**2 / 2
    assert fit.standard_errors[0] == pytest.approx(math.sqrt(s2 / 2))
    assert fit.standard_errors[1] == pytest.approx(math.sqrt(s2 / 2 * (1 + 1 / math.e**2)))
    (low, high), _ = fit.intervals()
    assert (high - low) / 2 == pytest.approx(4.30265 * math.sqrt(s2 / 2), rel=1e-5) and fit.dof == 2


def test_the_band_is_that_of_alpha_where_only_alpha_counts() -> None:
    fit = fit_rl(KL, RL.gold(KL, 1.3, 0.6) + 0.1 * np.cos(np.arange(25)))
    (low, high), _ = fit.intervals()
    band = fit.band([1.0])  # d = 1: log d = 0
    assert (float(band[0][0]), float(band[1][0])) == pytest.approx((low, high))
    assert fit.curve([0.0, 1.0]).tolist() == pytest.approx([0.0, fit.alpha])
    assert fit.band([0.0])[0].tolist() == [0.0]  # nothing is unsure at π_ref itself


def runs_of(fit_curve, alpha: float, decline: float, seeds: int, rng):  # type: ignore[no-untyped-def]
    """Seeds that differ in α and b, each with correlated noise along its way, at KLs of its own."""
    kl, gold, run = [], [], []
    for seed in range(seeds):
        n = int(rng.integers(18, 30))
        way = np.cumsum(rng.exponential(1.2, n))
        noise = 0.1 * np.cumsum(rng.normal(size=n)) / math.sqrt(n)
        own = fit_curve(way, alpha + 0.15 * rng.normal(), decline + 0.08 * rng.normal())
        kl, gold, run = [*kl, *way], [*gold, *(own + noise)], [*run, *([seed] * n)]
    return np.array(kl), np.array(gold), np.array(run)


@pytest.mark.parametrize(
    ("fit", "curve", "alpha", "decline"), [(fit_best_of_n, BEST_OF_N.gold, 1.3, 0.3), (fit_rl, RL.gold, 1.3, 0.7)]
)
def test_intervals_over_runs_hold_the_truth_as_often_as_they_say(fit, curve, alpha, decline) -> None:  # type: ignore[no-untyped-def]
    """Five seeds, 600 studies. Taking all points for independent ones holds it in some three of five."""
    rng = np.random.default_rng(0)
    at, truth = 9.0, float(curve([9.0], alpha, decline)[0])
    peak = fit(KL, curve(KL, alpha, decline)).peak_distance
    hits, naive = np.zeros(4), 0
    for _ in range(600):
        kl, gold, run = runs_of(curve, alpha, decline, 5, rng)
        found = fit(kl, gold, runs=run)
        a, b = found.intervals()
        low, high = found.band([at])
        p = found.peak_interval()
        hits += [a[0] <= alpha <= a[1], b[0] <= decline <= b[1], low[0] <= truth <= high[0], p[0] <= peak <= p[1]]
        a, _ = fit(kl, gold).intervals()
        naive += a[0] <= alpha <= a[1]
    print(f"95 % intervals hold α, b, the curve at d = 3, its peak: {hits / 600}; α of all points: {naive / 600:.2f}")
    assert found.dof == 4
    assert (hits / 600 > 0.925).all() and (hits / 600 < 0.98).all(), hits / 600
    assert naive / 600 < 0.75


def test_intervals_of_independent_points_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    kl, hits = np.linspace(0.5, 30, 12), np.zeros(4)
    peak = fit_rl(kl, RL.gold(kl, 1.3, 0.7))
    for _ in range(1000):
        found = fit_rl(kl, RL.gold(kl, 1.3, 0.7) + rng.normal(0, 0.3, 12))
        (a_low, a_high), (b_low, b_high) = found.intervals()
        low, high = found.band([9.0])
        p = found.peak_interval()
        inside = low[0] <= float(RL.gold([9.0], 1.3, 0.7)[0]) <= high[0]
        hits += [a_low <= 1.3 <= a_high, b_low <= 0.7 <= b_high, inside, p[0] <= peak.peak_distance <= p[1]]
    assert (hits / 1000 > 0.93).all() and (hits / 1000 < 0.97).all(), hits / 1000


@pytest.mark.parametrize(
    ("memory", "points", "least"),
    [(0.0, 120, 0.93), (0.5, 120, 0.9), (0.85, 120, 0.86), (0.0, 25, 0.93), (0.5, 25, 0.88), (0.85, 25, 0.77)],
)
def test_an_ordered_run_is_less_sure_where_its_neighbours_agree(memory: float, points: int, least: float) -> None:
    """One run. Taken for independent, 120 points hold the truth in 75 % at memory .5 and in 40 % at .85."""
    rng = np.random.default_rng(2)
    kl, hits = np.linspace(0.3, 40, points), np.zeros(2)
    for _ in range(600):
        noise = 0.1 * rng.normal(size=points)
        noise[0] /= math.sqrt(1 - memory**2)
        for t in range(1, points):
            noise[t] += memory * noise[t - 1]
        gold = RL.gold(kl, 1.3, 0.7) + noise
        for i, ordered in enumerate((False, True)):
            (low, high), _ = fit_rl(kl, gold, ordered=ordered).intervals()
            hits[i] += low <= 1.3 <= high
    print(
        f"memory {memory}, {points} points: 95 % hold α in {hits[1] / 600:.1%} of runs, unordered {hits[0] / 600:.1%}"
    )
    assert hits[1] / 600 > least, hits / 600
    assert memory == 0 or hits[0] / 600 < 0.85, hits / 600


@pytest.mark.parametrize("fit", [fit_best_of_n, fit_rl])
def test_runs_on_one_grid_average_to_one_fit_of_their_mean(fit) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(3)
    gold = rng.normal(size=(4, 25))
    together = fit(np.tile(KL, 4), gold.ravel(), runs=np.repeat(np.arange(4), 25))
    once = fit(KL, gold.mean(axis=0))
    assert (together.alpha, together.decline) == pytest.approx((once.alpha, once.decline))


def test_a_peak_that_may_not_be_there_has_no_upper_end() -> None:
    rng = np.random.default_rng(4)
    kl = np.linspace(0.1, 2, 12)  # far below the peak, at d = 13
    fit = fit_best_of_n(kl, BEST_OF_N.gold(kl, 1.3, 0.05) + rng.normal(0, 0.1, 12))
    low, high = fit.peak_interval()
    assert high == math.inf and low >= 0
    rising = fit_best_of_n(KL, BEST_OF_N.gold(KL, 1.0, -0.2))
    assert rising.peak_interval() == (0.0, math.inf) and rising.peak_gold_interval() == (-math.inf, math.inf)


def test_the_height_of_the_peak_is_the_band_there() -> None:
    fit = fit_rl(KL, RL.gold(KL, 1.3, 0.6) + 0.1 * np.cos(np.arange(25)))
    low, high = fit.peak_gold_interval()
    assert low < fit.peak_gold < high
    assert float(fit.curve([fit.peak_kl])[0]) == pytest.approx(fit.peak_gold)


def test_two_points_leave_nothing_to_tell_the_error_from() -> None:
    fit = fit_rl([1.0, 4.0], [1.0, 1.5])
    assert np.isnan(fit.covariance).all() and np.isnan(fit.standard_errors).all()
    assert fit.peak_interval() == (0.0, math.inf) and np.isnan(fit.band([1.0])[0]).all()


def test_fits_refuse_what_does_not_tell_how_sure_they_are() -> None:
    gold = RL.gold(KL, 1.3, 0.6)
    with pytest.raises(ValueError, match=r"runs of shape \(points,\) = \(25,\), got \(3,\)"):
        fit_rl(KL, gold, runs=[0, 1, 2])
    with pytest.raises(ValueError, match="at least 2 runs to tell how much they differ, got 1"):
        fit_rl(KL, gold, runs=np.zeros(25))
    with pytest.raises(ValueError, match="got fewer in run b"):
        fit_rl(KL, gold, runs=["a"] * 24 + ["b"])
    with pytest.raises(ValueError, match="expected runs or ordered, got both"):
        fit_rl(KL, gold, runs=np.arange(25) % 2, ordered=True)
