"""`SlotCache`: keys and values of N episodes in progress, a row per slot, each row written at its own length.

One preallocated tensor per layer, (N, heads, L + 1, d). Nothing is ever concatenated or copied to grow, and a slot is
refilled by overwriting it. The column L is a scratch place for the padding of ragged chunks; no mask ever shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True)
class SlotWrite:
    """Where the next forward's B rows of n tokens go."""

    rows: Tensor
    """The slots that are written, shape (B,) int64."""
    whole: bool
    """Whether they are slots 0 … B−1 as they stand, which spares a gather."""
    columns: Tensor
    """Column of each token, shape (B, n); L (the scratch column) where a row is padded."""
    start: int | None
    """The common first column when every row writes columns start … start + n − 1, else None."""
    kv_length: int
    """Columns 0 … kv_length − 1 hold everything that may be attended to."""
    _places: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def places(self, heads: int, width: int) -> Tensor:
        """Numbers of the written rows of a (N, heads, width, d) table seen as (N · heads · width, d), in the order of
        (B, heads, n); worked out once for all layers."""
        if (heads, width) not in self._places:
            head = torch.arange(heads, device=self.rows.device)
            first = (self.rows[:, None] * heads + head) * width  # (B, heads)
            self._places[heads, width] = (first[:, :, None] + self.columns[:, None]).reshape(-1)
        return self._places[heads, width]


class SlotLayer(CacheLayerMixin):
    """One layer's rows. `write` must be set before each forward (`SlotCache.prepare` does)."""

    is_sliding = False

    def __init__(self, num_slots: int, max_length: int) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.max_length = max_length
        self.write: SlotWrite | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, key_dim = key_states.shape
        value_dim = value_states.shape[-1]
        shape = (self.num_slots, heads, self.max_length + 1)
        self.dtype = key_states.dtype
        self.device = key_states.device
        # zeros, not empty: a masked column still enters 0 · value, and 0 · NaN is NaN.
        self.keys = torch.zeros(*shape, key_dim, dtype=self.dtype, device=self.device)  # (N, heads, L + 1, d)
        self.values = torch.zeros(*shape, value_dim, dtype=self.dtype, device=self.device)  # (N, heads, L + 1, d)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, heads, n, d) in place; return what may be attended to, (B, heads, kv_length, d)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        write = self.write
        assert write is not None and self.keys is not None and self.values is not None
        places = write.places(key_states.shape[1], self.max_length + 1)  # (B · heads · n,)
        for table, new in ((self.keys, key_states), (self.values, value_states)):
            table.view(-1, new.shape[-1]).index_copy_(0, places, new.reshape(-1, new.shape[-1]))
        if write.start == 0:  # from empty: the new tokens are all there is
            return key_states, value_states
        if write.whole:
            batch = key_states.shape[0]
            return self.keys[:batch, :, : write.kv_length], self.values[:batch, :, : write.kv_length]
        keys = self.keys[:, :, : write.kv_length]  # (N, heads, kv, d)
        values = self.values[:, :, : write.kv_length]  # (N, heads, kv, d)
        return keys.index_select(0, write.rows), values.index_select(0, write.rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.write.kv_length if self.write is not None else query_length), 0

    def get_seq_length(self) -> int:
        return (self.write.start or 0) if self.write is not None else 0

    def get_max_length(self) -> int:
        return self.max_length


class SlotCache(Cache):
    """A row per slot in every layer.

    Args:
        config: the model's configuration; its layers must be full or sliding-window attention.
        num_slots: N.
        max_length: L, the longest sequence a slot can hold.

    Raises:
        ValueError: the model keeps another kind of state (linear, chunked attention, convolution …).
    """

    def __init__(self, config: PretrainedConfig, num_slots: int, max_length: int) -> None:
        layer_types, windows = attention_layout(config)
        super().__init__(layers=[SlotLayer(num_slots, max_length) for _ in layer_types])
        self.num_slots = num_slots
        self.max_length = max_length
        self.layer_types = tuple(dict.fromkeys(layer_types))
        self.windows = windows

    def prepare(self, write: SlotWrite) -> None:
        """Set where the next forward writes."""
        for layer in self.layers:
            layer.write = write  # type: ignore[union-attr]

    def masks(self, write: SlotWrite, dtype: torch.dtype) -> Tensor | dict[str, Tensor] | None:
        """4-D attention masks of the next forward, one per kind of layer; None where the model's own are right.

        The model's own masks are right when all rows start at one column: it then sees an ordinary cache.
        """
        if write.start is not None:
            return None
        column = torch.arange(write.kv_length, device=write.columns.device)
        here = write.columns[:, :, None]  # (B, n, 1)
        causal = column <= here  # (B, n, kv)
        masks = {}
        for kind in self.layer_types:
            allowed = causal if kind == FULL else causal & (column > here - self.windows[kind])
            # a padded place may look at everything: its output is not read, and an empty row would be NaN
            allowed = (allowed | (here == self.max_length))[:, None]  # (B, 1, n, kv)
            # additive: every attention implementation takes it, where a boolean one is converted anew in each layer
            masks[kind] = torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)
        return masks if len(masks) > 1 else next(iter(masks.values()))


def attention_layout(config: PretrainedConfig) -> tuple[list[str], dict[str, int]]:
    """Each layer's kind of attention, and the window of the sliding kind.

    Raises:
        ValueError: a kind of layer whose state is not keys and values per position.
    """
    layer_types, per_layer = get_layer_types_and_kwargs(config.get_text_config())
    other = sorted(set(layer_types) - {FULL, SLIDING})
    if other:
        raise ValueError(f"expected layers of {FULL} or {SLIDING}, got {', '.join(other)}")
    found = {kw["sliding_window"] for kind, kw in zip(layer_types, per_layer, strict=True) if kind == SLIDING}
    if len(found) > 1:
        raise ValueError(f"expected one sliding window for all layers, got {sorted(found)}")
    return layer_types, {SLIDING: found.pop()} if found else {}
