"""From finished episodes to scores: the one place that decides whether a reward reads tokens or texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.tokens import decode, pad_rows, stop_token_ids
from rlhf_gym.rewards.ensemble import RewardEnsemble
from rlhf_gym.rewards.loading import LearnedReward
from rlhf_gym.rewards.model import RewardModel
from rlhf_gym.rewards.programmatic import RewardFunction
from rlhf_gym.rewards.shared_trunk import SharedTrunkEnsemble

Route = Literal["tokens", "text", "members"]


class EpisodeScorer(Protocol):
    """Scores (B,) float32 of episodes given as right-padded rows (B, L): prompt, then response.

    `action_mask` (B, L) is True where the token is an action; `lengths` (B,) counts the tokens of the whole row. The
    scores stand on `input_ids`' device.
    """

    @property
    def route(self) -> Route:
        """What is read: "tokens" as they were sampled, "text" after decoding, "members" each by its own route."""
        ...

    def __call__(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> Tensor: ...


def episode_scorer(
    reward: LearnedReward | RewardFunction,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int | None = None,
    stop_ids: Sequence[int] | None = None,
    batch_size: int = 64,
) -> EpisodeScorer:
    """How `reward` scores the episodes of a policy that speaks `tokenizer`; decided here, once.

    - A reward model with the same vocabulary reads the sampled tokens, the stop token among them; nothing is decoded
      or encoded again.
    - One with a tokenizer of its own reads the decoded text, encoded anew and closed by its own EOS where the episode
      ended by a stop token. An encoder does so too: its input is a template of its tokenizer's making.
    - An ensemble: each member by its own route; one on a shared trunk as a reward model.
    - Any other callable gets `(prompts, responses)` as texts without special tokens.

    Args:
        reward: what scores.
        tokenizer: the policy's.
        vocab_size: the policy's number of token ids, where it exceeds the tokenizer's (padded embeddings).
        stop_ids: the tokens that end a response; by default the tokenizer's EOS.
        batch_size: rows at a time through a reward model.

    Raises:
        ValueError: the reward model has another vocabulary and no tokenizer to read texts with.
        TypeError: `reward` cannot be called.
    """
    stops = stop_token_ids(tokenizer) if stop_ids is None else tuple(stop_ids)
    if isinstance(reward, RewardEnsemble):
        members = tuple(
            episode_scorer(member, tokenizer, vocab_size=vocab_size, stop_ids=stops, batch_size=batch_size)
            for member in reward
        )
        return _MemberRoutes(reward, members)
    if isinstance(reward, RewardModel | SharedTrunkEnsemble):
        if _shares_tokens(reward, tokenizer, vocab_size):
            return _TokenRoute(reward, batch_size)
        return _TextRoute(reward, tokenizer, stops, batch_size)
    if not callable(reward):
        raise TypeError(
            "expected a RewardModel, a RewardEnsemble or a callable (prompts, responses) -> (B,), "
            f"got {type(reward).__name__}"
        )
    return _FunctionRoute(reward, tokenizer)


def score_with_members(
    scorer: EpisodeScorer, input_ids: Tensor, action_mask: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Scores (B,), and each member's (members, B) where an ensemble scores; None where it is no ensemble."""
    if isinstance(scorer, _MemberRoutes):
        members = scorer.each(input_ids, action_mask, lengths)  # (members, B)
        return scorer.ensemble.combine(members), members
    if isinstance(scorer, _TokenRoute | _TextRoute) and isinstance(scorer.reward, SharedTrunkEnsemble):
        rows = scorer.rows(input_ids, action_mask, lengths)
        members = scorer.reward.member_scores(*rows, batch_size=scorer.batch_size)  # (members, B)
        scores = scorer.reward.combine(members)
        check_scores(scores.cpu().numpy(), len(input_ids), source="the ensemble")
        return scores.to(input_ids.device), members
    return scorer(input_ids, action_mask, lengths), None


class ScoreError(ValueError):
    """What a reward or a verifier returned are no scores; the message says whose, and what came."""


def check_scores(scores: object, count: int, *, source: str) -> np.ndarray:
    """`scores` as float32 (count,), or an error that says what came instead.

    Raises:
        ScoreError: no numbers, another shape, or a score that is not finite.
    """
    try:
        values = np.asarray(scores, dtype=np.float32)  # (B,)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"expected {source} to return {count} scores, got {scores!r:.80}: {error}") from error
    if values.shape != (count,):
        raise ScoreError(f"expected {source} to return {count} scores of shape ({count},), got shape {values.shape}")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ScoreError(f"expected finite scores from {source}, got {values[bad]} for episode {bad}")
    return values


def _shares_tokens(
    reward: RewardModel | SharedTrunkEnsemble, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None
) -> bool:
    if reward.tokenizer is None:
        if reward.vocab_size in (len(tokenizer), vocab_size):
            return True
        expected = " or ".join(str(n) for n in (len(tokenizer), vocab_size) if n is not None)
        raise ValueError(
            f"expected a reward model with the policy's vocabulary of {expected} tokens, or one with a tokenizer of "
            f"its own to read texts with; got a vocabulary of {reward.vocab_size} tokens and no tokenizer"
        )
    return reward.reads == "last_token" and reward.tokenizer.get_vocab() == tokenizer.get_vocab()


def _split(input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """What stands before the first action of each row, and the rest without the padding."""
    rows = input_ids.tolist()
    starts = action_mask.int().argmax(dim=1).tolist()  # (B,)
    cuts = list(zip(starts, lengths.tolist(), strict=True))
    prompts = [row[:start] for row, (start, _) in zip(rows, cuts, strict=True)]
    responses = [row[start:end] for row, (start, end) in zip(rows, cuts, strict=True)]
    return prompts, responses


@dataclass(frozen=True)
class _TokenRoute:
    reward: RewardModel | SharedTrunkEnsemble
    batch_size: int
    route: Route = "tokens"

    def __call__(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> Tensor:
        rows = self.rows(input_ids, action_mask, lengths)
        scores = self.reward.score_tokens(*rows, batch_size=self.batch_size)  # (B,)
        check_scores(scores.cpu().numpy(), len(input_ids), source="the reward model")
        return scores

    def rows(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the reward model reads, (B, L), and its mask, (B, L)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)  # (L,)
        return input_ids, places < lengths.to(input_ids.device)[:, None]


@dataclass(frozen=True)
class _TextRoute:
    reward: RewardModel | SharedTrunkEnsemble
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    batch_size: int
    route: Route = "text"

    def __call__(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> Tensor:
        rows = self.rows(input_ids, action_mask, lengths)
        scores = self.reward.score_tokens(*rows, batch_size=self.batch_size)  # (B,)
        check_scores(scores.numpy(), len(input_ids), source="the reward model")
        return scores.to(input_ids.device)

    def rows(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the reward model reads, (B, L'), and its mask, (B, L')."""
        prompts, responses = _split(input_ids, action_mask, lengths)
        closed = [bool(response) and response[-1] in self.stop_ids for response in responses]
        texts = decode(self.tokenizer, prompts), decode(self.tokenizer, responses)
        ids, mask = pad_rows(self.reward.encode(*texts, closed=closed))  # (B, L')
        return torch.from_numpy(ids), torch.from_numpy(mask)


@dataclass(frozen=True)
class _FunctionRoute:
    function: RewardFunction
    tokenizer: PreTrainedTokenizerBase
    route: Route = "text"

    def __call__(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> Tensor:
        prompts, responses = _split(input_ids, action_mask, lengths)
        scores = self.function(decode(self.tokenizer, prompts), decode(self.tokenizer, responses))
        values = check_scores(scores, len(input_ids), source=f"the reward function {self.function!r}")  # (B,)
        return torch.from_numpy(values).to(input_ids.device)


@dataclass(frozen=True)
class _MemberRoutes:
    ensemble: RewardEnsemble
    members: tuple[EpisodeScorer, ...]
    route: Route = "members"

    def __call__(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> Tensor:
        return self.ensemble.combine(self.each(input_ids, action_mask, lengths))

    def each(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> Tensor:
        """Each member's scores, (members, B)."""
        return torch.stack([member(input_ids, action_mask, lengths) for member in self.members])
