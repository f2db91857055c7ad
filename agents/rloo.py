"""`TokenRLOO`: REINFORCE with the other responses to the same prompt as baseline."""

from __future__ import annotations

from typing import ClassVar, Unpack

from stable_baselines3.common.type_aliases import Schedule

from rlhf_gym.agents.arguments import SAVED, TokenArguments
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.buffer import EpisodeBatch, EpisodeBuffer
from rlhf_gym.agents.groups import group_returns, spread_over_tokens
from rlhf_gym.agents.losses import MinibatchLoss, MinibatchSize
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.returns import rloo_advantages


class TokenRLOO(TokenAlgorithm):
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740): k responses to each prompt, and every token of a response has the
    advantage R_i − mean of the other k − 1. No critic.

    R = Σ_t r_t is the whole response's return, the KL penalty in it (with the environment's `kl_in="reward"`).

    In more than one minibatch or epoch the steps after the first are importance-weighted, by token.

    Args:
        policy: `"LMPolicy"` or a policy class.
        env: a `TokenVectorEnv` with `samples_per_prompt` k ≥ 2, or the id of one (made with `n_envs` slots and deferred
            rewards).
        learning_rate: a number, or a schedule of the remaining progress (1 → 0).
        n_episodes: episodes a rollout, a multiple of k.
        batch_size: episodes a minibatch; by default the whole rollout.
        n_epochs: passes over a rollout.
        samples_per_prompt: k, where `env` is an id (4 by default); else what the environment's is expected to be.
        arguments: what every agent takes: see `TokenArguments`.
    """

    label: ClassVar[str] = "RLOO"
    uses_critic: ClassVar[bool] = False
    compares_groups: ClassVar[bool] = True
    default_group: ClassVar[int] = 4
    saved_arguments: ClassVar[tuple[str, ...]] = (*SAVED, "samples_per_prompt")

    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: float | Schedule = 1e-5,
        n_episodes: int = 64,
        batch_size: int | None = None,
        n_epochs: int = 1,
        samples_per_prompt: int | None = None,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_episodes=n_episodes,
            batch_size=batch_size,
            n_epochs=n_epochs,
            samples_per_prompt=samples_per_prompt,
            **arguments,
        )

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """R_i − the mean of the others' on every token."""
        returns = group_returns(buffer, self.engine.samples_per_prompt)  # (E/k, k)
        buffer.advantages = spread_over_tokens(buffer, rloo_advantages(returns).reshape(-1))  # (E, T)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> MinibatchLoss:
        """−Ê[r·Â]."""
        policy = self._policy_loss(batch, evaluation, size)
        metrics = {"train/policy_gradient_loss": policy.loss.detach(), "train/approx_kl": policy.approx_kl}
        return MinibatchLoss(policy.loss, metrics)
