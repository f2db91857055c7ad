"""Which tokens an agent may choose from: masks for agents that take them, such as sb3-contrib's MaskablePPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.lm.sampling import SamplingParams, behaviour_logits


@dataclass(frozen=True)
class ActionMask:
    """What `action_masks()` allows in a state: the support of a filtered π_ref.

    The agent obeys the mask; the environment takes any token. π_ref in the reward is not filtered, so that the MDP is
    the same with and without it.
    """

    top_k: int = 0
    """Only π_ref's k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Only the smallest set of π_ref's likeliest tokens with at least this mass; 1 for all."""
    min_new_tokens: int = 0
    """No stop token before this many response tokens."""
    forbidden_token_ids: tuple[int, ...] = ()
    """Tokens that are never allowed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "forbidden_token_ids", tuple(self.forbidden_token_ids))
        self.params  # noqa: B018 (SamplingParams checks them)

    @property
    def params(self) -> SamplingParams:
        """The same filters as `behaviour_logits` takes them."""
        return SamplingParams(
            top_k=self.top_k,
            top_p=self.top_p,
            min_new_tokens=self.min_new_tokens,
            forbidden_token_ids=self.forbidden_token_ids,
        )

    @property
    def reads_reference(self) -> bool:
        """Whether the mask depends on π_ref."""
        return self.top_k > 0 or self.top_p < 1.0

    def check(self, *, vocab_size: int, stop_token_ids: Sequence[int], has_reference: bool) -> None:
        """Raise where a state may have no allowed token, or π_ref is needed and not there.

        Raises:
            ValueError: saying what was expected and what came.
        """
        unknown = [token for token in self.forbidden_token_ids if not 0 <= token < vocab_size]
        if unknown:
            raise ValueError(f"expected forbidden_token_ids in 0 … {vocab_size - 1}, got {unknown}")
        if self.reads_reference and not has_reference:
            raise ValueError(
                f"expected a reference for an ActionMask with top_k={self.top_k}, top_p={self.top_p}, got None"
            )
        barred = set(self.forbidden_token_ids) | (set(stop_token_ids) if self.min_new_tokens else set())
        if len(barred) >= vocab_size:
            raise ValueError(
                f"expected an ActionMask that leaves a token to choose, got {len(barred)} of {vocab_size} tokens "
                "barred by forbidden_token_ids, and by min_new_tokens the stop tokens"
            )

    def allowed(self, logits: Tensor, *, response_lengths: np.ndarray, stop_token_ids: Sequence[int]) -> Tensor:
        """Allowed tokens (N, V) bool from π_ref's next-token logits (N, V); the likeliest unbarred one always is.

        Args:
            logits: fp32; any constant where the mask does not depend on π_ref.
            response_lengths: response tokens so far, (N,).
            stop_token_ids: the tokens that `min_new_tokens` bars.
        """
        lengths = torch.from_numpy(response_lengths).to(logits.device)
        filtered = behaviour_logits(
            logits, self.params, response_lengths=lengths, stop_token_ids=stop_token_ids
        )  # (N, V)
        return filtered > float("-inf")
