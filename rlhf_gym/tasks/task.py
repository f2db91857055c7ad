"""What a run is about: prompts, demonstrations, a tokenizer and, where known, the gold reward that no agent sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Conversation, Prompt, prompt_key
from rlhf_gym.preferences import Demonstration, Preference
from rlhf_gym.rewards import RewardFunction

T = TypeVar("T")


@dataclass(frozen=True)
class Others:
    """The other side of a task of several turns, and how long turns may be."""

    reply: Callable[[Conversation, np.random.Generator], Any]
    """(messages up to the policy's answer, a source of randomness) -> what is said to it as a text, None where the
    conversation is over, or a `rlhf_gym.envs.Reply`, which may have a reward of the turn."""
    max_turns: int = 4
    """The policy's turns in an episode, at most."""
    max_turn_tokens: int | None = None
    """The actions of one turn, at most; None for no limit but the episode's."""
    max_reply_tokens: int = 48
    """Room for one reply in tokens, with what the chat template writes around it."""


@dataclass(frozen=True)
class Task:
    """Everything a run needs to know about its subject.

    A sequence is `encode_prompts(prompt) ++ encode_responses(response)`. A prompt is a text or a conversation.
    """

    name: str
    """A short name, for run folders and reports."""
    prompts: Sequence[Prompt]
    """Prompts to train on."""
    heldout_prompts: Sequence[Prompt]
    """Prompts nothing is trained on; disjoint from `prompts`."""
    demonstrations: Sequence[Demonstration]
    """Demonstrations for supervised fine-tuning."""
    heldout_demonstrations: Sequence[Demonstration]
    """Demonstrations for held-out prompts, to measure the fine-tuned policy on."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of the policy and of the reference."""
    gold: RewardFunction | None
    """(prompts, responses) -> scores (B,), higher is better. The judge of experiments; no agent learns from it."""
    max_prompt_length: int
    """Longest prompt, in tokens."""
    max_new_tokens: int
    """Longest response, in tokens, its end-of-sequence token included."""
    notes: Sequence[str] = ()
    """What was left out of the files that it comes from, not used of them, or odd about them, a sentence each."""
    preferences: Sequence[Preference] = ()
    """Human comparisons that come with the task; without them a run collects its own."""
    heldout_preferences: Sequence[Preference] = ()
    """Such comparisons for other prompts, to measure the reward model on."""
    pretraining_texts: Sequence[str] = ()
    """Raw texts for a small language model of the task's own, where it has one."""
    model_config: PretrainedConfig | None = None
    """The configuration of that model."""
    pretrained: str | Path | None = None
    """Folder or hub name of a pretrained language model."""
    sft: str | Path | None = None
    """Folder or hub name of a policy already fine-tuned on the demonstrations."""
    reward_model: str | Path | None = None
    """Folder or hub name of a learned reward model."""
    others: Others | None = None
    """Who answers the policy, where an episode has several turns; `max_new_tokens` are then those of all its turns."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError(f"expected task {self.name!r} to have at least one prompt, got none")
        shared = set(self.prompts) & set(self.heldout_prompts)
        if shared:
            raise ValueError(
                f"expected the held-out prompts of task {self.name!r} to be disjoint from its training prompts, "
                f"got {len(shared)} in both, such as {min(shared, key=prompt_key)!r}"
            )

    @property
    def reply_room(self) -> int:
        """Room in an episode for what others say, in tokens."""
        return 0 if self.others is None else (self.others.max_turns - 1) * self.others.max_reply_tokens

    @property
    def max_length(self) -> int:
        """The longest episode, in tokens: prompt, response, and what others say."""
        return self.max_prompt_length + self.max_new_tokens + self.reply_room


class Generated(Sequence[T]):
    """A sequence whose i-th element is `make(i)`, made when it is asked for.

    Element i does not depend on the length, so a longer one begins like a shorter one.
    """

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        if length < 0:
            raise ValueError(f"expected a length of at least 0, got {length}")
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is out of range for a sequence of {self._length}")
        return self._make(index % self._length)
