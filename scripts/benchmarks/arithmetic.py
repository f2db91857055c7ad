"""How much arithmetic an iteration needs, and how fast plain matrix products and copies are here."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch

from benchmarks.shapes import PROMPT, Iteration, Shape
from benchmarks.timing import device_seconds


class Phases(NamedTuple):
    """One number for each phase of an iteration."""

    rollout: float
    scoring: float
    update: float


def forward_flops(shape: Shape, tokens: int, logits: int) -> float:
    """2 · weights · tokens: layers at every token, the head where logits are wanted. Attention's own products
    (4·L·H a token and layer, under a tenth at these lengths) are left out, and so are biases, norms and softmax."""
    return 2.0 * (shape.layer_weights * tokens + shape.head_weights * logits)


def iteration_flops(given: Iteration) -> Phases:
    """What one iteration with a shared critic and no frozen layers cannot do without.

    Rollout: a forward over every token. Scoring: π_ref, and r_φ, which has no logits. Update: 3 forwards' worth
    (forward, gradient of the activations, gradient of the weights) an epoch.
    """
    shape, actions = given.shape, given.episodes * given.response
    tokens = given.episodes * (PROMPT + given.response)
    once = forward_flops(shape, tokens, actions)
    return Phases(once, once + forward_flops(shape, tokens, 0), 3.0 * given.epochs * once)


def product_rate(rows: int, inner: int, columns: int, *, device: str, dtype: torch.dtype, repeats: int = 7) -> float:
    """FLOP/s of (rows, inner) @ (inner, columns), the median of some repeats of about 2 GFLOP each (CUDA: 2,000)."""
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    flops = 2.0 * rows * inner * columns
    count = max(1, round((2e12 if device == "cuda" else 2e9) / flops))

    def products() -> None:
        for _ in range(count):
            torch.mm(a, b)

    products()
    return flops * count / statistics.median(device_seconds(products, device) for _ in range(repeats))


def copy_bandwidth(device: str, *, megabytes: int, repeats: int = 7) -> float:
    """Bytes a second that a plain copy moves, read and written."""
    source = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = statistics.median(device_seconds(lambda: target.copy_(source), device) for _ in range(repeats))
    return 2.0 * source.numel() / seconds


def step_bytes(shape: Shape, batch: int, context: float) -> float:
    """What a one-token step must read: the weights of layers and head once, and each row's keys and values."""
    size = torch.empty((), dtype=shape.torch_dtype).element_size()
    cache = 2 * shape.n_layer * (shape.kv_heads or shape.n_head) * (shape.width // shape.n_head)  # numbers a token
    return size * (shape.layer_weights + shape.head_weights + batch * context * cache)
