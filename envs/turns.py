"""Several turns in one episode: when the policy ends its turn, the other side answers within the same step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_gym.envs.prompts import PromptIds
from rlhf_gym.envs.respondents import Reply, Respondent, Turn, as_respondent
from rlhf_gym.envs.slots import Slots
from rlhf_gym.lm.chat import Conversation, Message, has_template
from rlhf_gym.lm.continuation import check_continues, continuation
from rlhf_gym.lm.tokens import decode, decode_prompts, decode_responses, encode_prompts
from rlhf_gym.ranges import Count, check_ranges
from rlhf_gym.tasks import Task


@dataclass(frozen=True)
class Turns:
    """Who answers the policy's turns, and how long they may be.

    The policy's turn ends at a stop token, at `max_turn_tokens`, or where the episode has had its `max_new_tokens`
    actions. Every turn is put to the respondent, the last one for its reward alone.
    """

    respondent: Respondent | Callable[[Turn], Any]
    """The other side, or a function of one `Turn` that returns a text, token ids, None (it is over) or a `Reply`."""
    max_turns: Count = 4
    """The policy's turns in an episode, at most."""
    max_turn_tokens: Count | None = None
    """The actions of one turn, at most; None for no limit but the episode's."""
    max_reply_tokens: Count = 32
    """Room for one reply in tokens, with what the chat template writes around it. An episode whose reply is longer
    ends with the answer before, as `"length"`, and a warning says so: replies are never cut."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "respondent", as_respondent(self.respondent))
        check_ranges(self)

    @property
    def room(self) -> int:
        """The tokens that an episode's replies have room for."""
        return (self.max_turns - 1) * self.max_reply_tokens


def turns_of(task: Task) -> Turns | None:
    """The turns of a task's episodes; None where nobody answers the policy."""
    others = task.others
    if others is None:
        return None
    return Turns(
        lambda turn: others.reply(turn.messages, turn.rng),
        others.max_turns,
        others.max_turn_tokens,
        others.max_reply_tokens,
    )


class EndedTurns(NamedTuple):
    """What a step's ended turns came to, (N,) each."""

    terminated: np.ndarray
    """Whether the episode has ended, bool."""
    stopped: np.ndarray
    """Whether it ended by the other side or by a stop token in the last turn, bool; else by a length."""
    rewards: np.ndarray
    """The reward of the turn that has ended, float32; 0 where none has."""


class Dialogues:
    """The conversations of N slots.

    Args:
        turns: who answers, and how long turns may be.
        tokenizer: the policy's.
        slots: the rows, in which replies are written.
        max_new_tokens: the actions of an episode, at most.
        max_prompt_length: room for a prompt with what the respondent says first.
        stop_token_ids: the tokens that end a turn.
        vocab_size: V.
        generator: (episode, turn) -> a source of randomness; turn 0 is what is said first.
    """

    def __init__(
        self,
        turns: Turns,
        tokenizer: PreTrainedTokenizerBase,
        slots: Slots,
        *,
        max_new_tokens: int,
        max_prompt_length: int,
        stop_token_ids: Sequence[int],
        vocab_size: int,
        generator: Callable[[int, int], np.random.Generator],
    ) -> None:
        self.turns = turns
        self.respondent = as_respondent(turns.respondent).fresh()
        self._tokenizer = tokenizer
        self._slots = slots
        self._max_new_tokens = max_new_tokens
        self._max_prompt_length = max_prompt_length
        self._stop_token_ids = tuple(stop_token_ids)
        self._vocab_size = vocab_size
        self._generator = generator
        count = len(slots.lengths)
        self.counts = np.zeros(count, dtype=np.int64)
        """The turns that the policy has ended in each slot's episode, (N,)."""
        self.starts = np.zeros(count, dtype=np.int64)
        """Where the answer in progress begins in each row, (N,)."""
        self._messages: list[Conversation] = [()] * count
        self._template_checked = False
        self._said_too_long = False

    @property
    def turn_lengths(self) -> np.ndarray:
        """The actions of the turn in progress, (N,); 0 where parked."""
        return np.where(self._slots.lengths > 0, self._slots.lengths - self.starts, 0)

    def forget(self) -> None:
        """Break off all conversations."""
        self.respondent.leave([int(n) for n in self._slots.numbers[self._slots.lengths > 0]])

    def begin(self, slot: int, prompt: PromptIds, number: int) -> PromptIds:
        """Begin a conversation; returns the prompt, with what the respondent says first."""
        if self.respondent.opens:
            prompt = self._opened(prompt, number)
        asked = prompt.prompt
        if isinstance(asked, str) or asked is None:
            text = decode_prompts(self._tokenizer, [prompt])[0] if asked is None else asked
            self._messages[slot] = (Message("user", text),)
        else:
            self.check_template()
            self._messages[slot] = asked
        self.counts[slot] = 0
        self.starts[slot] = len(prompt)
        return prompt

    def check_template(self) -> None:
        """The chat template, if there is one, only ever adds to a conversation.

        Raises:
            ValueError: it rewrites earlier turns.
        """
        if not self._template_checked and has_template(self._tokenizer) and self.turns.max_turns > 1:
            check_continues(self._tokenizer)
        self._template_checked = True

    def end_turns(self, acting: np.ndarray, stopped: np.ndarray) -> EndedTurns:
        """Put the turns that the step has ended to the respondent, and write its replies behind them.

        Args:
            acting: slots that acted, (N,) bool.
            stopped: slots whose action was a stop token, (N,) bool.
        """
        full = acting & (self._slots.response_lengths >= self._max_new_tokens)  # (N,)
        ended = stopped | full
        if self.turns.max_turn_tokens is not None:
            ended |= acting & (self.turn_lengths >= self.turns.max_turn_tokens)
        result = EndedTurns(full, np.zeros_like(full), np.zeros(len(full), dtype=np.float32))
        rows = np.flatnonzero(ended).tolist()
        self.counts[rows] += 1
        asked = self._ended(rows, stopped, full)
        for row, turn, reply in zip(rows, asked, self._replies(asked), strict=True):
            result.rewards[row] = reply.reward
            self._slots.earn_turn(row, reply.reward)
            result.terminated[row] = reply.over or turn.last or not self._go_on(row, turn, reply)
            result.stopped[row] = reply.over or (turn.finished and turn.number == self.turns.max_turns)
            if result.terminated[row]:
                self._slots.messages[row] = None if self._in_tokens(row) else turn.messages
        over = [turn.episode for row, turn in zip(rows, asked, strict=True) if result.terminated[row]]
        if over:
            self.respondent.leave(over)
        return result

    def _ended(self, rows: list[int], stopped: np.ndarray, full: np.ndarray) -> list[Turn]:
        """The turns that have just ended in these rows, the answer the last of each one's messages."""
        slots = self._slots
        answers = [slots.ids[row, self.starts[row] : slots.lengths[row]].copy() for row in rows]  # (n,) each
        texts = decode_responses(self._tokenizer, [answer.tolist() for answer in answers], self._stop_token_ids)
        turns = []
        for row, answer, text in zip(rows, answers, texts, strict=True):
            episode = int(slots.numbers[row])
            number = int(self.counts[row])
            self._messages[row] += (Message("assistant", text),)
            turn = Turn(
                messages=self._messages[row],
                input_ids=slots.ids[row, : slots.lengths[row]].copy(),
                answer_ids=answer,
                finished=bool(stopped[row]),
                episode=episode,
                number=number,
                last=bool(full[row]) or number == self.turns.max_turns,
                rng=self._generator(episode, number),
            )
            turns.append(turn)
        return turns

    def _replies(self, turns: list[Turn]) -> Sequence[Reply]:
        replies = self.respondent.reply(turns) if turns else []
        name = type(self.respondent).__name__
        if len(replies) != len(turns):
            raise ValueError(f"expected {len(turns)} replies from {name}, one a turn, got {len(replies)}")
        for reply in replies:
            if not isinstance(reply, Reply):
                raise TypeError(f"expected each reply of {name} to be a Reply, got {reply!r:.60}")
        return replies

    def _go_on(self, row: int, turn: Turn, reply: Reply) -> bool:
        """Write a reply behind the answer; False where it is too long."""
        ids = self._ids_of(row, turn, reply)
        most = self.turns.max_reply_tokens
        if len(ids) > most:
            if not self._said_too_long:
                self._said_too_long = True
                warnings.warn(
                    f"expected replies of at most max_reply_tokens={most} tokens with what the chat template writes "
                    f"around them, got {len(ids)}: such episodes end there, as 'length'",
                    stacklevel=4,
                )
            return False
        text = reply.text if reply.text is not None else decode(self._tokenizer, [ids])[0]
        self._messages[row] = (*turn.messages, Message(reply.role, text))
        self._slots.insert(row, ids)
        self.starts[row] = self._slots.lengths[row]
        return True

    def _ids_of(self, row: int, turn: Turn, reply: Reply) -> list[int]:
        """The tokens of a reply, with the end of the answer's turn and the beginning of the next."""
        if reply.ids is not None:
            ids = list(reply.ids)
            if not (ids and min(ids) >= 0 and max(ids) < self._vocab_size):
                raise ValueError(f"expected the ids of a reply, tokens in 0 … {self._vocab_size - 1}, got {ids}")
            return ids
        assert reply.text is not None
        if not self._in_tokens(row):
            said = Message(reply.role, reply.text)
            answer = turn.answer_ids.tolist()
            return continuation(self._tokenizer, turn.messages, answer, said, finished=turn.finished)
        ids = self._tokenizer(reply.text, add_special_tokens=False).input_ids
        if not ids:
            raise ValueError(f"expected a reply with at least one token, got {reply.text!r}")
        return ids

    def _in_tokens(self, row: int) -> bool:
        """Whether the row's prompt was no conversation, so that nothing is rendered."""
        return isinstance(self._slots.prompts[row], str | None)

    def _opened(self, prompt: PromptIds, number: int) -> PromptIds:
        """The prompt with what the respondent says first."""
        before = prompt.prompt
        if before is None:
            raise ValueError(
                f"expected prompts as texts or conversations before what {type(self.respondent).__name__} says first, "
                f"got token ids {list(prompt)}"
            )
        messages = (Message("user", before),) if isinstance(before, str) else before
        said = self.respondent.open(number, messages, self._generator(number, 0))
        whole = before + said if isinstance(before, str) else (*before, Message("user", said))
        (ids,) = encode_prompts(self._tokenizer, [whole])
        if len(ids) > self._max_prompt_length:
            raise ValueError(
                f"expected a prompt of at most max_prompt_length={self._max_prompt_length} tokens with what "
                f"{type(self.respondent).__name__} says first, got {len(ids)}"
            )
        return PromptIds(ids, whole)
