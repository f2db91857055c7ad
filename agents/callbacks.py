"""SB3 callbacks for token environments: attaching a stock agent's policy, stopping on the KL to π_ref."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import Tensor

from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.envs.episode import ActionLogProb
from rlhf_gym.ranges import Count, Positive, check_arguments


class AttachPolicy(BaseCallback):
    """Attach a stock SB3 agent's policy to its environment when learning starts, so that each step's reward holds the
    whole KL term: `PPO(LMActorCriticPolicy, env, gamma=1.0, …).learn(…, callback=AttachPolicy())`.

    It checks for mistakes that would otherwise give no error: a policy that does not compute log π(a|s), environments
    in other processes (which would use a copy with the initial weights), and γ ≠ 1.
    """

    def _on_training_start(self) -> None:
        policy = self.model.policy
        env = self.training_env
        if not isinstance(policy, ActionLogProb):
            raise TypeError(
                f"expected a policy with action_log_prob, such as LMActorCriticPolicy, got {type(policy).__name__}; "
                "learn without AttachPolicy() and the agent is read as deterministic (log π = 0)"
            )
        if isinstance(env.unwrapped, SubprocVecEnv):
            raise TypeError(
                "expected the environment in this process, got a SubprocVecEnv: it would ask a copy of the policy that "
                "never learns. Use SB3VecEnv(gym.make_vec(…, num_envs=…)), which batches the slots instead"
            )
        if isinstance(self.model, OnPolicyAlgorithm) and self.model.gamma != 1.0:
            warnings.warn(
                f"gamma={self.model.gamma} discounts the score at the end of a response against the KL of its first "
                "tokens: rewards no longer add up to score − β·KL. Expected gamma=1.0 (SB3's own default is .99)",
                stacklevel=2,
            )
        env.env_method("follow", self.model.device)
        env.env_method("attach", policy)

    def _on_step(self) -> bool:
        return True


class StopOnKL(BaseCallback):
    """Training ends once a rollout's mean KL(π‖π_ref) per response is over the limit. Past some KL,
    a higher score by r_φ no longer means a better response (Gao et al. 2023, arXiv:2210.10760).

    The policy kept is the last one whose own rollout was *within* the limit. Where the very first rollout is beyond it,
    there is no such policy: training ends with the current one, and warns. The policy after the last update of a run
    that was never stopped is not measured.

    The KL is that to the reference that training began with, also where π_ref follows the policy (`MovingReference`).
    Our agents save what it remembers with themselves, so that an interrupted run stops where it would have. Of stock
    SB3 agents it reads the KL from the infos of the episodes that end in a rollout (attach the policy for that:
    `callback=[AttachPolicy(), StopOnKL(6.0)]`). They still do the update on the last rollout, which is then taken back.

    Args:
        limit: of the mean KL per response, in nats.
        patience: rollouts in a row beyond the limit that end training: 1 stops at the first; more let one noisy
            estimate pass.
    """

    @check_arguments
    def __init__(self, limit: Positive, patience: Count = 1) -> None:
        super().__init__()
        self.limit = limit
        self.patience = patience
        self.stopped_at: float | None = None
        """Mean KL of the rollout that ended training; None while none has."""
        self.kept_kl: float | None = None
        """Mean KL of the last rollout within the limit; None if there was none."""
        self._beyond = 0  # rollouts in a row
        self._kept: dict[str, Tensor] = {}  # weights of the last policy within the limit
        self._ours: TokenAlgorithm | None = None  # the agent, if it is one of ours
        self._seen: list[float] = []  # KL of the episodes that a stock agent's rollout has ended

    def state_dict(self) -> dict[str, Any]:
        """How many rollouts in a row were beyond the limit, and the KL of the last one within, for JSON."""
        return {"beyond": self._beyond, "kept_kl": self.kept_kl}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict()` gave."""
        self._beyond = state["beyond"]
        self.kept_kl = state["kept_kl"]

    def weights(self) -> dict[str, Tensor]:
        """The weights that are restored when learning stops, by name."""
        return self._kept

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restore what `weights()` gave."""
        self._kept = weights

    def _init_callback(self) -> None:
        self._ours = self.model if isinstance(self.model, TokenAlgorithm) else None

    def _on_training_start(self) -> None:
        if self._ours is not None:
            if self._ours.engine.token_reward.reference is None:
                raise ValueError("expected an environment with a reference to stop on the KL to it, got one without")
            if not self._ours.plays_rollouts:
                raise ValueError(
                    f"expected rollouts with a KL to π_ref, got {type(self._ours).__name__}, which has none"
                )
            self._ours.keep(type(self).__name__, self)
        self.stopped_at = None
        if self.num_timesteps == 0:  # a new run, not the rest of one
            self._beyond = 0
            self.kept_kl = None
            self._kept = {}

    def _on_rollout_start(self) -> None:
        self._seen = []

    def _on_step(self) -> bool:
        if self._ours is not None:
            return True
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if done and "kl" not in info:
                raise ValueError(
                    "expected infos with the KL of the episodes that end, got none: attach the policy, "
                    "callback=[AttachPolicy(), StopOnKL(…)], in an environment with a reference and rewards at each "
                    "step"
                )
            if done:
                self._seen.append(float(info["kl"]))
        return self.stopped_at is None

    def _on_rollout_end(self) -> None:
        kl = self._rollout_kl()
        if math.isnan(kl) or self.stopped_at is not None:  # no episode has ended; or a stock agent's last steps
            return
        if kl <= self.limit:
            self._beyond = 0
            self.kept_kl = kl
            self._kept = {name: value.detach().clone() for name, value in _trained(self.model.policy).items()}
            return
        self._beyond += 1
        if self._beyond < self.patience:
            return
        self.stopped_at = kl
        self._beyond = 0
        if self._ours is not None:
            self._go_back()
            self._ours.finish()

    def _on_training_end(self) -> None:
        if self.stopped_at is not None and self._ours is None:
            self._go_back()

    def _rollout_kl(self) -> float:
        if self._ours is not None:
            assert self._ours.rollout is not None
            return self._ours.rollout.mean_kl_from_first
        return sum(self._seen) / len(self._seen) if self._seen else math.nan

    def _go_back(self) -> None:
        if not self._kept:
            warnings.warn(
                f"expected a policy within KL {self.limit} to begin with, got one at {self.stopped_at:.2f}: training "
                "ends, and there is none to go back to",
                stacklevel=2,
            )
            return
        with torch.no_grad():
            for name, value in _trained(self.model.policy).items():
                value.copy_(self._kept[name])
        self._kept = {}
        if isinstance(self.model.policy, LMActorCriticPolicy):
            self.model.policy.invalidate()


def _trained(policy: BasePolicy) -> dict[str, Tensor]:
    return {name: value for name, value in policy.named_parameters() if value.requires_grad}
