"""Early stopping on the KL divergence from π_ref."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.policy import LMActorCriticPolicy

NOTE = "stop_on_kl"
"""The name of what is saved with an agent of ours."""


class StopOnKL(BaseCallback):
    """Training ends once a rollout's mean KL(π‖π_ref) per response is over the limit: score is bought with KL, and past
    some KL what r_φ pays for is no longer better (Gao et al. 2023, arXiv:2210.10760).

    The policy kept is the last one whose own rollout was *within* the limit, not the first one beyond: a limit that is
    overshot is none, and of no policy in between is anything known. Where the very first rollout is beyond, there is
    none to go back to, and training ends where it stands, with a warning. What no rollout has measured is the policy
    after the last update of a run that was never stopped.

    The KL is that to the reference that training began with, also where π_ref follows the policy (`ema_reference`).
    Our agents save what it remembers with themselves, so that an interrupted run stops where it would have. Of stock
    SB3 agents it reads the KL from the infos of the episodes that end in a rollout (attach the policy for that:
    `callback=[AttachPolicy(), StopOnKL(6.0)]`); they still do the update on the last rollout, which is then taken back.

    Args:
        limit: of the mean KL per response, in nats.
        patience: rollouts in a row beyond the limit that end training: 1 stops at the first; more let one noisy
            estimate pass.
    """

    def __init__(self, limit: float, patience: int = 1) -> None:
        if not limit > 0 or patience < 1:
            raise ValueError(f"expected limit > 0 and patience >= 1, got {limit} and {patience}")
        super().__init__()
        self.limit, self.patience = limit, patience
        self.stopped_at: float | None = None
        """Mean KL of the rollout that ended training; None while none has."""
        self._notes: dict[str, Any] = {}
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._seen: list[float] = []

    @property
    def kept_kl(self) -> float | None:
        """Mean KL of the last rollout within the limit; None if there was none."""
        return self._state.get("kept_kl")

    @property
    def _state(self) -> dict[str, Any]:
        """What it remembers; our agents save it, and take it back with an iteration that is cut short."""
        notes = self.model.notes if isinstance(self.model, TokenAlgorithm) else self._notes
        return notes.setdefault(NOTE, {"beyond": 0, "kept_kl": None})

    def _on_training_start(self) -> None:
        if isinstance(self.model, TokenAlgorithm) and self.model.engine.token_reward.reference is None:
            raise ValueError("expected an environment with a reference to stop on the KL to it, got one without")
        self.stopped_at = None
        if self.num_timesteps == 0:  # a new run, not the rest of one
            self._state.update(beyond=0, kept_kl=None)
            self._weights.pop(NOTE, None)

    def _on_rollout_start(self) -> None:
        self._seen = []

    def _on_step(self) -> bool:
        if isinstance(self.model, TokenAlgorithm):
            return True
        for info in self.locals["infos"]:
            if "finish_reason" in info and "kl" not in info:
                raise ValueError(
                    "expected infos with the KL of the episodes that end, got none: attach the policy, "
                    "callback=[AttachPolicy(), StopOnKL(…)], in an environment with a reference and rewards at each "
                    "step"
                )
            if "kl" in info:
                self._seen.append(float(info["kl"]))
        return self.stopped_at is None

    def _on_rollout_end(self) -> None:
        kl = self._rollout_kl()
        if math.isnan(kl) and isinstance(self.model, TokenAlgorithm):
            raise ValueError(f"expected rollouts with a KL to π_ref, got {type(self.model).__name__}, which has none")
        if math.isnan(kl) or self.stopped_at is not None:  # no episode has ended; or a stock agent's last steps
            return
        state = self._state
        if kl <= self.limit:
            state["beyond"], state["kept_kl"] = 0, kl
            self._keep()
            return
        state["beyond"] += 1
        if state["beyond"] < self.patience:
            return
        self.stopped_at, state["beyond"] = kl, 0
        if isinstance(self.model, TokenAlgorithm):
            self._go_back()
            self.model.finish()

    def _on_training_end(self) -> None:
        if self.stopped_at is not None and not isinstance(self.model, TokenAlgorithm):
            self._go_back()

    def _rollout_kl(self) -> float:
        if isinstance(self.model, TokenAlgorithm):
            return self.model.mean_kl_initial
        return sum(self._seen) / len(self._seen) if self._seen else math.nan

    @property
    def _weights(self) -> dict[str, dict[str, Tensor]]:
        return self.model.kept_weights if isinstance(self.model, TokenAlgorithm) else self._kept

    def _keep(self) -> None:
        self._weights[NOTE] = {name: value.detach().clone() for name, value in _trained(self.model.policy).items()}

    def _go_back(self) -> None:
        weights = self._weights.pop(NOTE, None)
        if weights is None:
            warnings.warn(
                f"expected a policy within KL {self.limit} to begin with, got one at {self.stopped_at:.2f}: training "
                "ends, and there is none to go back to",
                stacklevel=2,
            )
            return
        with torch.no_grad():
            for name, value in _trained(self.model.policy).items():
                value.copy_(weights[name])
        if isinstance(self.model.policy, LMActorCriticPolicy):
            self.model.policy.invalidate()


def _trained(policy: BasePolicy) -> dict[str, Tensor]:
    return {name: value for name, value in policy.named_parameters() if value.requires_grad}
