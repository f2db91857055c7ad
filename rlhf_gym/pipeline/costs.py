"""What looking at a run may cost: a fifth of the time of what is looked at, whatever the model's size.

Probes and evaluation take as many samples as are set where that is quick, as it is with small models, and fewer where
it is not. What was measured is kept in the run's folder: a run that goes on takes the samples that it would have taken.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_gym.files import InputError, read_json, write_json
from rlhf_gym.ranks import ranks

SHARE = 0.2
"""The part of the time of what is looked at that looking may take."""
ALWAYS = 20.0
"""Seconds that looking may take at any rate."""
TIMING_FILE = "timing.json"
CHECKSUM = "checksum"
"""The name in that file under which stands a checksum of the rest: how many samples are taken follows from it."""
STEP_SECONDS = 10.0
LEAST_STEP = 64
"""Seconds between two steps of the progress of scoring, and texts that are scored between them at least."""


def allowed(seconds: float) -> float:
    """The seconds that looking at work of so many seconds may take."""
    return max(ALWAYS, SHARE * seconds)


def affordable(wanted: int, share: float, least: int) -> int:
    """As many samples as are wanted, or this share of them; of any that are wanted at least `least`."""
    return wanted if share >= 1 else min(wanted, max(least, int(share * wanted)))


def steps_of(text: float) -> int:
    """Texts that are scored between two steps of the progress, where one takes so many seconds."""
    return max(LEAST_STEP, int(STEP_SECONDS / max(text, 1e-9)))


class Timing:
    """Seconds by name that a stage took, over all starts of it, and numbers that were decided by them, in its folder.

    Of several ranks each has its own; rank 0's are written, and what is decided by them is decided there.

    Args:
        folder: the stage's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TIMING_FILE
        self._known: dict[str, float] = read_json(self._path) or {}
        if self._known.pop(CHECKSUM, None) not in (None, _checksum(self._known)):
            raise InputError(
                f"expected {self._path} as a stage wrote it, got other contents: without the file, what it measured is "
                "measured again"
            )

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the time that the block takes, also where it ends by an interrupt."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.keep(name, self.get(name) + time.perf_counter() - started)

    def get(self, name: str) -> float:
        """What is known under this name; 0 for nothing yet."""
        return self._known.get(name, 0.0)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def keep(self, name: str, value: float) -> None:
        """Write a value down."""
        self._known[name] = value
        if not ranks().leads:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._known | {CHECKSUM: _checksum(self._known)})


def _checksum(values: dict[str, float]) -> int:
    return zlib.crc32(json.dumps(values).encode())
