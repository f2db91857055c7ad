"""The same functions by one kernel where a model's own code takes many."""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_activations(model: nn.Module) -> None:
    """Replace GPT-2's GELU, written out as eight operations, by torch's of the same formula (to rounding), in place.

    It has no weights, so nothing changes in what is saved; forward, backward and memory get cheaper.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
