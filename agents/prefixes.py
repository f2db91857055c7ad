"""Packing by prefix: steps of one episode are prefixes of one another, and one forward over the longest serves all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PrefixPacking(NamedTuple):
    """Which rows to run, and where each row finds its state."""

    leaders: np.ndarray
    """Rows that are a prefix of no other row, (G,)."""
    leader_of: np.ndarray
    """For each row the place in `leaders` of a row it is a prefix of (or equal to), (B,)."""


def pack_prefixes(input_ids: np.ndarray, lengths: np.ndarray) -> PrefixPacking:
    """Group right-padded rows (B, L) with lengths (B,) into families of prefixes.

    Sorted lexicographically with padding counting as −1, a prefix stands right before its extensions, so one look at
    the neighbour finds the families.
    """
    width = int(lengths.max())
    keys = np.where(np.arange(width) < lengths[:, None], input_ids[:, :width], -1)  # (B, l)
    order = np.lexsort(keys.T[::-1])  # (B,)
    ordered, sizes = keys[order], lengths[order]
    same = (ordered[:-1] == ordered[1:]) | (np.arange(width) >= sizes[:-1, None])  # (B - 1, l)
    extended = same.all(axis=1)  # the next row continues this one
    family_ends = np.append(~extended, True)  # (B,)
    leaders = order[family_ends]
    family = np.cumsum(family_ends) - family_ends  # (B,) families that ended before this row
    leader_of = np.empty(len(order), dtype=np.int64)
    leader_of[order] = family
    return PrefixPacking(leaders, leader_of)
