"""What fits into memory, estimated from a model's configuration: slots of a cache, rows of a forward, a micro-batch.

The estimates leave room to spare. They bind where a model is large, so that small ones are worked with as ever.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

STATES_AT_ONCE = 1 << 30
"""Bytes of hidden states of one layer that a forward without gradients holds at most."""
PART = 0.6
"""The part of the memory that is free that is made use of."""


class Sizes(NamedTuple):
    """Bytes that a model in fp32 takes, in numbers that its configuration states."""

    parameters: int
    """Weights, their number."""
    cached: int
    """Bytes of keys and values a token."""
    read: int
    """Bytes of the states of one layer a token, which a forward without gradients holds."""
    trained: int
    """Bytes of the states of all layers a token, which a forward with gradients keeps for the backward pass."""


def sizes(config: PreTrainedConfig) -> Sizes:
    """The sizes of a causal language model, or of a reward model on its trunk.

    A layer with gradients keeps about 12 states of the hidden size a token (of norms, attention, residuals) and 4 of
    the size inside its MLP, as Korthikanti et al. 2022 (arXiv 2205.05198) count without what fused attention spares.
    """
    text = config.get_text_config()
    hidden = _number(text, "hidden_size", 1)
    layers = _number(text, "num_hidden_layers", 1)
    heads = _number(text, "num_attention_heads", 1)
    inner = _number(text, "intermediate_size", 4 * hidden)
    key_values = _number(text, "num_key_value_heads", heads)
    width = _number(text, "head_dim", max(1, hidden // heads))
    weights = layers * (2 * hidden * width * (heads + key_values) + 3 * hidden * inner)
    weights += _number(text, "vocab_size", 1) * hidden
    return Sizes(
        parameters=weights,
        cached=4 * layers * 2 * key_values * width,
        read=4 * (8 * hidden + 4 * inner),
        trained=4 * layers * (12 * hidden + 4 * inner),
    )


def _number(config: PreTrainedConfig, name: str, default: int) -> int:
    """A size in a configuration: of a list, one a layer, the largest; the default where it has none of this name."""
    value = getattr(config, name, None)  # not every configuration has every field, or a value for it
    values = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int) and v > 0]
    return max(values, default=default)


def free_memory(device: torch.device | str) -> int:
    """Bytes that are free on a device: of a GPU, or of the machine, or of what this process's control group may use.

    Of what several processes of torchrun share it is this one's part.
    """
    device = torch.device(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // -(-processes // torch.cuda.device_count())
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "MemAvailable" in lines:
            free = [1024 * int(lines["MemAvailable"].split()[0])]
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()).isdecimal():
        free.append(int(text) - int((group / "memory.current").read_text(encoding="utf-8")))
    return max(0, min(free)) // processes


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next ones; for whole programs, as it holds for all.

    glibc gives large blocks back to the system. A training step on a CPU asks for the same ones again, and each new
    page of theirs costs a fault: a tenth of the time of a step of 135M weights. Blocks above 32 MB, such as logits
    over a large vocabulary, are given back as before. Kept too, they leave gaps that others do not fit: the peak of an
    update at V = 49,152 doubled.

    Returns:
        Whether the C library took the settings (mallopt(3), `M_MMAP_THRESHOLD` and `M_TRIM_THRESHOLD`); only glibc's
        does, and variables `MALLOC_…` of the environment are left to decide.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return mallopt(_MMAP_THRESHOLD, _KEPT) == 1 and mallopt(_TRIM_THRESHOLD, 2**31 - 1) == 1


_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
_KEPT = 32 * 2**20


def rows_at_once(device: torch.device, *, width: int, read: int, most: int | None = None) -> int:
    """Sequences in one forward where nothing is trained.

    A CPU is as quick with few, and few take less memory. Long rows of a large model are fewer, so that the states of a
    layer stay within `STATES_AT_ONCE`.

    Args:
        device: where they are read.
        width: tokens of the longest row.
        read: `Sizes.read`.
        most: at most so many; by default what suits the device.
    """
    suits = 16 if device.type == "cpu" else 64
    return max(1, min(most or suits, STATES_AT_ONCE // max(1, width * read)))


def slots_that_fit(wanted: int, *, width: int, cached: int, free: int) -> int:
    """As many slots of a cache as are wanted, or as have room.

    Args:
        wanted: slots.
        width: tokens of a slot.
        cached: `Sizes.cached`.
        free: bytes.
    """
    return max(1, min(wanted, int(PART * free) // max(1, width * cached)))


def micro_batch(batch_size: int, *, row: int, fixed: int, free: int, unit: int = 1) -> int | None:
    """Examples of a batch that are held at once: a divisor of it and a multiple of `unit`; None where all of it fits.

    Args:
        batch_size: examples of an optimizer step.
        row: bytes of one example with gradients.
        fixed: bytes of weights, gradients and moments.
        free: bytes.
        unit: examples that stay together.
    """
    room = (PART * free - fixed) / max(1, row)
    if room >= batch_size:
        return None
    fit = [n for n in range(unit, batch_size + 1, unit) if batch_size % n == 0 and n <= room]
    return max(fit, default=unit)
