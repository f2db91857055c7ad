"""`TokenPPO`: proximal policy optimisation on whole episodes of text."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from rlhf_gym.agents.base import KLLoss, MinibatchLoss, TokenAlgorithm
from rlhf_gym.agents.buffer import EpisodeBatch
from rlhf_gym.agents.kl_control import KLController
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.losses import ppo_policy_loss, ppo_value_loss


class TokenPPO(TokenAlgorithm, PPO):
    """PPO (Schulman et al. 2017, arXiv:1707.06347) with the details that RLHF settled on (Huang et al. 2024,
    arXiv:2403.17031): whole episodes, γ = 1, advantages whitened over real tokens, clipped value loss, token means
    over the whole minibatch, a KL controller.

    Args:
        policy: `"LMPolicy"` or a policy class.
        env: a `TokenVectorEnv`, or the id of one (made with `n_envs` slots and deferred rewards).
        learning_rate: a number, or a schedule of the remaining progress (1 → 0).
        n_episodes: episodes a rollout.
        batch_size: episodes a minibatch.
        n_epochs: passes over a rollout.
        micro_batch_size: episodes in one forward; smaller takes less memory and gives the same update.
        gamma, gae_lambda: γ and λ. γ < 1 would break the sum of KL and score.
        clip_range, clip_range_vf: ε of the policy and of the value (None: no value clipping).
        normalize_advantage: whiten advantages over the rollout's real tokens.
        ent_coef, vf_coef, max_grad_norm: as in SB3.
        target_kl: stop the epochs when KL(π_old‖π) exceeds 1.5 times this.
        kl_controller: who sets β; by default β stays the environment's `kl_coef`.
        kl_loss: with the environment's `kl_in="loss"`, which KL the loss has: `"full"` over the vocabulary, or `"k2"`.
        n_envs: slots, where `env` is an id.
        policy_kwargs: for the policy; without `model` it starts as a copy of the environment's π_ref.
        stats_window_size, tensorboard_log, verbose, seed, device: as in SB3.
    """

    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: float | Schedule = 1e-5,
        n_episodes: int = 64,
        batch_size: int = 16,
        n_epochs: int = 4,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = 0.2,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.1,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        kl_controller: KLController | None = None,
        kl_loss: KLLoss = "full",
        micro_batch_size: int | None = None,
        n_envs: int = 64,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.clip_range, self.clip_range_vf = clip_range, clip_range_vf
        self._init_token_algorithm(
            policy,
            env,
            learning_rate=learning_rate,
            n_episodes=n_episodes,
            batch_size=batch_size,
            n_epochs=n_epochs,
            micro_batch_size=micro_batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            target_kl=target_kl,
            kl_controller=kl_controller,
            kl_loss=kl_loss,
            n_envs=n_envs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, *, denominator: int) -> MinibatchLoss:
        """−L^CLIP + c₁·L^VF."""
        progress = self._current_progress_remaining
        policy = ppo_policy_loss(
            evaluation.log_probs,
            batch.log_probs,
            batch.advantages,
            batch.mask,
            clip_range=self.clip_range(progress),  # type: ignore[operator]
            denominator=denominator,
        )
        value = ppo_value_loss(
            evaluation.values,
            batch.values,
            batch.returns,
            batch.mask,
            clip_range_vf=None if self.clip_range_vf is None else self.clip_range_vf(progress),  # type: ignore[operator]
            denominator=denominator,
        )
        metrics = {
            "train/policy_gradient_loss": policy.loss.detach(),
            "train/value_loss": value.loss.detach(),
            "train/approx_kl": policy.approx_kl,
            "train/clip_fraction": policy.clip_fraction,
            "train/value_clip_fraction": value.clip_fraction,
        }
        return MinibatchLoss(policy.loss + self.vf_coef * value.loss, metrics)
