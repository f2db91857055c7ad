"""`TokenGRPO`: PPO's clipped loss with advantages from the other responses to the same prompt."""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, get_args

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor

from rlhf_gym.agents.arguments import SAVED, TokenArguments
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.buffer import EpisodeBatch, EpisodeBuffer
from rlhf_gym.agents.groups import group_returns, spread_over_tokens
from rlhf_gym.agents.losses import MinibatchLoss, MinibatchSize
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.returns import group_normalised_advantages

Aggregation = Literal["token", "sequence"]


class TokenGRPO(TokenAlgorithm):
    """GRPO (Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300): k responses to each prompt, every token of a response
    has the advantage (R_i − mean)/std over its prompt's k, and the loss is PPO's clipped one. No critic.

    R = Σ_t r_t is the whole response's return. With the environment's `kl_in="reward"` the KL penalty is in it, and the
    optimum is RLHF's π* ∝ π_ref·e^{r/β}. With `kl_in="loss"` R is the score alone and the KL a term of the loss:
    `kl_loss="full"` by default; the paper's own is `kl_loss="k3"`, whose gradient is that of KL(π_ref‖π) (see
    `TokenArguments`).

    Two parts of the paper's recipe change what is optimised, and can be left out, which makes "Dr. GRPO" (Liu et al.
    2025, arXiv:2503.20783): `scale_by_std=False, aggregation="token"`.

    - The division by the standard deviation weighs each prompt by 1/std of its returns: what is maximised is no longer
      their plain mean over prompts, and prompts on which all responses do almost equally well count most. Within a
      prompt it turns small differences into large ones, so that the gradient does not fade near the optimum: let the
      learning rate fall to 0. With the KL in the loss it also changes the exchange rate between score and KL.
    - The mean over a response's tokens before that over responses gives each token the weight 1/T: among good responses
      short ones are reinforced more, among bad ones long ones are punished less.

    Args:
        policy: `"LMPolicy"` or a policy class.
        env: a `TokenVectorEnv` with `samples_per_prompt` k ≥ 2, or the id of one (made with `n_envs` slots and deferred
            rewards).
        learning_rate: a number, or a schedule of the remaining progress (1 → 0).
        n_episodes: episodes a rollout, a multiple of k.
        batch_size: episodes a minibatch; None for the whole rollout.
        n_epochs: passes over a rollout.
        clip_range: ε of the ratio.
        scale_by_std: divide by the standard deviation of the prompt's returns.
        aggregation: `"token"`: all tokens of a minibatch count alike; `"sequence"`, as in the paper: all responses do.
        samples_per_prompt: k, where `env` is an id (4 by default); else what the environment's is expected to be.
        arguments: what every agent takes: see `TokenArguments`.
    """

    label: ClassVar[str] = "GRPO"
    uses_critic: ClassVar[bool] = False
    compares_groups: ClassVar[bool] = True
    default_group: ClassVar[int] = 4
    saved_arguments: ClassVar[tuple[str, ...]] = (
        *SAVED, "clip_range", "scale_by_std", "aggregation", "samples_per_prompt",
    )  # fmt: skip

    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: float | Schedule = 1e-5,
        n_episodes: int = 64,
        batch_size: int | None = 16,
        n_epochs: int = 4,
        clip_range: float | Schedule = 0.2,
        scale_by_std: bool = True,
        aggregation: Aggregation = "token",
        samples_per_prompt: int | None = None,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        if aggregation not in get_args(Aggregation):
            raise ValueError(f"expected aggregation to be one of {get_args(Aggregation)}, got {aggregation!r}")
        self.clip_range, self.scale_by_std, self.aggregation = clip_range, scale_by_std, aggregation
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

    def _setup_model(self) -> None:
        super()._setup_model()
        self.clip_range = FloatSchedule(self.clip_range)

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """(R_i − mean)/std of the prompt's returns on every token."""
        returns = group_returns(buffer, self.engine.samples_per_prompt)  # (E/k, k)
        advantages = group_normalised_advantages(returns, scale=self.scale_by_std)  # (E/k, k)
        buffer.advantages = spread_over_tokens(buffer, advantages.reshape(-1))  # (E, T)

    def token_weights(self, batch: EpisodeBatch, size: MinibatchSize) -> Tensor:
        """(B, 1): 1, or the minibatch's mean length over the episode's own, so that all episodes count alike."""
        if self.aggregation == "token":
            return super().token_weights(batch, size)
        return (size.tokens / size.episodes) / batch.mask.sum(dim=1, keepdim=True)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> MinibatchLoss:
        """−L^CLIP."""
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        policy = self._policy_loss(batch, evaluation, size, clip_range=clip_range)
        metrics = {
            "train/policy_gradient_loss": policy.loss.detach(),
            "train/approx_kl": policy.approx_kl,
            "train/clip_fraction": policy.clip_fraction,
        }
        return MinibatchLoss(policy.loss, metrics)
