"""`TokenPPO`: proximal policy optimisation on whole episodes of text."""

from __future__ import annotations

from typing import ClassVar, Unpack

from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from rlhf_gym.agents.arguments import TokenArguments
from rlhf_gym.agents.base import TokenAlgorithm, weighted_policy_loss
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.rollout import EpisodeBatch, EpisodeBuffer, LossTerm, MinibatchSize
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.policy_gradient import ppo_value_loss


class TokenPPO(TokenAlgorithm, PPO):
    """PPO (Schulman et al. 2017, arXiv:1707.06347) with the details that RLHF settled on (Huang et al. 2024,
    arXiv:2403.17031): whole episodes, γ = 1, advantages whitened over real tokens, clipped value loss, token means
    over the whole minibatch, a KL controller.

    Args:
        policy: `"LMPolicy"` or a policy class.
        env: a `TokenVectorEnv`, or the id of one (made with `n_envs` slots and deferred rewards).
        learning_rate: a number, a schedule of the remaining progress (1 → 0), or None for that of docs/settings.md.
        n_episodes: episodes a rollout.
        batch_size: episodes a minibatch; None for the whole rollout.
        n_epochs: passes over a rollout.
        gamma, gae_lambda: γ and λ. γ < 1 would break the sum of KL and score.
        clip_range, clip_range_vf: ε of the policy and of the value (None: no value clipping).
        normalize_advantage: whiten advantages over the rollout's real tokens.
        vf_coef: weight of the value loss.
        arguments: what every agent takes: see `TokenArguments`.
    """

    label: ClassVar[str] = "PPO"
    defaults: ClassVar[str] = "ppo"
    saved_arguments: ClassVar[tuple[str, ...]] = ("gamma", "gae_lambda", "normalize_advantage", "vf_coef")
    saved_schedules: ClassVar[tuple[str, ...]] = ("clip_range", "clip_range_vf")

    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        n_episodes: int = 64,
        batch_size: int | None = 16,
        n_epochs: int = 4,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = 0.2,
        normalize_advantage: bool = True,
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
            **arguments,
        )
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip_range = FloatSchedule(clip_range)
        self.clip_range_vf = None if clip_range_vf is None else FloatSchedule(clip_range_vf)
        self.normalize_advantage = normalize_advantage
        self.vf_coef = vf_coef

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """Compute GAE, whitened if `normalize_advantage`."""
        buffer.compute_advantages(gamma=self.gamma, gae_lambda=self.gae_lambda, normalize=self.normalize_advantage)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """The loss −L^CLIP + c₁·L^VF."""
        progress = self._current_progress_remaining
        policy = weighted_policy_loss(batch, evaluation, size, clip_range=self.clip_range(progress))  # type: ignore[operator]
        value = ppo_value_loss(
            evaluation.values,
            batch.values,
            batch.returns,
            batch.mask,
            clip_range_vf=None if self.clip_range_vf is None else self.clip_range_vf(progress),  # type: ignore[operator]
            denominator=size.tokens,
        )
        metrics = {
            "train/policy_gradient_loss": policy.loss.detach(),
            "train/value_loss": value.loss.detach(),
            "train/approx_kl": policy.approx_kl,
            "train/clip_fraction": policy.clip_fraction,
            "train/value_clip_fraction": value.clip_fraction,
        }
        return LossTerm(policy.loss + self.vf_coef * value.loss, metrics)
