"""The owners of β: fixed, adaptive, or the multiplier of a constraint on the KL.

A controller is told the mean KL of a rollout, per sequence (a sum over the response, in nats), and answers with the β
of the next one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from rlhf_gym.functional.kl import adaptive_kl_coef
from rlhf_gym.ranges import Count, NonNegative, Positive, Range, ShareBelowOne, argument_ranges, check_arguments

TREND = 0.7
"""Weight of the past in a constraint's trend."""


class KLController(ABC):
    """The owner of β (`kl_coef`), which updates it after each rollout."""

    kl_coef: float

    @property
    def desired_kl(self) -> float | None:
        """The KL per sequence that the controller steers to, in nats; None if it steers to none."""
        return None

    @abstractmethod
    def update(self, kl: float, n: int) -> float:
        """β after a rollout of `n` episodes whose mean KL per sequence was `kl`."""

    def state_dict(self) -> dict[str, Any]:
        """The controller's class and state, for JSON."""
        return {"class": type(self).__name__, **vars(self)}


class FixedKL(KLController):
    """A constant β."""

    @check_arguments
    def __init__(self, kl_coef: NonNegative) -> None:
        self.kl_coef = kl_coef

    def update(self, kl: float, n: int) -> float:
        return self.kl_coef


class AdaptiveKL(KLController):
    """Steers the KL towards a target: β ← β·(1 + clip(KL/target − 1, ±.2)·n/horizon).

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2.

    Args:
        kl_coef: the first β, > 0 (the rule multiplies).
        target: KL per sequence, in nats.
        horizon: episodes over which a full clip's worth of change adds up.
    """

    @check_arguments
    def __init__(self, kl_coef: Positive, target: Positive, horizon: Count = 10_000) -> None:
        self.kl_coef = kl_coef
        self.target = target
        self.horizon = horizon

    @property
    def desired_kl(self) -> float:
        return self.target

    def update(self, kl: float, n: int) -> float:
        self.kl_coef = adaptive_kl_coef(self.kl_coef, kl, target=self.target, n=n, horizon=self.horizon)
        return self.kl_coef


class ConstraintKL(KLController):
    """Maximise the score subject to KL ≤ δ: β is the multiplier, moved by dual ascent on log β, damped.

    After each rollout, of mean KL k:

        K ← s·K + (1 − s)·k             the KL, smoothed
        τ ← .7·τ + .3·ΔK                its trend, a rollout
        e = clip((K + h·τ)/δ − 1, ±1)   how far beyond the limit it will be h rollouts on
        I ← I + η·e                     dual ascent
        log β = I + κ·e                 plus a part proportional to the error

    On log β, so that β stays positive and takes as long to halve as to double. Dual ascent alone (κ = h = 0) swings: an
    update changes the policy, whose KL follows β only rollouts later, and on the way up from KL = 0 log β falls all
    the while. The proportional and the predictive part are those of a PID controller, with which Stooke et al. 2020
    (arXiv:2007.03964) damp such multipliers. The error is clipped to both sides: the mean KL of a rollout has outliers.

    The gains suit agents that come to a new KL within some ten rollouts; a slower one wants a smaller η, and rollouts
    whose mean KL is mostly noise (few episodes, a small δ) smaller η, κ and h. Once the learning rate has fallen to
    nearly 0, β no longer moves the KL.

    Where the policy of the lowest β has less KL than δ, the constraint is not active and β goes to its lower bound.

    Args:
        kl_coef: the first β, > 0.
        limit: δ, KL per sequence in nats.
        learning_rate: η.
        proportional: κ.
        lookahead: h, in rollouts.
        smoothing: s, the weight of the past in K.
        bounds: the lowest and the highest β.
    """

    @check_arguments
    def __init__(
        self,
        kl_coef: Positive,
        limit: Positive,
        *,
        learning_rate: Positive = 0.5,
        proportional: NonNegative = 0.7,
        lookahead: NonNegative = 2.0,
        smoothing: ShareBelowOne = 0.4,
        bounds: tuple[Positive, Positive] = (1e-6, 1e3),
    ) -> None:
        if not bounds[0] <= bounds[1]:
            raise ValueError(f"expected bounds (lowest, highest) with lowest <= highest, got {bounds}")
        self.kl_coef = kl_coef
        self.limit = limit
        self.learning_rate = learning_rate
        self.smoothing = smoothing
        self.proportional = proportional
        self.lookahead = lookahead
        self.lowest, self.highest = bounds
        self.average: float | None = None
        self.trend = 0.0
        self.integral = math.log(kl_coef)

    @property
    def desired_kl(self) -> float:
        return self.limit

    def update(self, kl: float, n: int) -> float:
        before = kl if self.average is None else self.average
        self.average = self.smoothing * before + (1 - self.smoothing) * kl
        self.trend = TREND * self.trend + (1 - TREND) * (self.average - before)
        error = float(np.clip((self.average + self.lookahead * self.trend) / self.limit - 1, -1, 1))
        low = math.log(self.lowest)
        high = math.log(self.highest)
        self.integral = float(np.clip(self.integral + self.learning_rate * error, low, high))
        log_coef = np.clip(self.integral + self.proportional * error, low, high)
        self.kl_coef = float(np.clip(np.exp(log_coef), self.lowest, self.highest))
        return self.kl_coef


def kl_controller_from(state: dict[str, Any]) -> KLController:
    """Make the controller that `state_dict` described.

    Raises:
        ValueError: its class is not one of ours, an earlier version saved it with fewer fields, or a number in it is
            none that such a controller may have.
    """
    kinds: dict[str, KLController] = {
        type(c).__name__: c for c in (FixedKL(1.0), AdaptiveKL(1.0, 1.0), ConstraintKL(1.0, 1.0))
    }
    controller = kinds.get(state["class"])
    if controller is None:
        raise ValueError(f"expected one of {sorted(kinds)}, got {state['class']}: pass kl_controller when loading")
    if missing := sorted(vars(controller).keys() - state.keys()):
        raise ValueError(
            f"expected all of {state['class']}, got one without {', '.join(missing)}, saved by an earlier version: "
            "pass kl_controller when loading"
        )
    declared = argument_ranges(type(controller).__init__)
    for name, value in vars(controller).items():
        declared.get(name, Range(float, optional=value is None)).check(name, state[name])
    vars(controller).update({name: state[name] for name in vars(controller)})
    return controller
