"""Means and whitening over the real places of a padded tensor, and the checks of shapes and ranges on entry.

A masked place may hold anything, NaN and infinity included. It is overwritten *before* any arithmetic, since 0 · NaN is
NaN in the loss and in the gradient. Shapes are checked because (B,) would broadcast against (B, 1) without an error.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with 0 in every place where `mask` is 0. The gradient there is 0 too, whatever `x` holds.

    Shapes: x and mask the same; mask of any dtype, non-zero meaning real.
    """
    check_same_shape(x=x, mask=mask)
    return x.masked_fill(mask == 0, 0)


def masked_mean(x: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Mean over the real places, Σ mask·x / Σ mask, a scalar.

    With `denominator` it is Σ mask·x / denominator. If each micro-batch is given the token count of the whole batch,
    their losses and gradients add up to those of the whole. A mean of means would weigh a token of a short
    micro-batch more.

    Shapes: x and mask the same.

    Raises:
        ValueError: shapes differ, or nothing is real and no denominator was given.
    """
    total = zero_masked(x, mask).sum()
    if denominator is not None:
        return total / denominator
    count = torch.count_nonzero(mask)
    if count == 0:
        raise ValueError(f"expected a mask with at least one real place, got none among {mask.numel()}")
    return total / count


def masked_whiten(x: Tensor, mask: Tensor, keep_mean: bool = False, epsilon: float = 1e-8) -> Tensor:
    """(x − mean) / √(var + ε) over the real places; with `keep_mean`, + mean. Masked places come out as 0.

    The variance is biased, Σ mask·(x − mean)² / Σ mask. Rewards are whitened with their mean kept and advantages
    without (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", arXiv 2403.17031). Values that are
    nearly equal are blown up to variance 1 too; a larger `epsilon` stops that.

    Shapes: x and mask the same, and so is the result.
    """
    mean = masked_mean(x, mask)  # ()
    centred = zero_masked(x, mask) - mean
    whitened = centred * torch.rsqrt(masked_mean(centred.square(), mask) + epsilon)
    return zero_masked(whitened + mean if keep_mean else whitened, mask)


def check_same_shape(**tensors: Tensor | None) -> None:
    """Raise unless every tensor has the shape of the first one; the keywords name them in the message.

    Raises:
        ValueError: one has another shape.
    """
    (first_name, first), *others = ((name, x) for name, x in tensors.items() if x is not None)
    for name, x in others:
        if x.shape != first.shape:
            raise ValueError(
                f"expected {name} of shape {tuple(first.shape)}, the shape of {first_name}, got {tuple(x.shape)}"
            )


def check_rank(axes: str, **tensors: Tensor) -> None:
    """Raise unless every tensor has as many axes as `axes` names, e.g. "(B, T)".

    Raises:
        ValueError: one has more axes or fewer.
    """
    rank = len([axis for axis in axes.strip("()").split(",") if axis.strip()])
    for name, x in tensors.items():
        if x.dim() != rank:
            raise ValueError(f"expected {name} of shape {axes}, got {tuple(x.shape)}")


def check_in_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise unless low <= value <= high.

    Raises:
        ValueError: it is not (NaN included).
    """
    if not low <= value <= high:
        raise ValueError(f"expected {name} in [{low}, {high}], got {value}")
