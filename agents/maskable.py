"""`MaskableLMActorCriticPolicy`: the language model as a policy for sb3-contrib's `MaskablePPO`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rlhf_gym.agents.observations import read
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.envs.episode import Observation
from rlhf_gym.extras import needs
from rlhf_gym.lm.sampling import behaviour_logits, entropy, greedy, sample, token_log_prob

try:
    from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ImportError as missing:
    raise ImportError(needs("MaskableLMActorCriticPolicy", "sb3-contrib", "contrib")) from missing

Masks = np.ndarray | Tensor | None

LOWEST = -1e8
"""The logit that sb3-contrib gives a masked action; it is finite, so that 0 · log 0 is 0 in its entropy."""


@MaskableActorCriticPolicy.register  # MaskablePPO insists on its own base class; nothing of that one's code is used
class MaskableLMActorCriticPolicy(LMActorCriticPolicy):
    """`LMActorCriticPolicy` with masks, (N, V) bool or 0/1, True where a token may be chosen.

    Masks are part of the behaviour distribution when acting and when evaluating, and in the reward: a policy attached
    to an environment says log π(a|s) under the mask it acted with. π_ref in the reward is not filtered.

    The arguments are those of `LMActorCriticPolicy` but `top_k` and `top_p`. Two filters at once might leave no token,
    so these two belong to the environment's `ActionMask`.
    """

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        if self.sampling.top_k or self.sampling.top_p < 1.0:
            raise ValueError(
                f"expected top_k=0 and top_p=1.0, got {self.sampling.top_k} and {self.sampling.top_p}: with masks the "
                "filters are the environment's, action_mask=ActionMask(top_k=…, top_p=…)"
            )
        self._masks: dict[bytes, Tensor] = {}  # states just acted in, and their masks

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: Masks = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (N,), values (N, 1) and log-probabilities (N,) under the masks, without gradients."""
        with torch.no_grad():
            ids, lengths = read(obs)
            logits = masked(self._act_logits(ids, lengths), action_masks)  # (N, V)
            actions, log_probs = greedy(logits) if deterministic else sample(logits)
            self._remember(ids, lengths, action_masks)
            return actions, self._act_values(ids, lengths)[:, None], log_probs

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor, action_masks: Masks = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,) under the masks, differentiable."""
        hidden, value_hidden = self._packed_hidden(obs)
        logits = masked(behaviour_logits(self.parts.logits(hidden), self.sampling), action_masks)  # (B, V)
        log_probs = token_log_prob(logits, actions.long().reshape(-1))
        return self.value_head(value_hidden)[:, None], log_probs, entropy(logits)

    def get_distribution(self, obs: PyTorchObs, action_masks: Masks = None) -> MaskableCategoricalDistribution:  # type: ignore[override]
        """The behaviour distribution under the masks."""
        logits = super().get_distribution(obs).distribution.logits.clamp_min(LOWEST)  # (N, V)
        distribution = MaskableCategoricalDistribution(logits.shape[-1]).proba_distribution(action_logits=logits)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def _predict(self, observation: PyTorchObs, deterministic: bool = False, action_masks: Masks = None) -> Tensor:
        return self.forward(observation, deterministic, action_masks)[0]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict`, under the masks."""
        if action_masks is None:
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        tensors, batched = self.obs_to_tensor(observation)
        actions = self._predict(tensors, deterministic, action_masks).cpu().numpy()
        return (actions if batched else actions[0]), state

    @torch.no_grad()
    def action_log_prob(self, observation: Observation, action: np.ndarray | Tensor) -> Tensor:
        """log π(a|s), (N,), under the mask each state was just acted in with; under none where it was not."""
        ids, lengths = read(observation)
        logits = self._act_logits(ids, lengths)  # (N, V)
        known = [self._masks.get(key) for key in _keys(ids, lengths)] if self._masks else []
        if any(mask is not None for mask in known):
            everything = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
            logits = masked(logits, torch.stack([everything if mask is None else mask for mask in known]))
        return token_log_prob(logits, torch.as_tensor(action, device=logits.device))

    def _remember(self, ids: np.ndarray, lengths: np.ndarray, action_masks: Masks) -> None:
        self._masks = {}
        if action_masks is not None:
            masks = torch.as_tensor(action_masks, dtype=torch.bool, device=self.parts.device).reshape(len(ids), -1)
            self._masks = dict(zip(_keys(ids, lengths), masks, strict=True))


def masked(logits: Tensor, action_masks: Masks) -> Tensor:
    """The logits with −inf where a token may not be chosen, (N, V)."""
    if action_masks is None:
        return logits
    allowed = torch.as_tensor(action_masks, dtype=torch.bool, device=logits.device).reshape(logits.shape)
    logits = logits.masked_fill(~allowed, float("-inf"))
    if not bool((logits.amax(dim=-1) > float("-inf")).all()):
        raise ValueError("expected action_masks that leave a token in every row, got a row without one")
    return logits


def _keys(ids: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """The tokens of each state, by which its mask is found again."""
    return [row[:length].tobytes() for row, length in zip(ids, lengths, strict=True)]
