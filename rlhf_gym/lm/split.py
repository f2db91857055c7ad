"""A trunk cut in two: the lower layers, frozen, are run once; the upper ones as often as they are trained.

Nothing here knows an architecture. A Transformers trunk runs a list of layers one after another, each taking the hidden
states first and returning them; a layer that is not wanted is exchanged for one that passes them on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf_gym.lm.parts import Trunk


class Split:
    """The first `num_lower` layers of a trunk (with its embeddings), and the rest.

    Args:
        parts: the trunk. It stays whole; nothing is copied.
        num_lower: 1 … number of layers − 1.

    Raises:
        ValueError: no such cut, or the two parts one after the other are not the whole.
    """

    def __init__(self, parts: Trunk, num_lower: int) -> None:
        self.parts = parts
        self.layers = layers_of(parts)
        if not 1 <= num_lower < len(self.layers):
            raise ValueError(
                f"expected to cut between layers 1 … {len(self.layers) - 1} of {len(self.layers)}, got {num_lower}"
            )
        self.num_lower = num_lower
        self._check()

    def lower(self, input_ids: Tensor) -> Tensor:
        """The input of the upper layers, (B, L, H), for right-padded rows (B, L)."""
        capture = _Capture()
        upper = {index: capture if index == self.num_lower else _PassOn() for index in self._range(self.num_lower)}
        with self._exchanged(upper):
            self.parts.hidden_states(input_ids)
        assert capture.hidden is not None
        return capture.hidden

    def upper(self, lower: Tensor) -> Tensor:
        """The last hidden states, (B, L, H), from the output of `lower`, (B, L, H)."""
        given = {index: _PassOn() for index in range(self.num_lower - 1)}
        with self._exchanged({**given, self.num_lower - 1: _Give(lower)}):
            return self.parts.module(inputs_embeds=lower.detach(), use_cache=False).last_hidden_state

    @cached_property
    def lower_parameters(self) -> list[nn.Parameter]:
        """The weights that `lower` depends on, embeddings included (and so a head that is tied to them)."""
        parameters = list(self.parts.module.parameters())
        wanted = [p.requires_grad for p in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            total = self.lower(self._some_ids()).float().square().sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)
        return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]

    def same_below(self, other: Split) -> bool:
        """Whether the other trunk's lower layers have the same weights."""
        if self.num_lower != other.num_lower:
            return False
        ours = self.lower_parameters
        theirs = other.lower_parameters
        return len(ours) == len(theirs) and all(
            a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device))
            for a, b in zip(ours, theirs, strict=True)
        )

    def _range(self, first: int) -> range:
        return range(first, len(self.layers))

    def _some_ids(self) -> Tensor:
        return torch.arange(4, device=self.parts.device)[None] % self.parts.vocab_size  # (1, 4)

    @contextmanager
    def _exchanged(self, layers: Mapping[int, nn.Module]) -> Iterator[None]:
        own = {index: self.layers[index] for index in layers}
        try:
            for index, layer in layers.items():
                self.layers[index] = layer
            yield
        finally:
            for index, layer in own.items():
                self.layers[index] = layer

    @torch.no_grad()
    def _check(self) -> None:
        ids = self._some_ids()
        expected = self.parts.hidden_states(ids).float()
        error = float((self.upper(self.lower(ids)).float() - expected).abs().max())
        tolerance = (1e-5 if self.parts.dtype == torch.float32 else 5e-2) * max(1.0, float(expected.abs().max()))
        if not error <= tolerance:
            raise ValueError(
                f"{type(self.parts.module).__name__} cannot be cut after layer {self.num_lower}: expected the parts to "
                f"give what the whole gives within {tolerance:.0e}, got a difference of {error:.1e}"
            )


class LowerStates(NamedTuple):
    """The stored output of the lower layers for some rows."""

    split: Split
    """The trunk, and where it is cut."""
    states: Tensor
    """The output of the lower layers for E right-padded rows, (E, L, H)."""


class _PassOn(nn.Module):
    """A layer that returns its input."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class _Capture(nn.Module):
    """A layer that returns its input and keeps it."""

    hidden: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.hidden = hidden_states
        return hidden_states


class _Give(nn.Module):
    """A layer that returns the hidden states it was made with, whatever its input."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.hidden


def layers_of(parts: Trunk) -> nn.ModuleList:
    """The list of layers of a trunk.

    Raises:
        ValueError: there is not exactly one list as long as its configuration says.
    """
    count = parts.module.config.get_text_config().num_hidden_layers
    found = [module for module in parts.module.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(found) != 1:
        raise ValueError(
            f"expected one list of {count} layers in {type(parts.module).__name__} to cut it, found {len(found)}"
        )
    return found[0]
