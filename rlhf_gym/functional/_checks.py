"""Checks of shapes and ranges on entry: (B,) would broadcast against (B, 1) without an error."""

from __future__ import annotations

from torch import Tensor


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
