"""Functions of logits without ever holding all the logits.

At a vocabulary of 150,000 the fp32 logits of a minibatch take more memory than the model. What is made of them is a
number a row, so rows are worked through in chunks, and each chunk's logits are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 1 << 25
"""Elements: 128 MiB in fp32."""


def rows_at_once(device: torch.device) -> int:
    """Sequences in one forward where nothing is trained: a CPU is as quick with few, and few take less memory."""
    return 16 if device.type == "cpu" else 64


def in_chunks(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor, vocab_size: int) -> tuple[Tensor, ...]:
    """`function(*rows)`, (n, …) each → a tuple of (n,), row by row independent, at most `LOGITS_AT_ONCE` logits a time.

    Gradients are those of the whole; few enough rows are one plain call.
    """
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(table.split(size) for table in rows), strict=True)
    if torch.is_grad_enabled():
        results = [checkpoint(function, *part, use_reentrant=False) for part in parts]
    else:
        results = [function(*part) for part in parts]
    return tuple(torch.cat(column) for column in zip(*results, strict=True))
