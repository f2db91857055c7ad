"""Products of few rows with weights, of which a decoding step consists, in the order that is quick on a CPU.

`F.linear` asks for x Wᵀ. On processors without AVX-512, MKL takes up to three times as long for it as for (W xᵀ)ᵀ, the
same numbers, where x has few rows. On several threads one row is quicker as one of two.
`scripts/benchmark.py --only products` measures both orders.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

MOST_ROWS = 64
AT_ONCE = 4096
"""Most outputs in one product; a vocabulary's are computed in parts."""
FEWEST_WEIGHTS = 1 << 18
"""A smaller matrix stays in a core's cache, and copying its result costs what the order gains."""


def few_rows(device: torch.device) -> AbstractContextManager[Any]:
    """Where a layer's input has few rows, its product is computed in the order that is quick on this device."""
    known = torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.mkl.is_available()
    return _WeightsFirst() if device.type == "cpu" and known else nullcontext()


def weights_first(rows: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` without gradients: (…, K), (N, K) and (N,) → (…, N), computed as (W xᵀ)ᵀ."""
    flat = rows.reshape(-1, rows.shape[-1])  # (n, K)
    count = len(flat)
    columns = (torch.cat((flat, flat)) if count == 1 else flat).t()  # (K, n)
    if len(weights) <= AT_ONCE:
        result = _product(columns, weights, bias).t()[:count].contiguous()  # (n, N)
    else:  # each part is turned over while it is in the cache
        result = flat.new_empty(count, len(weights))
        for first in range(0, len(weights), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            result[:, part] = _product(columns, weights[part], None if bias is None else bias[part]).t()[:count]
    return result.view(*rows.shape[:-1], len(weights))


def _product(columns: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """(K, n), (N, K) and (N,) → (N, n)."""
    return torch.mm(weights, columns) if bias is None else torch.addmm(bias[:, None], weights, columns)


class _WeightsFirst(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is linear and _gains(*args[:2]):
            return weights_first(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _gains(rows: Tensor, weights: Tensor) -> bool:
    if weights.dtype != torch.float32 or rows.dtype != torch.float32 or weights.numel() < FEWEST_WEIGHTS:
        return False
    return (2 if torch.get_num_threads() == 1 else 1) <= rows.numel() // rows.shape[-1] <= MOST_ROWS
