"""An endless, seeded way through given data: where it stands is one number."""

from __future__ import annotations

import numpy as np


def walk(start: int, n: int, count: int, *, seed: int) -> list[int]:
    """Steps `start` … `start + n − 1` of an endless walk through 0 … count − 1, in a new order at every pass."""
    found: list[int] = []
    while len(found) < n:
        number, first = divmod(start + len(found), count)
        order = np.random.default_rng((seed, number)).permutation(count)
        found += order[first : first + n - len(found)].tolist()
    return found
