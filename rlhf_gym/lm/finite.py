"""Numbers that are not finite are named where they appear, before they spread or are saved."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

REMEDY = "a smaller learning rate (ten times, say) and gradients held by max_grad_norm are the cure"
"""What to try where training left the finite numbers."""


@torch.no_grad()
def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a number that is not finite; None where all are finite.

    One reduction over each tensor and one answer from the device: as long as reading the weights once.
    """
    tensors = {name: tensor for name, tensor in named if tensor.is_floating_point() and tensor.numel()}
    if not tensors:
        return None
    device = next(iter(tensors.values())).device
    sums = torch.stack([t.sum(dtype=torch.float32).to(device) for t in tensors.values()])  # (n,)
    for name, finite in zip(tensors, sums.isfinite().tolist(), strict=True):
        if not finite and not torch.isfinite(tensors[name]).all():  # a sum of large ones may overflow
            return name
    return None


def check_weights(module: nn.Module, what: str, *, advice: str = "") -> None:
    """Every weight of a module is finite.

    Args:
        module: the module.
        what: what it is, for the message.
        advice: what to do, for the message.

    Raises:
        FloatingPointError: one is not. The message names it.
    """
    name = not_finite(module.named_parameters())
    if name is not None:
        raise FloatingPointError(
            f"expected finite weights in {what}, got NaN or infinite ones in {name}" + (f": {advice}" if advice else "")
        )
