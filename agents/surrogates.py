"""What an update makes larger: PPO's clipped ratio and its successors, as small records that the agents share.

    TokenPPO(surrogate=Clip(0.2, 0.28, dual=3.0))
    TokenGRPO(surrogate=SequenceClip(), aggregation="sequence")
    TokenReinforce(surrogate=CISPO(high=4.0), n_epochs=4, batch_size=16)

A function of one's own in their place takes and returns what `ppo_policy_loss` does; it must be given again to `load`.
The formulas are in `rlhf_gym.functional.policy_gradient`; docs/losses.md says which to choose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

from annotated_types import Ge, Gt
from torch import Tensor

from rlhf_gym.agents.policy import EpisodeEvaluation
from rlhf_gym.agents.rollout import EpisodeBatch, LossTerm, MinibatchSize
from rlhf_gym.functional.policy_gradient import PolicyLoss, cispo_policy_loss, gspo_policy_loss, ppo_policy_loss
from rlhf_gym.ranges import INFINITE, check_ranges


class Surrogate(Protocol):
    """A loss whose gradient at the policy that acted is REINFORCE's."""

    def __call__(
        self,
        log_prob: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        mask: Tensor,
        /,
        *,
        denominator: Tensor | float | None = None,
    ) -> PolicyLoss:
        """The loss, its mean taken over `denominator`; all four tensors (B, T)."""
        ...


Epsilon = Annotated[float, Ge(0), INFINITE]
"""How far a ratio may be from 1; an infinite one clips nothing."""


@dataclass(frozen=True)
class Clip:
    """PPO's clipped ratio of each token, see `ppo_policy_loss`. A larger `high` is DAPO's clip-higher."""

    low: Epsilon = 0.2
    """ε_low: the ratio is clipped to at least 1 − ε_low."""
    high: Epsilon | None = None
    """ε_high: and to at most 1 + ε_high; None for ε_low."""
    dual: Annotated[float, Gt(1)] | None = None
    """c > 1 bounds the ratio of tokens with Â < 0 too ("dual clip"); None for no such bound."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, *terms: Tensor, denominator: Tensor | float | None = None) -> PolicyLoss:
        clip_range = (self.low, self.low if self.high is None else self.high)
        return ppo_policy_loss(*terms, clip_range=clip_range, dual_clip=self.dual, denominator=denominator)


@dataclass(frozen=True)
class SequenceClip:
    """GSPO: one ratio for all tokens of a response, the geometric mean of theirs, see `gspo_policy_loss`."""

    low: Epsilon = 3e-4
    """ε_low, as in the paper. It is for long responses: the ratio of one of T tokens varies like 1/√T."""
    high: Epsilon | None = None
    """ε_high; None for 4/3·ε_low, the paper's proportion."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, *terms: Tensor, denominator: Tensor | float | None = None) -> PolicyLoss:
        high = self.low * 4 / 3 if self.high is None else self.high
        return gspo_policy_loss(*terms, clip_range=(self.low, high), denominator=denominator)


@dataclass(frozen=True)
class CISPO:
    """Clipped importance weights without a gradient, so that every token keeps its own: see `cispo_policy_loss`."""

    high: Epsilon
    """ε_high: weights are at most 1 + ε_high."""
    low: Epsilon = 1.0
    """ε_low: and at least 1 − ε_low; 1 for no bound, as in the paper."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, *terms: Tensor, denominator: Tensor | float | None = None) -> PolicyLoss:
        return cispo_policy_loss(*terms, clip_range=(self.low, self.high), denominator=denominator)


UNCLIPPED = Clip(math.inf)
"""The importance-weighted policy gradient, −Ê[r·Â]."""


def policy_term(
    batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize, surrogate: Surrogate | None
) -> LossTerm:
    """The surrogate's loss on a micro-batch; without one the loss −Ê[r·Â].

    The latter is REINFORCE's gradient where r = 1, on the rollout's own policy, and importance-weighted after a step
    away from it.
    """
    policy = (surrogate or UNCLIPPED)(
        evaluation.log_probs,
        batch.log_probs,
        batch.advantages * size.weights(batch),
        batch.mask,
        denominator=size.tokens,
    )
    metrics = {"train/policy_gradient_loss": policy.loss.detach(), "train/approx_kl": policy.approx_kl}
    if surrogate is not None:
        metrics["train/clip_fraction"] = policy.clip_fraction
    return LossTerm(policy.loss, metrics)


def chosen_surrogate(agent: str, surrogate: Surrogate | None, clip_range: object) -> Surrogate | None:
    """The surrogate that an agent is given; None where it is `clip_range` that says how the ratio is clipped.

    Raises:
        TypeError: it cannot be called. ValueError: both are given.
    """
    if surrogate is None:
        return None
    if isinstance(surrogate, type) or not callable(surrogate):
        raise TypeError(f"expected a surrogate such as Clip(0.2, 0.28), got {surrogate!r}")
    if clip_range is not None:
        raise ValueError(
            f"expected a surrogate or a clip_range, got both, {surrogate!r} and {clip_range!r}: {agent}'s "
            "clip_range is short for Clip(clip_range)"
        )
    return surrogate
