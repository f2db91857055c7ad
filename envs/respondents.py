"""The other side of a conversation: what it is asked, what it says, and functions that play it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

from rlhf_gym.files import is_text
from rlhf_gym.lm.chat import Conversation

# Plain types come first: what they match is not compared with a protocol, which takes a hundred times as long.
_INDEX = (int, np.integer, SupportsIndex)
_FLOAT = (float, SupportsFloat)


@dataclass(frozen=True, eq=False)
class Turn:
    """A turn that the policy has just ended: what a respondent answers."""

    messages: Conversation
    """The conversation so far. The last message is the policy's answer, with its special tokens but the stop token.
    A prompt that was given as a text or as token ids is the message of a user."""
    input_ids: np.ndarray
    """All tokens so far, the answer included, (L,) int64."""
    answer_ids: np.ndarray
    """The tokens of the answer, with the stop token where one ended it, (n,) int64."""
    finished: bool
    """Whether a stop token ended the answer; False where it was cut at its longest length."""
    episode: int
    """The number of the episode."""
    number: int
    """Which of the policy's turns in its episode this is, from 1."""
    last: bool
    """Whether no further turn can follow. What is replied is then not read, but for its reward."""
    rng: np.random.Generator
    """A source of randomness that depends on the environment's seed, the episode and the turn alone."""

    @property
    def answer(self) -> str:
        """The policy's answer as a text."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Reply:
    """What the other side says to a turn: a text, token ids, or that the conversation is over."""

    text: str | None = None
    """A text. In a conversation the policy's chat template renders it; otherwise it is encoded as it stands."""
    ids: tuple[int, ...] | None = None
    """Token ids that are inserted as they stand, in the place of a text."""
    reward: float = 0.0
    """The reward of the turn just ended. It falls on that turn's last action."""
    over: bool = False
    """Whether the conversation is over. Then there is nothing to say, as nobody would act on it."""
    role: str = "user"
    """Who speaks, such as "user" or "tool"."""

    def __post_init__(self) -> None:
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(int(token) for token in self.ids))
        said = [what for what in (self.text, self.ids) if what is not None]
        if len(said) != (not self.over):
            raise ValueError(
                "expected a reply of either a text or token ids, or one that is over and says nothing, got "
                f"text={self.text!r:.60}, ids={self.ids}, over={self.over}"
            )
        if self.text is not None and not (isinstance(self.text, str) and is_text(self.text)):
            raise ValueError(f"expected the text of a reply, got {self.text!r:.60}")
        if not (isinstance(self.reward, _FLOAT) and math.isfinite(float(self.reward))):
            raise ValueError(f"expected a finite reward of a turn, got {self.reward!r:.60}")


class Respondent(ABC):
    """The other side of conversations, asked about all slots that wait for it at once."""

    opens: bool = False
    """Whether it speaks first: its `open` then ends each episode's prompt."""

    @abstractmethod
    def reply(self, turns: Sequence[Turn]) -> Sequence[Reply]:
        """What it says to each of these turns, in their order. They are of different episodes."""

    def open(self, episode: int, messages: Conversation, rng: np.random.Generator) -> str:
        """What it says first in an episode that begins with these messages, where it speaks first.

        Args:
            episode: the number of the episode.
            messages: what the environment's prompt says before, such as a system message; often nothing.
            rng: a source of randomness, the same for all episodes of a group (`samples_per_prompt`).
        """
        raise NotImplementedError(f"{type(self).__name__} does not speak first")

    def leave(self, episodes: Collection[int]) -> None:  # noqa: B027 (without a memory there is nothing to do)
        """Forget these episodes: they have ended, or were broken off."""

    def fresh(self) -> Respondent:
        """Itself as one environment uses it. One that remembers its episodes returns a copy that remembers none."""
        return self


class FunctionRespondent(Respondent):
    """A function of one `Turn` as a respondent.

    It returns a text, token ids, None where the conversation is over, or a whole `Reply`.
    """

    def __init__(self, function: Callable[[Turn], Any]) -> None:
        """
        Args:
            function: (turn) -> text, token ids, None or `Reply`.

        Raises:
            TypeError: it cannot be called.
        """
        if not callable(function):
            raise TypeError(
                f"expected a Respondent or a callable (turn) -> text, ids, None or Reply, got {type(function).__name__}"
            )
        self.function = function

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        return [as_reply(self.function(turn)) for turn in turns]


def as_respondent(respondent: Respondent | Callable[[Turn], Any]) -> Respondent:
    """The respondent itself, or a function of a turn as one."""
    return respondent if isinstance(respondent, Respondent) else FunctionRespondent(respondent)


def as_reply(said: Any) -> Reply:
    """A text, token ids, None (it is over) or a reply, as a reply.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(said, Reply):
        return said
    if said is None:
        return Reply(over=True)
    if isinstance(said, str):
        return Reply(said)
    ids = said.tolist() if isinstance(said, np.ndarray) else said
    if isinstance(ids, Sequence) and all(isinstance(token, _INDEX) and not isinstance(token, bool) for token in ids):
        return Reply(ids=tuple(ids))
    raise TypeError(
        f"expected a reply as a text, token ids, None, or Reply(text, reward=…) with a turn's reward, got {said!r:.60}"
    )
