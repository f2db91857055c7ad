"""A π_ref that follows the policy: an exponential moving average of its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.envs import Episode
from rlhf_gym.envs.episode import at_actions, stack_rows
from rlhf_gym.envs.token_reward import TokenReward
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.lora import merged
from rlhf_gym.lm.parts import LMParts


class MovingReference:
    """θ_ref ← (1 − μ)·θ_ref + μ·θ after each iteration.

    Against a π_ref that stays, the KL penalty pulls back for ever and decides how far the policy comes; one that
    follows lets it go on, slowly: μ sets the speed. The moving anchor of WARP (Ramé et al. 2024, arXiv:2406.16768,
    section 3.1, there at every step); averages of the policy to fall back on: Noukhovitch et al. 2023 ("Elastic Reset",
    arXiv:2312.07551).

    It is a copy of its own in fp32 (a step of μ would round away in less). The environment's own π_ref stays what it
    is, serves others, and is that of the environment again when `learn` is over.

    Args:
        rate: μ in (0, 1]; 1 is the policy of the iteration before.
    """

    def __init__(self, rate: float) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"expected ema_reference in (0, 1], or 0 for a reference that stays, got {rate}")
        self.rate = rate
        self._parts: LMParts | None = None
        self._initial: LMParts | None = None
        self._reward: TokenReward | None = None
        self._loaded: dict[str, Tensor] | None = None
        self.start_log_probs: list[np.ndarray] = []
        """log π_ref of the last rollout's actions, (T_e,) each, π_ref being where the average began."""

    @contextmanager
    def at_work(self, reward: TokenReward, policy: LMActorCriticPolicy) -> Iterator[None]:
        """Let it be the environment's π_ref.

        Raises:
            ValueError: the environment has none to begin from, or the policy has other weights than it.
        """
        initial = reward.reference
        if initial is None:
            raise ValueError("expected an environment with a reference for ema_reference to begin from, got none")
        if self._parts is None:
            self._parts = self._copied(initial, policy)
        self._initial, self._reward = initial, reward
        reward.use_reference(self._parts)
        try:
            yield
        finally:
            reward.use_reference(initial)
            self._initial = self._reward = None

    @torch.no_grad()
    def follow(self, policy: LMActorCriticPolicy) -> None:
        """A step towards the policy, its adapter merged."""
        assert self._parts is not None and self._reward is not None, "begins with learn()"
        theirs = dict(merged(policy.model).named_parameters())
        for name, own in self._parts.model.named_parameters():
            # lerp leaves what is equal exactly as it is, so that frozen layers stay the same below
            own.lerp_(theirs[name].to(own.device, own.dtype), self.rate)
        self._reward.invalidate()

    def kl_from_start(self, episodes: Sequence[Episode], log_probs: Sequence[np.ndarray]) -> float:
        """Mean over episodes of Σ_t log π − log π_ref, π_ref being the environment's own: where the average began.

        Args:
            episodes: E of them.
            log_probs: log π of each one's actions, (T_e,) each.
        """
        assert self._initial is not None, "begins with learn()"
        rows = stack_rows(episodes)
        scored = token_log_probs(self._initial, rows.input_ids, rows.lengths, mask=rows.action_mask)  # (E, L)
        self.start_log_probs = at_actions(scored, episodes)
        own = np.array([values.sum(dtype=np.float64) for values in log_probs])  # (E,)
        return float((own - scored.double().sum(dim=1).cpu().numpy()).mean())

    def weights(self) -> dict[str, Tensor]:
        """By name; nothing before it has begun."""
        if self._parts is None:
            return self._loaded or {}
        return {name: value.detach().cpu() for name, value in self._parts.model.named_parameters()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Go on from `weights()`."""
        self._loaded, self._parts = weights or None, None

    def _copied(self, initial: LMParts, policy: LMActorCriticPolicy) -> LMParts:
        model = copy.deepcopy(merged(initial.model)).float().requires_grad_(False).eval()
        ours, theirs = _shapes(model), _shapes(merged(policy.model))
        if ours != theirs:
            odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            raise ValueError(
                f"expected a policy with the weights of π_ref for ema_reference, got one that differs in {odd[0]}: "
                f"{ours.get(odd[0])} there, {theirs.get(odd[0])} in the policy"
            )
        if self._loaded is not None:
            if {name: tuple(value.shape) for name, value in self._loaded.items()} != ours:
                raise ValueError("expected the saved reference to have the weights of the environment's, got others")
            with torch.no_grad():
                for name, own in model.named_parameters():
                    own.copy_(self._loaded[name])
            self._loaded = None
        return LMParts(model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}
