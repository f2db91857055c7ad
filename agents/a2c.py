"""`TokenA2C`: advantage actor-critic on whole episodes of text."""

from __future__ import annotations

from typing import ClassVar, Unpack

from stable_baselines3 import A2C
from stable_baselines3.common.type_aliases import Schedule

from rlhf_gym.agents.arguments import SAVED, TokenArguments
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.buffer import EpisodeBatch
from rlhf_gym.agents.losses import MinibatchLoss, MinibatchSize
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.losses import ppo_value_loss


class TokenA2C(TokenAlgorithm, A2C):
    """A2C, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783): the policy gradient with a critic's
    advantages, nothing clipped, one step a rollout.

    In more than one minibatch or epoch the steps after the first are importance-weighted, by token, so that they stay
    first-order right; nothing holds them back, so keep them few.

    Args:
        policy: `"LMPolicy"` or a policy class.
        env: a `TokenVectorEnv`, or the id of one (made with `n_envs` slots and deferred rewards).
        learning_rate: a number, or a schedule of the remaining progress (1 → 0).
        n_episodes: episodes a rollout.
        batch_size: episodes a minibatch; by default the whole rollout.
        n_epochs: passes over a rollout.
        gamma, gae_lambda: γ and λ. λ = 1, as in SB3's A2C: the return less the value.
        normalize_advantage: whiten advantages over the rollout's real tokens.
        vf_coef: weight of the value loss.
        arguments: what every agent takes: see `TokenArguments`.
    """

    label: ClassVar[str] = "A2C"
    saved_arguments: ClassVar[tuple[str, ...]] = (*SAVED, "gamma", "gae_lambda", "normalize_advantage", "vf_coef")

    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: float | Schedule = 1e-5,
        n_episodes: int = 64,
        batch_size: int | None = None,
        n_epochs: int = 1,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = False,
        vf_coef: float = 0.1,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_episodes=n_episodes,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=normalize_advantage,
            vf_coef=vf_coef,
            **arguments,
        )

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> MinibatchLoss:
        """−Ê[r·Â] + c₁·Ê[(V − V^targ)²]."""
        policy = self._policy_loss(batch, evaluation, size)
        value = ppo_value_loss(
            evaluation.values, batch.values, batch.returns, batch.mask, clip_range_vf=None, denominator=size.tokens
        )
        metrics = {
            "train/policy_gradient_loss": policy.loss.detach(),
            "train/value_loss": value.loss.detach(),
            "train/approx_kl": policy.approx_kl,
        }
        return MinibatchLoss(policy.loss + self.vf_coef * value.loss, metrics)
