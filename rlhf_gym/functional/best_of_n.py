"""The best of n, from one set of samples for every n: what choosing by a proxy is worth, and how far it goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    proxy, values = np.asarray(proxy, dtype=np.float64), np.asarray(values, dtype=np.float64)
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
    """C(i − 1, n − 1)/C(N, n), i = 1 … N down the rows, a column for each n: (N, n).

    By F_n(i) = C(i, n)/C(N, n) = F_{n−1}(i)·(i − n + 1)/(N − n + 1), the chance that all n are among the lowest i:
    no binomial coefficient is ever formed. The weight is F_n(i) − F_n(i − 1).
    """
    below = np.arange(samples + 1, dtype=np.float64)  # (N + 1,)
    share, columns = np.ones(samples + 1), {}
    for size in range(1, max(n, default=0) + 1):
        share = share * np.maximum(below - size + 1, 0) / (samples - size + 1)
        if size in n:
            columns[size] = np.diff(share)  # (N,)
    return np.stack([columns[size] for size in n], axis=1) if columns else np.zeros((samples, 0))


def _tied_means(proxy: Array, values: Array) -> Array:
    """Each value replaced by the mean of those whose proxy is the same; both in ascending order of it, (prompts, N)."""
    starts = np.ones(proxy.shape, dtype=bool)
    starts[:, 1:] = proxy[:, 1:] != proxy[:, :-1]  # (prompts, N)
    block = np.cumsum(starts.ravel()) - 1  # (prompts·N,), never across prompts: each row begins one
    means = np.bincount(block, weights=values.ravel()) / np.bincount(block)
    return means[block].reshape(values.shape)
