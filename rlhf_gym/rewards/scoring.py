"""From episodes to scores: the one place that decides whether a reward reads tokens or texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.tokens import decode, stop_token_ids
from rlhf_gym.rewards.reward import FunctionReward, Reward, RewardFunction, Scores, check_scores

Route = Literal["tokens", "text"]


def as_reward(reward: Reward | RewardFunction) -> Reward:
    """The reward itself, or a function of the texts as one."""
    return reward if isinstance(reward, Reward) else FunctionReward(reward)


class EpisodeScorer:
    """How `reward` scores the episodes of a policy that speaks `tokenizer`; decided here, once, for each of its parts.

    - A reward model with the same vocabulary reads the sampled tokens, the stop token among them; nothing is decoded
      or encoded again.
    - One with a tokenizer of its own reads the decoded text, encoded anew and closed by its own EOS where the episode
      ended by a stop token. An encoder does so too: its input is a template of its tokenizer's making.
    - A function gets `(prompts, responses)` as texts without special tokens.

    Attributes:
        reward: what scores.
        routes: what each of the reward's parts reads: `"tokens"` as they were sampled, or `"text"`.
    """

    def __init__(
        self,
        reward: Reward | RewardFunction,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int | None = None,
        stop_ids: Sequence[int] | None = None,
        batch_size: int = 64,
    ) -> None:
        """
        Args:
            reward: what scores.
            tokenizer: the policy's.
            vocab_size: the policy's number of token ids, where it exceeds the tokenizer's (padded embeddings).
            stop_ids: the tokens that end a response; by default the tokenizer's EOS.
            batch_size: rows at a time through a reward model.

        Raises:
            ValueError: a reward model has another vocabulary and no tokenizer to read texts with.
            TypeError: `reward` cannot be called.
        """
        self.reward = as_reward(reward)
        self.routes: tuple[Route, ...] = tuple(
            "tokens" if part.reads_tokens(tokenizer, vocab_size) else "text" for part in self.reward.parts
        )
        self._tokenizer = tokenizer
        self._stop_ids = stop_token_ids(tokenizer) if stop_ids is None else tuple(stop_ids)
        self._batch_size = batch_size

    def __call__(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> Scores:
        """Scores of episodes given as right-padded rows, on `input_ids`' device.

        Args:
            input_ids: (B, L): prompt, then response.
            action_mask: (B, L), True where the token is an action.
            lengths: (B,), tokens of the whole row.

        Raises:
            ScoreError: the reward gives no finite score for each episode.
        """
        found = []
        for part, route in zip(self.reward.parts, self.routes, strict=True):
            if route == "tokens":
                places = torch.arange(input_ids.shape[1], device=input_ids.device)  # (L,)
                mask = places < lengths.to(input_ids.device)[:, None]  # (B, L)
                scores = part.scores_of_tokens(input_ids, mask, batch_size=self._batch_size)
            else:
                prompts, responses, closed = self._texts(input_ids, action_mask, lengths)
                scores = part.scores_of_texts(prompts, responses, closed=closed, batch_size=self._batch_size)
            check_scores(scores.scores.cpu().numpy(), len(input_ids), source=part.title)
            found.append(scores.members.to(input_ids.device))
        members = torch.cat(found)  # (k, B)
        return Scores(self.reward.combine(members), members)

    def _texts(
        self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor
    ) -> tuple[list[str], list[str], list[bool]]:
        """What stands before the first action of each row, the rest, and whether that ends by a stop token."""
        rows = input_ids.tolist()
        starts = action_mask.int().argmax(dim=1).tolist()  # (B,)
        prompts = [row[:start] for row, start in zip(rows, starts, strict=True)]
        responses = [row[start:end] for row, start, end in zip(rows, starts, lengths.tolist(), strict=True)]
        closed = [bool(response) and response[-1] in self._stop_ids for response in responses]
        return decode(self._tokenizer, prompts), decode(self._tokenizer, responses), closed
