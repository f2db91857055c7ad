"""From episodes to scores: the one place that decides whether a reward reads tokens or texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Message, Prompt, Response
from rlhf_gym.lm.tokens import ActionRows, answer_starts, decode, decode_prompts, decode_responses, stop_token_ids
from rlhf_gym.rewards.dense import ResponseTokens, ScoreError, check_scores
from rlhf_gym.rewards.reward import FunctionReward, PromptFunction, Reward, RewardFunction, Scores, ScoresAtTokens

Route = Literal["tokens", "text"]


def as_reward(reward: Reward | RewardFunction | PromptFunction) -> Reward:
    """The reward itself, or a function of the texts as one."""
    return reward if isinstance(reward, Reward) else FunctionReward(reward)


class EpisodeScorer:
    """How `reward` scores the episodes of a policy with this `tokenizer`; decided here, once, for each of its parts.

    - A reward model that has the policy's tokens among its own reads the sampled tokens, the stop token among them;
      nothing is decoded or encoded again.
    - One with another tokenizer reads texts, encoded anew and closed by its own closing token where the episode ended
      by a stop token. An encoder does so too: its input is a template of its tokenizer's making. Prompts that were
      given as tokens are decoded with what their special tokens say.
    - A conversation is rendered anew by the chat template of each reward model, whatever its tokenizer: the template
      may write more than the policy has read and sampled.
    - A function gets `(prompts, responses)` as texts, or as it asks for them (`FunctionReward`).

    Attributes:
        reward: what scores.
        routes: what each of the reward's parts reads of an episode whose prompt is no conversation: `"tokens"` as they
            were sampled, or `"text"`.
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
        self._said_unknown = False

    def __call__(
        self,
        input_ids: Tensor,
        action_mask: Tensor,
        lengths: Tensor,
        *,
        prompts: Sequence[Prompt | None] | None = None,
    ) -> Scores:
        """Scores of episodes given as right-padded rows, on `input_ids`' device.

        Args:
            input_ids: (B, L): prompt, then response.
            action_mask: (B, L), True where the token is an action.
            lengths: (B,), tokens of the whole row.
            prompts: what the last answer of each answers; None where it was given as tokens, as all are by default.

        Raises:
            ScoreError: the reward gives no finite score for each episode.
        """
        prompts = [None] * len(input_ids) if prompts is None else prompts
        rows = ActionRows(input_ids, action_mask.to(input_ids.device), lengths.to(input_ids.device))
        found = []
        found_dense: list[Tensor | None] = []
        for part, route in zip(self.reward.parts, self.routes, strict=True):
            as_texts = torch.ones(len(input_ids), dtype=torch.bool)  # (B,)
            if route == "tokens":
                as_texts = self._reads_texts(part, input_ids, prompts)
            members = torch.empty(len(part), len(input_ids), device=input_ids.device)  # (k, B)
            dense: Tensor | None = None  # (k, B, T)
            for chosen, read in ((as_texts, self._score_texts), (~as_texts, self._score_tokens)):
                if chosen.any():
                    some = ActionRows(*(table[chosen.to(input_ids.device)] for table in rows))
                    given = [prompts[i] for i in chosen.nonzero()[:, 0].tolist()]
                    said = read(part, some, given)
                    members[:, chosen.to(input_ids.device)] = said.members.to(members)
                    if said.member_dense is not None:
                        if dense is None:
                            longest = int(rows.action_mask.sum(dim=1).max())  # T
                            dense = members.new_zeros(len(part), len(input_ids), longest)
                        at = chosen.to(input_ids.device)
                        dense[:, at, : said.member_dense.shape[2]] = said.member_dense.to(members)
            _check(part, members, dense)
            found.append(members)
            found_dense.append(dense)
        return self._together(torch.cat(found), found_dense)

    def _together(self, members: Tensor, found: list[Tensor | None]) -> Scores:
        """Scores of the members' (k, B), and of what each part gave at actions, (k_part, B, T)."""
        scores = self.reward.combine(members)  # (B,)
        shape = next((dense.shape[1:] for dense in found if dense is not None), None)  # (B, T)
        if shape is None:
            return Scores(scores, members)
        sizes = [len(part) for part in self.reward.parts]
        rows = [members.new_zeros(k, *shape) if d is None else d for k, d in zip(sizes, found, strict=True)]
        dense = torch.cat(rows)  # (k, B, T)
        together = self.reward.combine(dense.flatten(1)).view(shape)  # (B, T)
        return ScoresAtTokens.of(scores, members, together, dense)

    def _reads_texts(self, part: Reward, input_ids: Tensor, prompts: Sequence[Prompt | None]) -> Tensor:
        """Which episodes a part that reads tokens must read as texts, (B,) bool on the CPU."""
        unknown = ~part.embeds(input_ids).cpu()  # (B,)
        if unknown.any() and not self._said_unknown:
            self._said_unknown = True
            warnings.warn(
                f"{part.title} has no embedding for token {int(input_ids.max())} of the policy: episodes with such "
                "tokens are scored as texts",
                stacklevel=4,
            )
        renders = part.renders_conversations(self._tokenizer)
        conversations = [renders and prompt is not None and not isinstance(prompt, str) for prompt in prompts]
        return unknown | torch.tensor(conversations, dtype=torch.bool)

    def _score_tokens(self, part: Reward, rows: ActionRows, prompts: Sequence[Prompt | None]) -> Scores:
        return part.scores_of_rows(rows, self._tokenizer, batch_size=self._batch_size)

    def _score_texts(self, part: Reward, rows: ActionRows, prompts: Sequence[Prompt | None]) -> Scores:
        """By what stands before each row's answer, the answer, and whether it ends by a stop token."""
        ids = rows.input_ids.tolist()
        starts = answer_starts(rows.action_mask.cpu().numpy(), prompts)  # (B,)
        asked = decode_prompts(self._tokenizer, [row[:start] for row, start in zip(ids, starts, strict=True)])
        answers = [row[start:end] for row, start, end in zip(ids, starts, rows.lengths.tolist(), strict=True)]
        closed = [bool(answer) and answer[-1] in self._stop_ids for answer in answers]
        if part.special_tokens:
            responses = decode_responses(self._tokenizer, answers, self._stop_ids)
        else:
            responses = decode(self._tokenizer, answers)
        given = [text if prompt is None else prompt for text, prompt in zip(asked, prompts, strict=True)]
        masks = [
            row[start:end]
            for row, start, end in zip(rows.action_mask.tolist(), starts, rows.lengths.tolist(), strict=True)
        ]
        tokens = [
            ResponseTokens(text, self._tokenizer, tuple(answer), tuple(mask), part.special_tokens)
            for text, answer, mask in zip(responses, answers, masks, strict=True)
        ]
        sides: list[tuple[Prompt, Response]] = list(zip(given, responses, strict=True))
        if part.reads_dialogues:
            turns = (rows.action_mask[:, 1:] & ~rows.action_mask[:, :-1]).sum(dim=1).tolist()  # (B,)
            sides = [_dialogue(*side, count) for side, count in zip(sides, turns, strict=True)]
        said = part.scores_of_texts(
            [prompt for prompt, _ in sides],
            [response for _, response in sides],
            closed=closed,
            tokens=tokens,
            batch_size=self._batch_size,
        )
        if said.member_dense is None:
            return said
        actions = rows.action_mask.sum(dim=1).tolist()  # (B,)
        dense = said.members.new_zeros(len(part), len(ids), max(actions))  # (k, B, T)
        for row, (own, length) in enumerate(zip(tokens, actions, strict=True)):  # earlier turns stand before the answer
            dense[:, row, length - len(own) : length] = said.member_dense[:, row, : len(own)]
        together = part.combine(dense.flatten(1)).view(dense.shape[1:])  # (B, T)
        return ScoresAtTokens.of(said.scores, said.members, together, dense)


def _dialogue(asked: Prompt, answer: Response, turns: int) -> tuple[Prompt, Response]:
    """The prompt of an episode of so many turns, and its dialogue; `asked` is all before the last answer."""
    if isinstance(asked, str) or isinstance(answer, tuple) or turns == 1:
        return asked, answer
    first = [place for place, message in enumerate(asked) if message.role == "assistant"][1 - turns]
    return asked[:first], (*asked[first:], Message("assistant", answer))


def _check(part: Reward, members: Tensor, dense: Tensor | None) -> None:
    """Raise a ScoreError where what a part gives, (k, B) and (k, B, T), is not finite."""
    check_scores(part.combine(members).cpu().numpy(), members.shape[1], source=part.title)
    if dense is not None and not dense.isfinite().all():
        _, row, place = (~dense.isfinite()).nonzero()[0].tolist()
        raise ScoreError(
            f"expected finite rewards from {part.title}, got {dense[0, row, place]} at token {place} of episode {row}"
        )
