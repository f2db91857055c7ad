"""The best of n, from one set of samples for every n: what choosing by a proxy is worth, and how far it goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]


def best_of_n_kl(n: ArrayLike) -> Array:
    """log n − (n − 1)/n, the KL of best-of-n from the policy it samples (Stiennon et al. 2020, arXiv 2009.01325).

    Exact where no two samples tie; otherwise an upper bound (Beirami et al. 2024, arXiv 2401.01879).

    Shapes: n of any shape, and so is the result.

    Raises:
        ValueError: an n below 1.
    """
    n = np.asarray(n, dtype=np.float64)
    if not np.all(n >= 1):
        raise ValueError(f"expected n >= 1, got {n.min()}")
    return np.log(n) - (n - 1) / n


def best_of_n_estimate(proxy: ArrayLike, values: ArrayLike, n: Sequence[int]) -> Array:
    """Ê[value of the best of n by the proxy], from N ≥ n samples of each prompt: the mean over all subsets of size n.

    With the samples in ascending order of the proxy, the i-th is the best of C(i − 1, n − 1) of the C(N, n) subsets:

        Ê_n = Σ_{i=n}^N C(i − 1, n − 1)/C(N, n) · value_(i)

    Unbiased for every n at once, and with far less variance than drawing n samples afresh (Nakano et al. 2021, WebGPT,
    arXiv 2112.09332, appendix I; Gao et al. 2022 measure their best-of-n so). Samples that tie in the proxy share
    alike what any of them would get: the best is drawn among them at random, whatever their order.

    Args:
        proxy: what is chosen by, shape (prompts, N).
        values: what the chosen one is worth, gold or the proxy itself, shape (prompts, N).
        n: the sizes asked for, each from 1 to N.

    Returns:
        The estimates, shape (prompts, len(n)). Means over prompts are unbiased too, and have a standard error.

    Raises:
        ValueError: shapes differ, something is not finite, or an n is not from 1 to N.
    """
    proxy = np.asarray(proxy, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    if proxy.ndim != 2 or values.shape != proxy.shape or not proxy.size:
        raise ValueError(f"expected proxy and values of one shape (prompts, N), got {proxy.shape} and {values.shape}")
    if not (np.isfinite(proxy).all() and np.isfinite(values).all()):
        raise ValueError("expected finite proxy and values, got NaN or infinity among them")
    samples = proxy.shape[1]
    if not all(1 <= size <= samples for size in n):
        raise ValueError(f"expected every n from 1 to {samples}, the samples of a prompt, got {list(n)}")
    order = np.argsort(proxy, axis=1, kind="stable")  # (prompts, N)
    ranked = _tied_means(np.take_along_axis(proxy, order, 1), np.take_along_axis(values, order, 1))  # (prompts, N)
    return ranked @ _weights(samples, n)  # (prompts, n)


def _weights(samples: int, n: Sequence[int]) -> Array:
    """C(i − 1, n − 1)/C(N, n), i = 1 … N down the rows, a column for each n: (N, n), through log Γ: none overflows."""
    i = np.arange(1, samples + 1, dtype=np.float64)[:, None]  # (N, 1)
    size = np.asarray(n, dtype=np.float64)[None, :]  # (1, n)
    below = np.maximum(i - size, 0)  # (N, n)
    ways = gammaln(i) - gammaln(size) - gammaln(below + 1)  # (N, n)
    of = gammaln(samples + 1) - gammaln(size + 1) - gammaln(samples - size + 1)  # (1, n)
    return np.where(i >= size, np.exp(ways - of), 0.0)


def _tied_means(proxy: Array, values: Array) -> Array:
    """Each value replaced by the mean of those whose proxy is the same; both in ascending order of it, (prompts, N)."""
    starts = np.ones(proxy.shape, dtype=bool)
    starts[:, 1:] = proxy[:, 1:] != proxy[:, :-1]  # (prompts, N)
    block = np.cumsum(starts.ravel()) - 1  # (prompts·N,), never across prompts: each row begins one
    means = np.bincount(block, weights=values.ravel()) / np.bincount(block)
    return means[block].reshape(values.shape)
