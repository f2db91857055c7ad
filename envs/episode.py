"""Records that pass between an environment and whoever learns on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

Observation = dict[str, np.ndarray]
"""`input_ids` (N, L) int64 and `attention_mask` (N, L) int8, left-aligned and right-padded."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One finished episode."""

    number: int
    """Counts the episodes of an environment in the order they were started."""
    slot: int
    """The slot it was played in."""
    input_ids: np.ndarray
    """Prompt, then response with its stop token, shape (P + T,) int64."""
    prompt_length: int
    """P."""
    finish_reason: str
    """`"stop"` at a stop token, `"length"` at `max_new_tokens`."""

    @property
    def response_length(self) -> int:
        """T, the number of actions."""
        return len(self.input_ids) - self.prompt_length

    @property
    def response_ids(self) -> np.ndarray:
        """The actions, shape (T,)."""
        return self.input_ids[self.prompt_length :]


class EpisodeScores(NamedTuple):
    """What r_φ says of whole episodes, and what becomes of it."""

    scores: np.ndarray
    """What falls on the last action: shaped, any missing-EOS penalty included, shape (E,)."""
    raw_scores: np.ndarray
    """As r_φ gave them, shape (E,)."""
    member_scores: np.ndarray | None = None
    """Of each member where r_φ is an ensemble, shape (members, E)."""


class EpisodeRewards(NamedTuple):
    """What whole episodes earn; rows are right-padded to the longest response."""

    rewards: np.ndarray
    """Reward of each action, shape (E, T) float32; 0 at padding."""
    scores: np.ndarray
    """Score of r_φ on the last action, shaped, any missing-EOS penalty included, shape (E,)."""
    log_ratios: np.ndarray
    """log π(a|s) − log π_ref(a|s), shape (E, T); 0 at padding and without a reference."""
    ref_log_probs: np.ndarray
    """log π_ref(a|s), shape (E, T)."""
    raw_scores: np.ndarray | None = None
    """As r_φ gave them, before any shaping, shape (E,); None where rewards were taken step by step."""
    member_scores: np.ndarray | None = None
    """Of each member where r_φ is an ensemble, shape (members, E)."""


class StepRecord(NamedTuple):
    """What a step did that its return value does not say."""

    episodes: list[Episode]
    """The episodes it ended."""
    scores: np.ndarray
    """Their scores, shape (episodes,); NaN while deferred."""
    log_ratios: np.ndarray
    """log π(a|s) − log π_ref(a|s) of each slot's action, shape (N,); 0 while deferred and where nothing acted."""
    episode_log_ratios: Sequence[np.ndarray] = ()
    """The same of all actions of each ended episode, (T_e,) each; 0 while deferred."""
    member_scores: np.ndarray | None = None
    """Of each member where r_φ is an ensemble and scores at once, shape (members, episodes)."""


@runtime_checkable
class ActionLogProb(Protocol):
    """What `attach` takes: anything that knows the log-probability of its actions."""

    def action_log_prob(self, observation: Observation, action: np.ndarray) -> np.ndarray | Tensor:
        """log π(a|s) of each slot's action, shape (N,); what it says of parked slots (empty mask) is not read."""
        ...
