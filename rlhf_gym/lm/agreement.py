"""Whether a row among others is computed as it is alone; batches and caches are right only where it is.

Whoever evaluates rows in batches right-pads them and, under causal attention, needs no mask. That is right for most
models and for some of them only up to a length, so it is looked at past every length that a configuration names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_gym.lm.thresholds import inner_thresholds, probe_lengths, small_copy

States = Callable[[Tensor, Tensor], Tensor]
"""Right-padded ids (B, L) and their mask (B, L), 1 at real tokens → what is read of each token, (B, L, …)."""
StatesOf = Callable[[PreTrainedModel, Tensor, Tensor], Tensor]
"""The same of a model: (model, ids (B, L), mask (B, L)) → (B, L, …)."""


ROWS_A_LENGTH = 3
"""Rows of each length: what a model selects by its scores may agree in one row by chance."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, without dropout; afterwards it is back in the mode that it was in."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def tolerated(dtype: torch.dtype) -> float:
    """The relative difference that rounding explains."""
    return 1e-4 if dtype == torch.float32 else 5e-2


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative difference of two tensors: in fp32 the largest, in less the mean: rounding may choose experts."""
    gap = (found.float() - expected.float()).abs()
    size = expected.float().abs()
    if not torch.isfinite(gap).all():
        return float("inf")
    if expected.dtype == torch.float32:
        return float(gap.max() / size.max().clamp_min(1e-12))
    return float(gap.mean() / size.mean().clamp_min(1e-12))


@torch.no_grad()
def padding_error(states: States, lengths: Sequence[int], *, vocab_size: int, device: torch.device) -> float:
    """Relative difference between rows alone and unpadded, and the same rows among longer ones, right-padded.

    Args:
        states: what is compared, at the real tokens.
        lengths: of the rows, all in one batch.
        vocab_size: ids are drawn below it; padded places hold drawn ids too.
        device: where the ids are.
    """
    longest = max(lengths)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (len(lengths), longest), generator=generator).to(device)  # (B, L)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long().to(device)  # (B, L)
    together = states(ids, mask)  # (B, L, …)
    return max(
        difference(together[row, :n], states(ids[row : row + 1, :n], mask[row : row + 1, :n])[0])
        for row, n in enumerate(lengths)
    )


def check_rows(module: PreTrainedModel, states: StatesOf) -> None:
    """Rows of `module` do not depend on their batch-mates, on either side of every length that its configuration names.

    Looked at on a small copy of it (see `small_copy`). A length at which a longer batch-mate changes a row's positions
    bounds the context instead (`switch_length`).

    Args:
        module: a trunk, or any model of a Transformers class.
        states: what is read of such a model; a function of a module, so that a copy is looked at once.

    Raises:
        ValueError: they do.
    """
    named = inner_thresholds(module.config)
    small = small_copy(module) if named else None
    if small is None:
        return
    # a copy stays as it is, so looking at it once is enough; a module of the caller's may have changed
    try:
        error = _error(small, states) if small is module else _error_of_copy(small, states)
    except (AttributeError, LookupError, RuntimeError, TypeError, AssertionError) as problem:
        longest = probe_lengths(small.config)[-1]
        raise ValueError(
            f"{type(module).__name__} cannot run past its thresholds ({', '.join(map(str, named))} tokens): expected"
            f" rows of {longest} tokens to pass in a small copy, got {type(problem).__name__}: {problem}"
        ) from problem
    tolerance = tolerated(next(small.parameters()).dtype)
    if not error <= tolerance:
        raise ValueError(
            f"{type(module).__name__} computes a row otherwise among longer ones: expected the same within "
            f"{tolerance:.0e} on both sides of its thresholds ({', '.join(map(str, named))} tokens), "
            f"got a relative difference of {error:.1e} on a small copy of it"
        )


def _error(model: PreTrainedModel, states: StatesOf) -> float:
    return padding_error(
        lambda ids, mask: states(model, ids, mask),
        ROWS_A_LENGTH * probe_lengths(model.config),
        vocab_size=int(model.config.get_text_config(decoder=True).vocab_size),
        device=next(model.parameters()).device,
    )


_error_of_copy = lru_cache(maxsize=8)(_error)
