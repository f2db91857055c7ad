"""The k responses to one prompt, found again in a rollout."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rlhf_gym.agents.buffer import EpisodeBuffer


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


def spread_over_tokens(buffer: EpisodeBuffer, advantages: Tensor) -> Tensor:
    """An advantage an episode, (E,), on each of its tokens: (E, T), 0 at padding."""
    return advantages[:, None] * buffer.mask
