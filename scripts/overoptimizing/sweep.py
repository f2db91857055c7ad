"""What is swept: the size of the reward model, the preferences it is told, and the share of them that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

Factor = Literal["size", "labels", "noise"]
FACTORS: tuple[Factor, ...] = get_args(Factor)


class Trunk(NamedTuple):
    """The shape of a reward model's GPT-2."""

    width: int
    """Hidden size."""
    layers: int
    """Blocks."""

    @property
    def name(self) -> str:
        """For folders and figures: 64x2."""
        return f"{self.width}x{self.layers}"

    @property
    def heads(self) -> int:
        """Attention heads, of 16 dimensions where the width allows."""
        return max(1, min(4, self.width // 16))


@dataclass(frozen=True)
class Arm:
    """One reward model's making."""

    trunk: Trunk
    """Its size."""
    labels: int
    """Preferences it is trained on."""
    noise: float
    """Share of them that are turned round."""

    @property
    def name(self) -> str:
        """For the folder of its runs."""
        return f"{self.trunk.name}-{self.labels}-{self.noise:g}"

    def with_level(self, factor: Factor, level: Trunk | int | float) -> Arm:
        """The same but for one factor."""
        return replace(self, **{{"size": "trunk", "labels": "labels", "noise": "noise"}[factor]: level})


@dataclass(frozen=True)
class Sweep:
    """One factor at a time around a base."""

    base: Arm
    """Where the factors cross."""
    trunks: tuple[Trunk, ...]
    """Sizes, small ones first."""
    labels: tuple[int, ...]
    """Numbers of preferences, few first."""
    noises: tuple[float, ...]
    """Shares of flipped labels, few first."""

    def levels(self, factor: Factor) -> tuple[Trunk, ...] | tuple[int, ...] | tuple[float, ...]:
        """What a factor is set to."""
        return {"size": self.trunks, "labels": self.labels, "noise": self.noises}[factor]

    def arms_of(self, factor: Factor) -> list[Arm]:
        """An arm a level, in the levels' order."""
        return [self.base.with_level(factor, level) for level in self.levels(factor)]

    @property
    def arms(self) -> list[Arm]:
        """All of them, each once."""
        return list(dict.fromkeys(arm for factor in FACTORS for arm in self.arms_of(factor)))


SWEEP = Sweep(
    base=Arm(Trunk(64, 2), 2_000, 0.1),
    trunks=(Trunk(8, 1), Trunk(24, 1), Trunk(32, 2), Trunk(64, 2), Trunk(128, 4)),
    labels=(125, 500, 2_000, 8_000),
    noises=(0.0, 0.1, 0.25, 0.4),
)

QUICK_SWEEP = Sweep(
    base=Arm(Trunk(32, 2), 2_000, 0.1), trunks=(Trunk(8, 1), Trunk(32, 2)), labels=(125, 2_000), noises=(0.1, 0.4)
)
