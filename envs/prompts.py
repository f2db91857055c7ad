"""Which prompt comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_prompts(prompts: Sequence[Sequence[int]], *, max_prompt_length: int, vocab_size: int) -> None:
    """No prompt is too long or holds an unknown token.

    Raises:
        ValueError: naming the first one that is or does.
    """
    for index, ids in enumerate(prompts):
        if len(ids) > max_prompt_length:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens, expected at most max_prompt_length={max_prompt_length}"
            )
        if not (min(ids) >= 0 and max(ids) < vocab_size):
            raise ValueError(f"prompt {index}: expected token ids in 0 … {vocab_size - 1}, got {list(ids)}")


class PromptSampler:
    """Goes through the prompts again and again, shuffled anew each time, each `samples_per_prompt` times in a row.

    Args:
        num_prompts: how many there are.
        shuffle: a fresh order for every pass; else the order given.
        samples_per_prompt: how many episodes in a row begin with the same prompt.
    """

    def __init__(self, num_prompts: int, *, shuffle: bool = True, samples_per_prompt: int = 1) -> None:
        if num_prompts < 1:
            raise ValueError("expected at least one prompt, got none")
        if samples_per_prompt < 1:
            raise ValueError(f"expected samples_per_prompt >= 1, got {samples_per_prompt}")
        self.num_prompts, self.shuffle, self.samples_per_prompt = num_prompts, shuffle, samples_per_prompt
        self.restart()

    def restart(self) -> None:
        """Begin a first pass at the next draw."""
        self._order: Sequence[int] = []
        self._drawn = 0

    def draw(self, rng: np.random.Generator) -> int:
        """Index of the next prompt."""
        place = self._drawn // self.samples_per_prompt
        if place == len(self._order):
            self._order = rng.permutation(self.num_prompts).tolist() if self.shuffle else range(self.num_prompts)
            self._drawn = place = 0
        self._drawn += 1
        return int(self._order[place])

    def state_dict(self) -> dict[str, Any]:
        """What JSON can hold, to go on from here later."""
        return {"num_prompts": self.num_prompts, "order": list(self._order), "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        if state["num_prompts"] != self.num_prompts:
            raise ValueError(f"expected the state of {self.num_prompts} prompts, got that of {state['num_prompts']}")
        self._order, self._drawn = list(state["order"]), int(state["drawn"])


class PromptFeed:
    """What is played next: the prompts given at a reset, else the environment's own in the sampler's order, as long as
    episodes may begin.

    Args:
        prompts: the environment's own, as token ids.
        sampler: goes through them.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], sampler: PromptSampler) -> None:
        self.prompts, self.sampler = prompts, sampler
        self.started = 0
        """Episodes begun so far: the number of the next one."""
        self.left: int | None = None
        """Episodes still to begin; None for no end."""
        self._given: list[list[int]] = []  # at the reset, the next one last

    def begin(self, left: int | None, given: Sequence[list[int]]) -> None:
        """A reset: so many episodes (None: no end), these prompts first."""
        self.left, self._given = left, list(given)[::-1]

    def next(self, rng: np.random.Generator) -> tuple[Sequence[int], int] | None:
        """The next episode's prompt and number; None where no more may begin."""
        if self.left == 0:
            return None
        prompt = self._given.pop() if self._given else self.draw(rng)
        self.started += 1
        if self.left is not None:
            self.left -= 1
        return prompt, self.started - 1

    def draw(self, rng: np.random.Generator) -> Sequence[int]:
        """The next of the environment's own prompts."""
        return self.prompts[self.sampler.draw(rng)]

    def state_dict(self) -> dict[str, Any]:
        """What JSON can hold, to go on from here later; episodes in progress are not in it."""
        return {"prompts": self.sampler.state_dict(), "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.sampler.load_state_dict(state["prompts"])
        self.started = int(state["started"])
