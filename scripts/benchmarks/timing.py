"""Clocks, and how variants are compared: in turn, round by round, so that a slow minute of the machine meets all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

Say = Callable[[str], None]
"""Told what is being measured."""

BUSY = 0.05
"""Share of the machine that other processes may use before a measurement is doubted."""


def now(device: str) -> float:
    """Seconds; on CUDA everything asked for before has been done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def device_seconds(run: Callable[[], object], device: str) -> float:
    """How long `run` takes: on CUDA between two events on the device."""
    if device != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


class ForeignLoad:
    """What other processes use of the CPU: /proc/stat less this process's own time.

    Read from the start of the object to each call; NaN where there is no /proc/stat.
    """

    def __init__(self) -> None:
        self._start = self._read()

    def __call__(self) -> float:
        """Share of all cores, 0 … 1."""
        wall, busy, own = (b - a for a, b in zip(self._start, self._read(), strict=True))
        return max(0.0, busy - own) / max(wall * (os.cpu_count() or 1), 1e-9)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = os.times()
        own = times.user + times.system
        stat = Path("/proc/stat")
        if not stat.is_file():
            return time.perf_counter(), float("nan"), own
        user, nice, system, _, _, irq, soft_irq, steal = (int(x) for x in stat.read_text().split()[1:9])
        ticks = user + nice + system + irq + soft_irq + steal
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own


class Variant(NamedTuple):
    """One of the things compared."""

    run: Callable[[], float]
    """Does the work once; returns how many tokens it counts for."""
    warm_ups: int = 1


class Comparison(NamedTuple):
    """What a round-robin found."""

    rates: dict[str, list[float]]
    """Tokens a second of each variant, a number a round."""
    foreign: float
    """Share of the CPU that other processes used meanwhile."""

    def rate(self, name: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates[name])

    def ratio(self, ours: str, theirs: str) -> float:
        """Median over the rounds of the ratio within a round."""
        return statistics.median(a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True))

    def ratios(self, ours: str, theirs: str) -> tuple[float, float]:
        """The lowest and the highest round's ratio."""
        each = [a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True)]
        return min(each), max(each)


def round_robin(variants: Mapping[str, Variant], *, rounds: int, min_seconds: float, device: str) -> Comparison:
    """Time every variant once a round, beginning each round with another one.

    A variant is run again and again until `min_seconds` have passed.
    """
    for variant in variants.values():
        for _ in range(variant.warm_ups):
            variant.run()
    names = list(variants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    load = ForeignLoad()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started, count = now(device), 0.0
            while True:
                count += variants[name].run()
                seconds = now(device) - started
                if seconds >= min_seconds:
                    break
            rates[name].append(count / seconds)
    return Comparison(rates, load())


def peak_memory_mb(device: str) -> float:
    """Peak of this process, MB: of its device memory on CUDA, else resident (Linux: VmHWM, which a parent's peak does
    not leak into as it does into `ru_maxrss`)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
