"""The policy-gradient agents beside PPO: A2C, and without a critic REINFORCE, RLOO and GRPO."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor

from rlhf_gym.agents.arguments import TokenArguments
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.rollout import (
    Aggregation,
    EpisodeBatch,
    EpisodeBuffer,
    LengthAdaptive,
    LossTerm,
    MinibatchSize,
    policy_term,
)
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.policy_gradient import (
    Clip,
    Surrogate,
    chosen_surrogate,
    discounted_returns,
    group_normalised_advantages,
    has_spread,
    ppo_value_loss,
    rloo_advantages,
)
from rlhf_gym.ranges import Count, NonNegative, Positive, Several, Share, Whole, check_arguments

Baseline = Literal["none", "running", "batch"]
MEMORY = 0.9
"""Weight of the past in the running mean."""


class TokenA2C(TokenAlgorithm, A2C):
    """A2C, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783): the policy gradient with a critic's
    advantages, nothing clipped, one step a rollout.

    In more than one minibatch or epoch the steps after the first are importance-weighted, by token, so that they stay
    first-order right. Nothing bounds the ratio, so keep them few.

    Args:
        policy, env, learning_rate, n_episodes, batch_size, n_epochs, arguments: as in `TokenPPO`, but that a minibatch
            is by default the whole rollout.
        gamma, gae_lambda: γ and λ. λ = 1, as in SB3's A2C: the return less the value. `LengthAdaptive()` in its place
            gives each response a λ by its length.
        normalize_advantage: whiten advantages over the rollout's real tokens.
        vf_coef: weight of the value loss.
    """

    label: ClassVar[str] = "A2C"
    defaults: ClassVar[str] = "a2c"
    saved_arguments: ClassVar[tuple[str, ...]] = ("gamma", "normalize_advantage", "vf_coef")
    saved_schedules: ClassVar[tuple[str, ...]] = ("gae_lambda",)

    @check_arguments
    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: NonNegative | Schedule | None = None,
        n_episodes: Count = 64,
        batch_size: Count | None = None,
        n_epochs: Count = 1,
        gamma: Share = 1.0,
        gae_lambda: Share | LengthAdaptive = 1.0,
        normalize_advantage: bool = False,
        vf_coef: NonNegative = 0.1,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        super().__init__(policy, env, learning_rate, n_episodes, batch_size, n_epochs, **arguments)
        self.gamma = gamma
        self.gae_lambda = gae_lambda  # type: ignore[assignment]  # SB3 has numbers alone
        self.normalize_advantage = normalize_advantage
        self.vf_coef = vf_coef

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """Compute GAE, whitened if `normalize_advantage`."""
        buffer.compute_advantages(gamma=self.gamma, gae_lambda=self.gae_lambda, normalize=self.normalize_advantage)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """The loss −Ê[r·Â] + c₁·Ê[(V − V^targ)²]."""
        policy = policy_term(batch, evaluation, size, None)
        value = ppo_value_loss(
            evaluation.values, batch.values, batch.returns, batch.mask, clip_range_vf=None, denominator=size.tokens
        )
        metrics = policy.metrics | {"train/value_loss": value.loss.detach()}
        return LossTerm(policy.loss + self.vf_coef * value.loss, metrics)


class TokenReinforce(TokenAlgorithm):
    """REINFORCE (Williams 1992) without a critic: every token of a response has the advantage R − b, where R = Σ_t r_t
    is the whole response's return, the KL penalty in it (with the environment's `kl_in="reward"`).

    R and not the return from t on: as in Ahmadian et al. 2024 (arXiv:2402.14740) the response is one action. At the
    optimum score − β·log(π/π_ref) is the same for all responses to a prompt. R − b vanishes there and with it the
    gradient's noise, while the return from t on goes on varying.

    In more than one minibatch or epoch the steps after the first are importance-weighted, by token.

    REINFORCE++ (Hu et al. 2025, arXiv:2501.03262) is `reward_to_go=True, normalize_advantage=True, surrogate=Clip()`
    with several minibatches: the return from each token on, whitened over the whole rollout, whatever b.

    Args:
        policy, env, learning_rate, n_episodes, batch_size, n_epochs, arguments: as in `TokenPPO`, but that a minibatch
            is by default the whole rollout.
        baseline: b. `"batch"`: the mean R of the rollout (of which R is a part: the gradient is (n − 1)/n of the
            unbiased one); `"running"`: a moving mean over the rollouts before, in the first one its own; `"none"`: 0.
        normalize_advantage: whiten advantages over the rollout's real tokens.
        reward_to_go: a token's advantage is G_t − b, G_t = r_t + r_{t+1} + … without the rewards before it. The
            gradient has the same mean, and at the optimum its noise does not vanish.
        surrogate: what is done with the ratio after the first step, such as `Clip()`; None for nothing.
    """

    label: ClassVar[str] = "REINFORCE"
    defaults: ClassVar[str] = "reinforce"
    uses_critic: ClassVar[bool] = False
    saved_arguments: ClassVar[tuple[str, ...]] = ("baseline", "normalize_advantage", "reward_to_go")
    saved_schedules: ClassVar[tuple[str, ...]] = ("surrogate",)

    @check_arguments
    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: NonNegative | Schedule | None = None,
        n_episodes: Count = 64,
        batch_size: Count | None = None,
        n_epochs: Count = 1,
        baseline: Baseline = "batch",
        normalize_advantage: bool = False,
        reward_to_go: bool = False,
        surrogate: Surrogate | None = None,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        self.surrogate = chosen_surrogate(type(self).__name__, surrogate, None)
        super().__init__(policy, env, learning_rate, n_episodes, batch_size, n_epochs, **arguments)
        self.baseline = baseline
        self.normalize_advantage = normalize_advantage
        self.reward_to_go = reward_to_go
        self._running: float | None = None

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """Give every token the advantage R − b, or its own G_t − b."""
        returns = buffer.rewards.sum(dim=1)  # (E,)
        mean = float(returns.mean())
        if self.baseline == "running":
            b = mean if self._running is None else self._running
            self._running = mean if self._running is None else MEMORY * self._running + (1 - MEMORY) * mean
        else:
            b = mean if self.baseline == "batch" else 0.0
        earned = returns[:, None]  # (E, 1)
        if self.reward_to_go:
            earned = discounted_returns(buffer.rewards, buffer.mask, gamma=1.0)  # (E, T)
        buffer.advantages = (earned - b) * buffer.mask  # (E, T)
        if self.normalize_advantage:
            buffer.whiten_advantages()

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """The loss −Ê[r·Â], or the surrogate's."""
        return policy_term(batch, evaluation, size, self.surrogate)

    def own_state(self) -> dict[str, Any]:
        """The running mean of the scores."""
        return {"running": self._running}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `own_state()` gave."""
        self._running = state["running"]


class TokenRLOO(TokenAlgorithm):
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740): k responses to each prompt, and every token of a response has the
    advantage R_i − mean of the other k − 1. No critic.

    R = Σ_t r_t is the whole response's return, the KL penalty in it (with the environment's `kl_in="reward"`).

    In more than one minibatch or epoch the steps after the first are importance-weighted, by token.

    Args:
        policy, env, learning_rate, n_episodes, batch_size, n_epochs, arguments: as in `TokenGRPO`, but that a minibatch
            is by default the whole rollout.
        samples_per_prompt: k, where `env` is an id (4 by default); else what the environment's is expected to be.
        surrogate: what is done with the ratio after the first step, such as `Clip()`; None for nothing.
        max_refills: see `TokenGRPO`.
    """

    label: ClassVar[str] = "RLOO"
    defaults: ClassVar[str] = "rloo"
    uses_critic: ClassVar[bool] = False
    compares_groups: ClassVar[bool] = True
    default_group: ClassVar[int] = 4
    saved_arguments: ClassVar[tuple[str, ...]] = ("samples_per_prompt", "max_refills")
    saved_schedules: ClassVar[tuple[str, ...]] = ("surrogate",)

    @check_arguments
    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: NonNegative | Schedule | None = None,
        n_episodes: Count = 64,
        batch_size: Count | None = None,
        n_epochs: Count = 1,
        samples_per_prompt: Several | None = None,
        surrogate: Surrogate | None = None,
        max_refills: Whole = 0,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        self.samples_per_prompt = samples_per_prompt
        self.surrogate = chosen_surrogate(type(self).__name__, surrogate, None)
        self.max_refills = max_refills
        super().__init__(policy, env, learning_rate, n_episodes, batch_size, n_epochs, **arguments)

    def _env_settings(self) -> dict[str, Any]:
        return {"samples_per_prompt": self.samples_per_prompt or self.default_group}

    def _check_env(self, env: TokenVectorEnv) -> None:
        super()._check_env(env)
        check_groups(self, env, samples_per_prompt=self.samples_per_prompt)

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """R_i − the mean of the others' on every token."""
        returns = group_returns(buffer, self.engine.samples_per_prompt)  # (E/k, k)
        buffer.advantages = rloo_advantages(returns).reshape(-1, 1) * buffer.mask  # (E, T)
        if self.max_refills:
            leave_out_flat(buffer, returns)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """The loss −Ê[r·Â], or the surrogate's."""
        return policy_term(batch, evaluation, size, self.surrogate)


class TokenGRPO(TokenAlgorithm):
    """GRPO (Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300): k responses to each prompt, every token of a response
    has the advantage (R_i − mean)/std over its prompt's k, and the loss is PPO's clipped one. No critic.

    R = Σ_t r_t is the whole response's return. With the environment's `kl_in="reward"` the KL penalty is in it, and the
    optimum is RLHF's π* ∝ π_ref·e^{r/β}. With `kl_in="loss"` R is the score alone and the KL a term of the loss:
    `KLInLoss("full")` by default; the paper's own is `regularisers=[KLInLoss("k3")]`, whose gradient is that of
    KL(π_ref‖π).

    Two parts of the paper's recipe change what is optimised. Leaving them out makes "Dr. GRPO" (Liu et al. 2025,
    arXiv:2503.20783): `scale_by_std=False, aggregation="token"`.

    - The division by the standard deviation weighs each prompt by 1/std of its returns. What is maximised is no longer
      their plain mean over prompts: prompts on which all responses do almost equally well count most. Within a prompt
      it turns small differences into large ones, so that the gradient does not fade near the optimum: let the learning
      rate fall to 0. With the KL in the loss it also changes the exchange rate between score and KL.
    - The mean over a response's tokens before that over responses gives each token the weight 1/T: among good responses
      short ones are reinforced more, among bad ones long ones are punished less.

    Args:
        env: a `TokenVectorEnv` with `samples_per_prompt` k ≥ 2, or the id of one (made with `n_envs` slots and deferred
            rewards).
        n_episodes: episodes a rollout, a multiple of k.
        policy, learning_rate, batch_size, n_epochs, arguments: as in `TokenPPO`.
        clip_range: ε of the ratio, by default .2.
        scale_by_std: divide by the standard deviation of the prompt's returns.
        aggregation: `"token"`: all tokens of a minibatch count alike; `"sequence"`, as in the paper: all responses do.
        samples_per_prompt: k, where `env` is an id (4 by default); else what the environment's is expected to be.
        surrogate: what is done with the ratio in place of clipping it to `clip_range`: `Clip`, `SequenceClip` (GSPO,
            with `aggregation="sequence"`), `CISPO`, see `Surrogate`.
        max_refills: DAPO's dynamic sampling: prompts whose k responses all earn the same return, so that their
            advantages are 0, are left out of the update. Others are played in their place, at most so many times a
            rollout; 0 for none of it. All tokens count as timesteps. The policy gradient gets longer and does not turn.
            But a KL in the loss is then taken on the other prompts alone: against the score it weighs less than β.
    """

    label: ClassVar[str] = "GRPO"
    defaults: ClassVar[str] = "grpo"
    uses_critic: ClassVar[bool] = False
    compares_groups: ClassVar[bool] = True
    default_group: ClassVar[int] = 4
    saved_arguments: ClassVar[tuple[str, ...]] = ("scale_by_std", "aggregation", "samples_per_prompt", "max_refills")
    saved_schedules: ClassVar[tuple[str, ...]] = ("clip_range", "surrogate")

    @check_arguments
    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: NonNegative | Schedule | None = None,
        n_episodes: Count = 64,
        batch_size: Count | None = 16,
        n_epochs: Count = 4,
        clip_range: Positive | Schedule | None = None,
        scale_by_std: bool = True,
        aggregation: Aggregation = "token",
        samples_per_prompt: Several | None = None,
        surrogate: Surrogate | None = None,
        max_refills: Whole = 0,
        **arguments: Unpack[TokenArguments],
    ) -> None:
        self.samples_per_prompt = samples_per_prompt
        self.surrogate = chosen_surrogate(type(self).__name__, surrogate, clip_range)
        self.max_refills = max_refills
        super().__init__(policy, env, learning_rate, n_episodes, batch_size, n_epochs, **arguments)
        self.clip_range = FloatSchedule(0.2 if clip_range is None else clip_range) if surrogate is None else None
        self.scale_by_std = scale_by_std
        self.aggregation = aggregation

    def _env_settings(self) -> dict[str, Any]:
        return {"samples_per_prompt": self.samples_per_prompt or self.default_group}

    def _check_env(self, env: TokenVectorEnv) -> None:
        super()._check_env(env)
        check_groups(self, env, samples_per_prompt=self.samples_per_prompt)

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """(R_i − mean)/std of the prompt's returns on every token."""
        returns = group_returns(buffer, self.engine.samples_per_prompt)  # (E/k, k)
        advantages = group_normalised_advantages(returns, scale=self.scale_by_std)  # (E/k, k)
        buffer.advantages = advantages.reshape(-1, 1) * buffer.mask  # (E, T)
        if self.max_refills:
            leave_out_flat(buffer, returns)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """The loss −L^CLIP, or the surrogate's."""
        surrogate = self.surrogate
        if self.clip_range is not None:
            surrogate = Clip(self.clip_range(self._current_progress_remaining))
        return policy_term(batch, evaluation, size, surrogate)


def leave_out_flat(buffer: EpisodeBuffer, returns: Tensor) -> None:
    """Learn nothing from groups whose responses all earned the same; returns (E/k, k)."""
    buffer.learned &= has_spread(returns).repeat_interleave(returns.shape[1])  # (E,)


def check_groups(agent: TokenAlgorithm, env: TokenVectorEnv, *, samples_per_prompt: int | None) -> None:
    """The environment plays every prompt k times in a row, and a rollout holds whole groups of k.

    Args:
        agent: whose rollouts they are.
        env: whose `samples_per_prompt` is k.
        samples_per_prompt: what the agent was told; None to take the environment's.

    Raises:
        ValueError: k < 2, k is not what the agent was told, or `n_episodes` is no multiple of it.
    """
    k = env.samples_per_prompt
    if k < 2:
        raise ValueError(
            f"expected an environment with samples_per_prompt >= 2, got {k}: {type(agent).__name__} compares the "
            f"responses to one prompt; make it with samples_per_prompt={samples_per_prompt or agent.default_group}"
        )
    if samples_per_prompt is not None and samples_per_prompt != k:
        raise ValueError(f"expected an environment with samples_per_prompt={samples_per_prompt}, got {k}")
    if agent.n_episodes % k:
        raise ValueError(f"expected n_episodes to be a multiple of samples_per_prompt={k}, got {agent.n_episodes}")


def group_returns(buffer: EpisodeBuffer, samples_per_prompt: int) -> Tensor:
    """Σ_t r_t of each episode, the k of one prompt in a row: (E/k, k).

    Episodes are numbered in the order they were started, and a prompt's k were started one after another.

    Raises:
        ValueError: k consecutive episodes have different prompts.
    """
    k = samples_per_prompt
    for start in range(0, len(buffer), k):
        group = buffer.episodes[start : start + k]
        first = group[0].prompt_ids
        for episode in group[1:]:
            prompt = episode.prompt_ids
            if not np.array_equal(first, prompt):
                raise ValueError(
                    f"expected episodes {group[0].number} … {group[0].number + k - 1} to answer one prompt, got "
                    f"{first.tolist()} and {prompt.tolist()}: a rollout began in the middle of a group; begin the "
                    "order of the prompts anew by env.reset(seed=…)"
                )
    return buffer.rewards.sum(dim=1).reshape(-1, k)
