"""Observations as a policy reads them: token ids and lengths, and which rows are prefixes of one another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rlhf_gym.envs.episode import Observation


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Raise where the spaces are not those of a token environment.

    Raises:
        ValueError: saying what was expected and what came.
    """
    keys = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
    if not {"input_ids", "attention_mask"} <= keys or not isinstance(action_space, spaces.Discrete):
        raise ValueError(
            "expected observations Dict(input_ids, attention_mask) and Discrete actions, "
            f"got {observation_space} and {action_space}"
        )


def read(observation: PyTorchObs | Observation) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (N, L) and lengths (N,) of an observation, on the host."""
    ids = observation["input_ids"]  # type: ignore[index]
    mask = observation["attention_mask"]  # type: ignore[index]
    if isinstance(ids, Tensor):
        ids = ids.detach().cpu().numpy()
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().numpy()
    if ids.dtype.kind == "f" and (ids != np.rint(ids)).any():
        raise ValueError("expected token ids in the observation, got fractions: with VecNormalize say norm_obs=False")
    if ids.ndim == 1:
        ids = ids[None]
        mask = mask[None]
    return ids.astype(np.int64, copy=False), mask.sum(axis=-1, dtype=np.int64)


class PrefixPacking(NamedTuple):
    """Which rows to run, and where each row finds its state."""

    leaders: np.ndarray
    """Rows that are a prefix of no other row, (G,)."""
    leader_of: np.ndarray
    """For each row the place in `leaders` of a row it is a prefix of (or equal to), (B,)."""


def pack_prefixes(input_ids: np.ndarray, lengths: np.ndarray) -> PrefixPacking:
    """Group right-padded rows (B, L) with lengths (B,) into families of prefixes.

    The steps of an episode are prefixes of one another, and one forward over the longest serves them all. Sorted
    lexicographically with padding counting as −1, a prefix stands right before its extensions, so that a look at the
    neighbour finds the families.
    """
    width = int(lengths.max())
    keys = np.where(np.arange(width) < lengths[:, None], input_ids[:, :width], -1)  # (B, l)
    order = np.lexsort(keys.T[::-1])  # (B,)
    ordered = keys[order]  # (B, l)
    sizes = lengths[order]  # (B,)
    same = (ordered[:-1] == ordered[1:]) | (np.arange(width) >= sizes[:-1, None])  # (B - 1, l)
    extended = same.all(axis=1)  # (B - 1,): the next row continues this one
    family_ends = np.append(~extended, True)  # (B,)
    leaders = order[family_ends]  # (G,)
    leader_of = np.empty(len(order), dtype=np.int64)
    leader_of[order] = np.cumsum(family_ends) - family_ends  # (B,): families that ended before this row
    return PrefixPacking(leaders, leader_of)
