"""`Decoder`: stateless from outside, incremental inside. The observation is the cache key.

A standard loop calls `policy(observation)` with the whole prefix at every step. The decoder compares the observation
with what each slot holds and feeds only the tokens past the common prefix: one in the usual case, a prompt after a
refill, a branch after a rewind. Its answer is always that of a full recomputation.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_gym.lm.agreement import difference, evaluating, tolerated
from rlhf_gym.lm.cache import SlotCache, SlotWrite
from rlhf_gym.lm.finite import REMEDY, check_weights
from rlhf_gym.lm.parts import LMParts, Trunk
from rlhf_gym.lm.products import few_rows
from rlhf_gym.lm.replay import Step, record
from rlhf_gym.lm.thresholds import inner_thresholds, probe_lengths, small_copy
from rlhf_gym.ranges import check_arguments

ArrayOrTensor = np.ndarray | Tensor

KV_BLOCK = 16
"""The one-token step attends over a multiple of this many columns, and of an eighth of the next power of two: so few
shapes of it exist, and little that is read is empty."""
USES_BEFORE_REPLAY = 32
"""One-token steps of a shape before it is recorded: so many gain about as much by a replay as recording costs."""


class Decoder:
    """Last hidden state of each row's last token, computed incrementally where the rows continue what is held.

    The bookkeeping (which tokens each slot holds) is on the host, in NumPy; only new tokens travel to the device.

    Args:
        model: a causal LM, its parts, or a trunk alone.
        use_cache: None checks the model against each row recomputed alone (past every threshold of its configuration
            that the rows exceed) and falls back to recomputing, with a warning, if it does not match; True raises
            instead; False always recomputes.

    Whoever changes the weights calls `invalidate()`; `LMActorCriticPolicy` does so from the optimizer's step hook,
    `load_state_dict` and `train()`.
    """

    @check_arguments
    def __init__(self, model: PreTrainedModel | Trunk, *, use_cache: bool | None = None) -> None:
        self.parts = model if isinstance(model, Trunk) else LMParts(model)
        self._parameters = tuple(self.parts.module.parameters())
        self._storage = _storage(self.parts)
        self._version = -1
        self._wanted = use_cache
        self._checked_length = 0
        self.why_uncached = "switched off" if use_cache is False else ""
        self.serial = 0
        """Counts the computations: an unchanged serial after a call means the rows were answered from memory."""
        self._cache: SlotCache | None = None
        self._tokens = np.zeros((0, 0), dtype=np.int64)  # (N, L)
        self._held = np.zeros(0, dtype=np.int64)  # (N,)
        self._answered = np.zeros(0, dtype=np.int64)  # (B,) lengths of the rows that `_hidden` is of
        self._hidden = torch.zeros(0)  # (N, H)
        self._steps: dict[tuple[int, int], Step] = {}
        self._uses: dict[tuple[int, int], int] = {}
        self.why_no_replay = ""
        """Why the one-token step runs through the model's own code; empty where it is replayed once it has been used
        often enough."""

    @property
    def cached(self) -> bool:
        """Whether calls are incremental (known after the first call)."""
        return not self.why_uncached

    def forget(self) -> None:
        """Empty all slots; the weights are what they were."""
        self._held[:] = 0
        self._answered = self._answered[:0]

    def invalidate(self) -> None:
        """Forget everything: the weights have changed."""
        self.forget()
        storage = _storage(self.parts)
        if storage != self._storage:  # other tensors, or others' memory: a replay would go on with the old ones
            self._storage = storage
            self._parameters = tuple(self.parts.module.parameters())
            self._steps.clear()

    @torch.no_grad()
    def __call__(self, input_ids: ArrayOrTensor, lengths: ArrayOrTensor) -> Tensor:
        """Hidden state of the last real token of each row.

        Args:
            input_ids: left-aligned rows, (B, L) integers.
            lengths: real tokens of each row, (B,); a row of length 0 is parked: it is skipped, its answer is 0, and
                what its slot holds stays there.

        Returns:
            (B, H), in the model's dtype and on its device. Valid until the next call.
        """
        ids = to_host(input_ids)
        lengths = to_host(lengths)
        batch, width = ids.shape
        self._ensure(batch, width)
        version = sum(parameter._version for parameter in self._parameters)
        if version != self._version:
            # Changed in place. What leaves no trace here (fused optimizers, `.data`) must call `invalidate` itself.
            self._version = version
            self.invalidate()
        if not self.cached:
            return self._recompute(ids, lengths)
        held = self._held[:batch]  # (B,)
        tokens = self._tokens[:batch, :width]  # (B, L)
        differs = ids != tokens  # (B, L)
        if np.array_equal(self._answered, lengths) and not (differs & (np.arange(width) < lengths[:, None])).any():
            return self._hidden[:batch]

        common = np.minimum(held, np.maximum(lengths - 1, 0))  # (B,)
        differs &= np.arange(width) < common[:, None]
        if differs.any():
            common = np.where(differs.any(axis=1), differs.argmax(axis=1), common)
        new = lengths - common  # (B,) tokens to feed
        active = np.flatnonzero(lengths > 0)
        if len(active):
            self._feed_all(ids, common, new, active, batch)
        tokens[active] = ids[active]
        held[active] = lengths[active]
        self._answered = lengths.copy()
        self.serial += 1
        return self._hidden[:batch]

    @torch.no_grad()
    def logits(self, input_ids: ArrayOrTensor, lengths: ArrayOrTensor) -> Tensor:
        """Next-token logits (B, V), fp32, of each row; those of parked rows mean nothing.

        Raises:
            TypeError: the decoder was made of a trunk without a head.
        """
        return self.head(self(input_ids, lengths))

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Next-token logits (B, V), fp32, of what a call just returned, (B, H)."""
        if not isinstance(self.parts, LMParts):
            raise TypeError("expected a causal language model with a head to have logits of, got a trunk alone")
        with few_rows(self.parts.device):
            return self.parts.logits(hidden)

    def _feed_all(self, ids: np.ndarray, common: np.ndarray, new: np.ndarray, active: np.ndarray, batch: int) -> None:
        """Feed every active row: first what some rows must catch up, then one token of every row.

        The one-token step therefore always has the same shape, whatever was refilled in between.
        """
        behind = active[new[active] > 1]
        if len(behind) == len(active):  # a start: no row has only one token to go
            self._hidden[:batch] = 0
            self._feed(ids, common, new, active, batch, keep=True)
            return
        if len(behind):
            self._feed(ids, common, new - 1, behind, batch, keep=False)
        last = common + new - 1
        if 2 * len(active) >= batch:
            self._step(ids, last, active, batch)
        else:
            self._hidden[:batch] = 0
            self._feed(ids, last, np.ones_like(new), active, batch, keep=True)

    def _step(self, ids: np.ndarray, last: np.ndarray, active: np.ndarray, batch: int) -> None:
        """Feed token `last` of the active rows in one forward over all; parked rows write to the scratch column."""
        assert self._cache is not None
        parked = np.ones(batch, dtype=bool)
        parked[active] = False
        positions = np.where(parked, 0, last)[:, None]  # (B, 1)
        columns = np.where(parked, self._cache.max_length, last)[:, None]  # (B, 1)
        tokens = ids[np.arange(batch)[:, None], positions]  # (B, 1)
        inputs = list(to_device(np.stack([tokens, positions, columns]), self.parts.device))  # three of (B, 1)
        kv_length = min(rounded_up(int(last[active].max()) + 1), self._cache.max_length)
        hidden = self._step_function(batch, kv_length, inputs)(*inputs)  # (B, 1, H)
        self._hidden[:batch] = hidden[:, 0]
        if parked.any():
            self._hidden.index_fill_(0, to_device(np.flatnonzero(parked), self.parts.device), 0)

    def _step_function(self, batch: int, kv_length: int, example: list[Tensor]) -> Step:
        """The one-token step for these shapes: the model's own forward, or after some uses a replay of it."""
        key = (batch, kv_length)
        if key in self._steps:
            return self._steps[key]
        cache = self._cache
        assert cache is not None
        rows = torch.arange(batch, device=self.parts.device)

        def step(tokens: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
            write = SlotWrite(rows, True, columns, None, kv_length)
            cache.prepare(write)
            mask = cache.masks(write, self.parts.dtype)
            with few_rows(self.parts.device):
                return self.parts.hidden_states(
                    tokens, attention_mask=mask, position_ids=positions, cache=cache
                )  # (B, 1, H)

        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] <= USES_BEFORE_REPLAY or self.why_no_replay:
            return step
        try:
            self._steps[key] = record(step, *example)
        except RuntimeError as problem:
            self.why_no_replay = str(problem)
            return step
        return self._steps[key]

    def _feed(
        self, ids: np.ndarray, first: np.ndarray, count: np.ndarray, rows: np.ndarray, batch: int, *, keep: bool
    ) -> None:
        """Feed tokens first … first + count − 1 of `rows`; with `keep`, remember the last one's hidden state.

        Where the states of all rows would take too much memory, some are fed after others.
        """
        assert self._cache is not None
        most = self.parts.rows_at_once(int(count[rows].max()), len(rows))
        if most < len(rows):
            for part in np.array_split(rows, -(-len(rows) // most)):
                self._feed(ids, first, count, part, batch, keep=keep)
            return
        device = self.parts.device
        first = first[rows]  # (b,)
        count = count[rows]  # (b,)
        offset = np.arange(int(count.max()))
        padded = offset >= count[:, None]  # (b, n)
        positions = np.where(padded, 0, first[:, None] + offset)  # (b, n)
        columns = np.where(padded, self._cache.max_length, positions)  # (b, n)
        lockstep = not padded.any() and bool((first == first[0]).all())
        slots = to_device(rows, device)
        write = SlotWrite(
            rows=slots,
            whole=len(rows) == batch,
            columns=to_device(columns, device),
            start=int(first[0]) if lockstep else None,
            kv_length=int((first + count).max()),
        )
        self._cache.prepare(write)
        hidden = self.parts.hidden_states(
            to_device(ids[rows[:, None], positions], device),
            attention_mask=self._cache.masks(write, self.parts.dtype),
            position_ids=to_device(positions, device),
            cache=self._cache,
        )  # (b, n, H)
        if keep:
            last = to_device(count - 1, device)
            self._hidden[slots] = hidden[torch.arange(len(rows), device=device), last]  # (b, H)

    def _recompute(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        device = self.parts.device
        self.serial += 1
        width = max(int(lengths.max()), 1)
        hidden = self.parts.hidden_states(torch.from_numpy(ids[:, :width]).to(device))  # (B, l, H)
        last = torch.from_numpy(np.maximum(lengths - 1, 0)).to(device)
        out = hidden[torch.arange(len(ids), device=device), last]  # (B, H)
        return out * torch.from_numpy(lengths > 0).to(device)[:, None]

    def _ensure(self, batch: int, width: int) -> None:
        """Room for `batch` rows of `width` tokens, and the check of the model the first time it must go that far."""
        if not self.cached:
            return
        if width > self._checked_length:
            self.check(width)
            if not self.cached:
                return
        slots, length = self._tokens.shape
        here = self._hidden.device == self.parts.device
        if self._cache is not None and batch <= slots and width <= length and here:
            return
        slots = max(batch, slots)
        length = max(width, length)
        self._cache = SlotCache(self.parts.module.config.get_text_config(), slots, length)
        self._tokens = np.zeros((slots, length), dtype=np.int64)
        self._held = np.zeros(slots, dtype=np.int64)
        self._answered = self._held[:0]
        self._hidden = torch.zeros(slots, self.parts.hidden_size, dtype=self.parts.dtype, device=self.parts.device)
        self._steps.clear()

    def check(self, width: int) -> None:
        """Look at rows of up to `width` tokens: briefly at the model itself, and past the thresholds among them.

        Calls do so by themselves, the first time that rows are so wide. See `use_cache`.
        """
        first = self._checked_length
        self._checked_length = width
        crossed = [n for n in inner_thresholds(self.parts.module.config) if first < n < width]
        if first and not crossed:
            return
        try:
            error = incremental_error(self.parts, min(width, 12))
            if crossed:
                error = max(error, _error_past_thresholds(self.parts, crossed))
        # An architecture that cannot take such a cache says so in any of these ways; the reason is passed on below.
        except (
            ValueError,
            TypeError,
            NotImplementedError,
            RuntimeError,
            AttributeError,
            LookupError,
            AssertionError,
        ) as problem:
            reason = f"its cache cannot be kept by slot ({problem})"
        else:
            tolerance = tolerated(self.parts.dtype)
            if error <= tolerance:
                return
            if math.isinf(error):
                check_weights(self.parts.module, type(self.parts.module).__name__, advice=f"after training, {REMEDY}")
            past = f" past {', '.join(map(str, crossed))} tokens" if crossed else ""
            reason = f"stepping{past} differs from full recomputation by {error:.1e}, expected at most {tolerance:.0e}"
        name = type(self.parts.module).__name__
        if self._wanted:
            raise ValueError(f"{name} cannot be decoded incrementally: {reason}")
        self.why_uncached = reason
        warnings.warn(f"{name} runs without a cache, every step recomputing its prefix: {reason}", stacklevel=4)


def _error_past_thresholds(parts: Trunk, crossed: Sequence[int]) -> float:
    """`incremental_error` past these thresholds: of a small copy, or of the model itself where none can be made."""
    small = small_copy(parts.module)
    if small is None or small is parts.module:
        return incremental_error(parts, max(crossed) + 6, alone=small is not None)
    return _error_of_copy(small)


@lru_cache(maxsize=8)
def _error_of_copy(small: PreTrainedModel) -> float:
    return incremental_error(Trunk(small), probe_lengths(small.config)[-1], alone=True)


@torch.no_grad()
def incremental_error(parts: Trunk, width: int, *, alone: bool = False) -> float:
    """Relative difference between stepping ragged slots and recomputing them, over rows of up to `width`.

    Three slots are stepped a token at a time around every threshold of the configuration up to there (and the context
    allows), one of them short beside the others, and refilled on the way.

    Args:
        parts: what is stepped.
        width: of the longest row.
        alone: recompute each row alone and unpadded, instead of all in one batch.
    """
    config = parts.module.config
    longest = min(width, parts.context_length or width)
    around = [n + k for n in (0, *inner_thresholds(config)) for k in (-1, 0, 1, 2, 5, 6)]
    stops = sorted({n for n in (*around, 4, longest) if 2 < n <= longest}) or [longest]
    generator = np.random.default_rng(0)
    vocab_size = min(parts.vocab_size, parts.embedded)
    ids = generator.integers(0, vocab_size, size=(3, longest))  # (3, l)
    with evaluating(parts.module):
        decoder = Decoder(parts, use_cache=True)
        decoder._checked_length = longest
        worst = 0.0
        for step, n in enumerate(stops):
            if step == len(stops) // 2:  # a new prompt in a slot that steps on
                ids[2] = generator.integers(0, vocab_size, size=longest)
            lengths = np.maximum(np.array([n, n - 2, 1 + step % 4]), 1)
            stepped = decoder(ids, lengths)
            for rows in ([0], [1], [2]) if alone else ([0, 1, 2],):
                again = decoder._recompute(ids[rows], lengths[rows])  # (b, H)
                worst = max(worst, difference(stepped[rows], again))
    return worst


def rounded_up(length: int) -> int:
    """The least of the lengths the one-token step exists for that holds `length` columns."""
    block = max(KV_BLOCK, (1 << (length - 1).bit_length()) // 8)
    return -(-length // block) * block


def _storage(parts: Trunk) -> list[tuple[int, int, int]]:
    """What a replay depends on: the storage of each weight, which it reads wherever it lies; a CUDA graph: its address.

    A storage that is freed and made again, as that of a sharded policy is, stays the same one.
    """
    if parts.device.type == "cpu":
        weights = [(parameter, parameter.untyped_storage()._cdata) for parameter in parts.module.parameters()]
    else:
        weights = [(parameter, parameter.data_ptr()) for parameter in parts.module.parameters()]
    return [(id(parameter), int(place), int(parameter.storage_offset())) for parameter, place in weights]


def to_host(array: ArrayOrTensor) -> np.ndarray:
    """The array in NumPy as int64; nothing is copied for CPU tensors of that type."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().numpy()
    return array.astype(np.int64, copy=False)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on `device`; to a GPU through pinned memory, so that the host need not wait for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class LowPrecisionActor:
    """Decodes with a bf16 copy of `model`, brought up to date when its weights have changed.

    A decode step reads every weight once and does little with it: half the bytes are half the time.

    Args:
        model: whose weights are followed.
        use_cache: see `Decoder`.
    """

    def __init__(self, model: PreTrainedModel, *, use_cache: bool | None = None) -> None:
        self._model = model
        copied = copy.deepcopy(model).requires_grad_(False).bfloat16().eval()
        self.decoder = Decoder(LMParts(copied), use_cache=use_cache)
        self._pairs = list(zip(copied.parameters(), model.parameters(), strict=True))
        self._version = self._current()

    def up_to_date(self) -> bool:
        """Whether the copy is of the present weights; a change through `.data` is not noticed."""
        return self._version == self._current()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights again."""
        torch._foreach_copy_([ours for ours, _ in self._pairs], [theirs for _, theirs in self._pairs])
        self.decoder.invalidate()
        self._version = self._current()

    @property
    def device(self) -> torch.device:
        """The device of the copy."""
        return self.decoder.parts.device

    def _current(self) -> int:
        return sum(parameter._version for parameter in self._model.parameters())
