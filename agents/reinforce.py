"""`TokenReinforce`: the policy gradient of whole responses, with a plain baseline."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack, get_args

from stable_baselines3.common.type_aliases import Schedule

from rlhf_gym.agents.arguments import SAVED, TokenArguments
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.buffer import EpisodeBatch, EpisodeBuffer
from rlhf_gym.agents.groups import spread_over_tokens
from rlhf_gym.agents.losses import MinibatchLoss, MinibatchSize
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.whitening import masked_whiten

Baseline = Literal["none", "running", "batch"]
MEMORY = 0.9
"""Weight of the past in the running mean."""


class TokenReinforce(TokenAlgorithm):
    """REINFORCE (Williams 1992) without a critic: every token of a response has the advantage R − b, where R = Σ_t r_t
    is the whole response's return, the KL penalty in it (with the environment's `kl_in="reward"`).

    R and not the return from t on: as in Ahmadian et al. 2024 (arXiv:2402.14740) the response is one action. At the
    optimum score − β·log(π/π_ref) is the same for all responses to a prompt, so that R − b vanishes there and with it
    the gradient's noise; the return from t on goes on varying.

    In more than one minibatch or epoch the steps after the first are importance-weighted, by token.

    Args:
        policy: `"LMPolicy"` or a policy class.
        env: a `TokenVectorEnv`, or the id of one (made with `n_envs` slots and deferred rewards).
        learning_rate: a number, or a schedule of the remaining progress (1 → 0).
        n_episodes: episodes a rollout.
        batch_size: episodes a minibatch; by default the whole rollout.
        n_epochs: passes over a rollout.
        baseline: b. `"batch"`: the mean R of the rollout (of which R is a part: the gradient is (n − 1)/n of the
            unbiased one); `"running"`: a moving mean over the rollouts before, in the first one its own; `"none"`: 0.
        normalize_advantage: whiten advantages over the rollout's real tokens.
        arguments: what every agent takes: see `TokenArguments`.
    """

    label: ClassVar[str] = "REINFORCE"
    uses_critic: ClassVar[bool] = False
    saved_arguments: ClassVar[tuple[str, ...]] = (*SAVED, "baseline", "normalize_advantage")

    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: float | Schedule = 1e-5,
        n_episodes: int = 64,
        batch_size: int | None = None,
        n_epochs: int = 1,
        baseline: Baseline = "batch",
        normalize_advantage: bool = False,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        if baseline not in get_args(Baseline):
            raise ValueError(f"expected baseline to be one of {get_args(Baseline)}, got {baseline!r}")
        self.baseline = baseline
        self._running: float | None = None
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_episodes=n_episodes,
            batch_size=batch_size,
            n_epochs=n_epochs,
            normalize_advantage=normalize_advantage,
            **arguments,
        )

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """R − b on every token."""
        returns = buffer.rewards.sum(dim=1)  # (E,)
        mean = float(returns.mean())
        if self.baseline == "running":
            b = mean if self._running is None else self._running
            self._running = mean if self._running is None else MEMORY * self._running + (1 - MEMORY) * mean
        else:
            b = mean if self.baseline == "batch" else 0.0
        buffer.advantages = spread_over_tokens(buffer, returns - b)  # (E, T)
        if self.normalize_advantage:
            buffer.advantages = masked_whiten(buffer.advantages, buffer.mask)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> MinibatchLoss:
        """−Ê[r·Â]."""
        policy = self._policy_loss(batch, evaluation, size)
        metrics = {"train/policy_gradient_loss": policy.loss.detach(), "train/approx_kl": policy.approx_kl}
        return MinibatchLoss(policy.loss, metrics)

    def own_state(self) -> dict[str, Any]:
        """The running mean."""
        return {"running": self._running}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Go on from `own_state()`."""
        self._running = state["running"]
