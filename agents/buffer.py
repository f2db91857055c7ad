"""`EpisodeBuffer`: the whole episodes of a rollout, one row each; an episode of T actions takes O(T) memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from rlhf_gym.envs.episode import Episode, pad_actions, stack_rows
from rlhf_gym.functional.returns import gae
from rlhf_gym.functional.whitening import masked_whiten


class EpisodeBatch(NamedTuple):
    """Some episodes, right-padded to the longest among them."""

    input_ids: Tensor
    """All tokens, (B, L) int64."""
    action_mask: Tensor
    """True where the token is an action, (B, L) bool."""
    mask: Tensor
    """Real places of the rows below, which are packed by action, (B, T) bool."""
    log_probs: Tensor
    """log π_old(a_t|s_t), (B, T)."""
    values: Tensor
    """V_old(s_t), (B, T)."""
    advantages: Tensor
    """Â_t, (B, T)."""
    returns: Tensor
    """The critic's targets, (B, T)."""
    ref_log_probs: Tensor
    """log π_ref(a_t|s_t), (B, T)."""
    lower_states: Tensor | None
    """The output of the policy's frozen lower layers, (B, L, H); None where none are frozen."""


class EpisodeBuffer:
    """The whole episodes of one rollout.

    Args:
        episodes: E of them.
        log_probs: log π of each one's actions at the time, (T_e,) each.
        values: V(s_t) of each one's states at the time, (T_e,) each; None without a critic.
        lower_states: the output of the policy's frozen lower layers, right-padded, (E, L, H).
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        log_probs: Sequence[np.ndarray],
        values: Sequence[np.ndarray] | None,
        lower_states: Tensor | None = None,
    ) -> None:
        if not episodes:
            raise ValueError("expected at least one episode, got none")
        self.episodes = list(episodes)
        self.input_ids, self.action_mask, self.lengths = stack_rows(self.episodes)  # (E, L), (E, L), (E,)
        self.response_lengths = self.action_mask.sum(dim=1)  # (E,)
        width = int(self.response_lengths.max())
        self.mask = torch.arange(width) < self.response_lengths[:, None]  # (E, T)
        self.log_probs = torch.from_numpy(pad_actions(log_probs, width))  # (E, T)
        self.values = torch.zeros_like(self.log_probs)  # (E, T)
        if values is not None:
            self.values = torch.from_numpy(pad_actions(values, width))
        self.lower_states = lower_states
        self.rewards = torch.zeros_like(self.log_probs)
        self.ref_log_probs = torch.zeros_like(self.log_probs)
        self.advantages = torch.zeros_like(self.log_probs)
        self.returns = torch.zeros_like(self.log_probs)

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def num_tokens(self) -> int:
        """Actions taken in all episodes."""
        return int(self.response_lengths.sum())

    def set_rewards(self, rewards: np.ndarray, ref_log_probs: np.ndarray) -> None:
        """Rewards and log π_ref of the actions, (E, T) each."""
        expected = tuple(self.mask.shape)
        if rewards.shape != expected or ref_log_probs.shape != expected:
            raise ValueError(f"expected shape {expected}, got {rewards.shape} and {ref_log_probs.shape}")
        self.rewards = torch.from_numpy(rewards).float()
        self.ref_log_probs = torch.from_numpy(ref_log_probs).float()

    def compute_advantages(self, *, gamma: float, gae_lambda: float, normalize: bool) -> None:
        """GAE per episode; whitened over all real tokens of the rollout if `normalize`."""
        self.advantages, self.returns = gae(
            self.rewards, self.values, self.mask, gamma=gamma, gae_lambda=gae_lambda
        )  # (E, T) each
        if normalize:
            self.advantages = masked_whiten(self.advantages, self.mask)

    def explained_variance(self) -> float:
        """1 − Var[return − value] / Var[return] over the actions; NaN where all returns are the same."""
        return float(explained_variance(self.values[self.mask].numpy(), self.returns[self.mask].numpy()))

    def minibatches(self, batch_size: int, rng: np.random.Generator, *, together: int = 1) -> Iterator[np.ndarray]:
        """Rows of each minibatch: a random split of the episodes into parts of at most `batch_size`.

        The parts are as equal as can be, and each is sorted by length for little padding.

        Args:
            batch_size: episodes.
            rng: draws the split.
            together: consecutive episodes that stay side by side, such as the two of a pair.
        """
        units = np.arange(len(self)).reshape(-1, together)  # (E / together, together)
        longest = self.lengths.numpy()[units].max(axis=1)  # (E / together,)
        parts = -(-len(units) // max(1, batch_size // together))
        for part in np.array_split(rng.permutation(len(units)), parts):
            yield units[part[np.argsort(longest[part], kind="stable")]].reshape(-1)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> EpisodeBatch:
        """These episodes, cut to the longest among them."""
        index = torch.from_numpy(np.asarray(rows))
        length = int(self.lengths[index].max())  # L
        width = int(self.response_lengths[index].max())  # T

        def take(table: Tensor, columns: int) -> Tensor:
            return table[index, :columns].to(device)

        return EpisodeBatch(
            input_ids=take(self.input_ids, length),
            action_mask=take(self.action_mask, length),
            mask=take(self.mask, width),
            log_probs=take(self.log_probs, width),
            values=take(self.values, width),
            advantages=take(self.advantages, width),
            returns=take(self.returns, width),
            ref_log_probs=take(self.ref_log_probs, width),
            lower_states=None if self.lower_states is None else take(self.lower_states, length),
        )
