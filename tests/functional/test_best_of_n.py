"""The estimator of the best of n against enumeration of all subsets, against fresh draws, and at its ends."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from rlhf_gym.functional import best_of_n_estimate, best_of_n_kl


def enumerated(proxy: np.ndarray, values: np.ndarray, n: int) -> float:
    """The mean over all subsets of size n; within one, the best are drawn from at random."""
    found = []
    for subset in combinations(range(len(proxy)), n):
        chosen = np.array(subset)
        best = chosen[proxy[chosen] == proxy[chosen].max()]
        found.append(values[best].mean())
    return float(np.mean(found))


@pytest.mark.parametrize("ties", [False, True])
def test_the_estimate_is_the_mean_over_all_subsets(ties: bool) -> None:
    rng = np.random.default_rng(1)
    proxy = rng.integers(0, 3, (4, 7)).astype(float) if ties else rng.normal(size=(4, 7))
    values = rng.normal(size=(4, 7))
    sizes = list(range(1, 8))
    found = best_of_n_estimate(proxy, values, sizes)
    expected = [[enumerated(p, v, n) for n in sizes] for p, v in zip(proxy, values, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_its_ends_are_the_mean_and_the_best() -> None:
    rng = np.random.default_rng(2)
    proxy, values = rng.normal(size=(2, 3, 50))
    found = best_of_n_estimate(proxy, values, [1, 50])
    np.testing.assert_allclose(found[:, 0], values.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(found[:, 1], values[np.arange(3), proxy.argmax(axis=1)], atol=1e-12)


def test_a_proxy_that_says_nothing_buys_nothing_whatever_the_order() -> None:
    values = np.arange(64.0)[None]
    np.testing.assert_allclose(best_of_n_estimate(np.zeros((1, 64)), values, [1, 8, 64]), 31.5, atol=1e-12)


def test_many_samples_lose_no_precision() -> None:
    """Of the samples' own ranks 1 … N the best of n is at n(N + 1)/(n + 1) on average: exact, by order statistics."""
    ranks, sizes = np.arange(1.0, 5001.0)[None], [1, 7, 500, 4999, 5000]
    expected = [n * 5001 / (n + 1) for n in sizes]
    np.testing.assert_allclose(best_of_n_estimate(ranks, ranks, sizes)[0], expected, rtol=1e-9)


@pytest.mark.parametrize("n", [4, 16, 64])
def test_goodhart_control(n: int) -> None:
    """Gold z, proxy z + σε: gold of the best is proxy/(1 + σ²) for every n."""
    sigma = 0.8
    rng = np.random.default_rng(3)
    gold = rng.normal(size=(400, 128))
    proxy = gold + sigma * rng.normal(size=gold.shape)
    ours, theirs = (best_of_n_estimate(proxy, values, [n])[:, 0] for values in (gold, proxy))
    error = ours - theirs / (1 + sigma**2)
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(len(error))
    assert ours.mean() / theirs.mean() == pytest.approx(1 / (1 + sigma**2), abs=0.02)


def test_unbiased_and_sharper_than_fresh_draws() -> None:
    """Means over many tables of N = 16 agree with best-of-4 drawn afresh, with a smaller spread."""
    rng = np.random.default_rng(4)
    proxy = rng.normal(size=(20_000, 16))
    estimates = best_of_n_estimate(proxy, proxy, [4])[:, 0]
    fresh = proxy[:, :4].max(axis=1)
    assert estimates.mean() == pytest.approx(fresh.mean(), abs=4 * fresh.std() / math.sqrt(20_000))
    assert estimates.mean() == pytest.approx(1.02938, abs=0.01)  # the expected largest of four normal deviates
    assert estimates.std() < 0.7 * fresh.std()


def test_refusals() -> None:
    good = np.zeros((2, 8))
    with pytest.raises(ValueError, match=r"one shape \(prompts, N\), got \(2, 8\) and \(8,\)"):
        best_of_n_estimate(good, np.zeros(8), [1])
    with pytest.raises(ValueError, match="expected finite proxy"):
        best_of_n_estimate(good + np.nan, good, [1])
    for n in (0, 9):
        with pytest.raises(ValueError, match=rf"every n from 1 to 8, the samples of a prompt, got \[{n}\]"):
            best_of_n_estimate(good, good, [n])
    assert best_of_n_estimate(good, good, []).shape == (2, 0)
    with pytest.raises(ValueError, match="expected n >= 1, got 0"):
        best_of_n_kl([4, 0])
