"""The remedies: each a name, the PPO settings that differ from no remedy, and the reward model it learns against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_gym.rewards import Aggregate

Source = Literal["single", "separate", "shared"]


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    """In files and on the command line."""
    label: str
    """In the table."""
    family: str
    """Which picture it is in."""
    ppo: dict[str, Any] = field(default_factory=dict)
    """Fields of `PPOConfig` that differ from no remedy's, which is β = 0."""
    reward: Source = "single"
    """The reward model, or the ensemble."""
    aggregate: Aggregate = "mean"
    """How an ensemble's members become one score."""
    uncertainty_weight: float = 0.0
    """λ of "uwo"."""
    fresh: bool = False
    """Half the labels are spent on the policy's own responses."""
