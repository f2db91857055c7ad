"""`TokenPPO`: proximal policy optimisation on whole episodes of text."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from rlhf_gym.agents.arguments import TokenArguments
from rlhf_gym.agents.base import TokenAlgorithm, UpdateSettings
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.rollout import EpisodeBatch, EpisodeBuffer, LengthAdaptive, LossTerm, MinibatchSize, policy_term
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.policy_gradient import Clip, Surrogate, chosen_surrogate, ppo_value_loss
from rlhf_gym.ranges import Count, NonNegative, Positive, Share, Whole, check_arguments


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
        gamma, gae_lambda: γ and λ. γ < 1 would break the sum of KL and score. `LengthAdaptive()` in λ's place gives
            each response a λ by its length.
        clip_range, clip_range_vf: ε of the policy (by default .2) and of the value (None: no value clipping).
        normalize_advantage: whiten advantages over the rollout's real tokens.
        vf_coef: weight of the value loss.
        surrogate: what is done with the policy's ratio in place of clipping it to `clip_range`: `Clip`, `SequenceClip`,
            `CISPO`, see `Surrogate`.
        critic_lambda: λ of the critic's targets (Yuan et al. 2025, "VC-PPO", arXiv:2503.01491); None for that of the
            advantages. With 1 a target is what the response earned from there on, which has no bias and more variance.
        critic_warmup: the first so many iterations train the critic alone, on rollouts of the policy as it began
            ("value pretraining" in VC-PPO). Every weight of the policy stays as it is, and so does β. With
            `critic="shared"` only the value head learns then, otherwise the critic's own trunk too. Their tokens count.
        arguments: what every agent takes: see `TokenArguments`.
    """

    label: ClassVar[str] = "PPO"
    defaults: ClassVar[str] = "ppo"
    saved_arguments: ClassVar[tuple[str, ...]] = (
        "gamma",
        "normalize_advantage",
        "vf_coef",
        "critic_lambda",
        "critic_warmup",
    )
    saved_schedules: ClassVar[tuple[str, ...]] = ("clip_range", "clip_range_vf", "gae_lambda", "surrogate")

    @check_arguments
    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: NonNegative | Schedule | None = None,
        n_episodes: Count = 64,
        batch_size: Count | None = 16,
        n_epochs: Count = 4,
        gamma: Share = 1.0,
        gae_lambda: Share | LengthAdaptive = 0.95,
        clip_range: Positive | Schedule | None = None,
        clip_range_vf: Positive | Schedule | None = 0.2,
        normalize_advantage: bool = True,
        vf_coef: NonNegative = 0.1,
        surrogate: Surrogate | None = None,
        critic_lambda: Share | None = None,
        critic_warmup: Whole = 0,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        self.surrogate = chosen_surrogate(type(self).__name__, surrogate, clip_range)
        super().__init__(policy, env, learning_rate, n_episodes, batch_size, n_epochs, **arguments)
        self.gamma = gamma
        self.gae_lambda = gae_lambda  # type: ignore[assignment]  # SB3 has numbers alone
        self.clip_range = FloatSchedule(0.2 if clip_range is None else clip_range) if surrogate is None else None  # type: ignore[assignment]
        self.clip_range_vf = None if clip_range_vf is None else FloatSchedule(clip_range_vf)
        self.normalize_advantage = normalize_advantage
        self.vf_coef = vf_coef
        self.critic_lambda = critic_lambda
        self.critic_warmup = critic_warmup
        self._warmed_up = 0  # iterations that trained the critic alone

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """Compute GAE, whitened if `normalize_advantage`."""
        buffer.compute_advantages(
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            critic_lambda=self.critic_lambda,
            normalize=self.normalize_advantage,
        )

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """The loss −L^CLIP + c₁·L^VF."""
        progress = self._current_progress_remaining
        surrogate = self.surrogate or Clip(self.clip_range(progress))  # type: ignore[operator]
        policy = policy_term(batch, evaluation, size, surrogate)
        value = ppo_value_loss(
            evaluation.values,
            batch.values,
            batch.returns,
            batch.mask,
            clip_range_vf=None if self.clip_range_vf is None else self.clip_range_vf(progress),  # type: ignore[operator]
            denominator=size.tokens,
        )
        metrics = policy.metrics | {
            "train/value_loss": value.loss.detach(),
            "train/value_clip_fraction": value.clip_fraction,
        }
        return LossTerm(policy.loss + self.vf_coef * value.loss, metrics)

    @property
    def update_settings(self) -> UpdateSettings:
        """How the agent goes through a rollout; while `critic_warmup` lasts, for its critic alone."""
        return super().update_settings._replace(critic_alone=self._warmed_up < self.critic_warmup)

    def train(self) -> None:
        """Epochs over the rollout's minibatches, and a step on in `critic_warmup`."""
        alone = self.update_settings.critic_alone
        super().train()
        self._warmed_up += alone

    def own_state(self) -> dict[str, Any]:
        """How many iterations have trained the critic alone."""
        return {"warmed_up": self._warmed_up}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `own_state()` gave."""
        self._warmed_up = state.get("warmed_up", 0)
