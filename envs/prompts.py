"""Prompts as an environment keeps them, and the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.lm.chat import Prompt

Prompts = Sequence[Prompt] | Sequence[Sequence[Mapping[str, str]]] | Sequence[Sequence[int]]
"""Texts, conversations (messages as `Message` or as {"role", "content"}), or token ids."""


class PromptIds(list[int]):
    """The token ids of a prompt, and what they were made of."""

    def __init__(self, ids: Iterable[int], prompt: Prompt | None = None) -> None:
        super().__init__(ids)
        self.prompt = prompt
        """The text or the conversation; None where the prompt was given as token ids."""


class PromptFeed:
    """The prompts that are played next, as long as episodes may begin.

    First come the prompts given at a reset. Then come the environment's own, again and again, in a fresh order for
    every pass, each of them `samples_per_prompt` times in a row.

    Of several environments with the same order, each can take its `share`: (i, n) for the i-th of every n prompts. All
    of them count the episodes of all, so that between two resets every one stands at the same place.

    Args:
        prompts: the environment's own, as token ids.
        shuffle: whether each pass has a fresh order; else it is the order given.
        samples_per_prompt: how many episodes in a row begin with the same prompt.
    """

    def __init__(self, prompts: Sequence[PromptIds], *, shuffle: bool = True, samples_per_prompt: int = 1) -> None:
        if not prompts:
            raise ValueError("expected at least one prompt, got none")
        if samples_per_prompt < 1:
            raise ValueError(f"expected samples_per_prompt >= 1, got {samples_per_prompt}")
        self.prompts = prompts
        self.shuffle = shuffle
        self.samples_per_prompt = samples_per_prompt
        self.started = 0
        """Episodes begun so far, which is the number of the next one."""
        self.left: int | None = None
        """Episodes still to begin; None for no end."""
        self.share = (0, 1)
        """Which of every n prompts are drawn: (i, n)."""
        self._behind = 0  # prompts of others that lie before the next one of this share
        self._resting = True  # nothing was drawn since the last `rest`
        self._given: list[PromptIds] = []  # at the reset, the next one last
        self.restart()

    def restart(self) -> None:
        """Start over with a first pass at the next draw."""
        self._order: Sequence[int] = []
        self._drawn = 0
        self._behind = 0
        self._resting = True
        self.since = self.started
        """The number of the first episode since the order began anew."""

    def begin(self, left: int | None, given: Sequence[PromptIds]) -> None:
        """At a reset: this many episodes may begin (None: no end), with the prompts given first."""
        self.rest()
        self.left = left
        self._given = list(given)[::-1]

    def rest(self) -> None:
        """Go to the place where all shares stand once each has drawn as much as this one."""
        if not self._resting:
            self._behind += self.share[1] - 1 - self.share[0]
        self._resting = True

    def next(self, rng: np.random.Generator) -> tuple[PromptIds, int] | None:
        """The next episode's prompt and number; None where no more may begin."""
        if self.left == 0:
            return None
        prompt = self._given.pop() if self._given else self.draw(rng)
        self.started += 1
        if self.left is not None:
            self.left -= 1
        return prompt, self.started - 1

    def draw(self, rng: np.random.Generator) -> PromptIds:
        """The next of the environment's own prompts that are in its share."""
        if self._drawn % self.samples_per_prompt == 0:
            index, count = self.share
            self._behind += index if self._resting else count - 1
            self._resting = False
            for _ in range(self._behind):
                self._place(rng)
                self._drawn += self.samples_per_prompt
                self.started += self.samples_per_prompt
            self._behind = 0
        place = self._place(rng)
        self._drawn += 1
        return self.prompts[self._order[place]]

    def _place(self, rng: np.random.Generator) -> int:
        """Where the next prompt stands in the order of this pass; at its end another pass begins."""
        place = self._drawn // self.samples_per_prompt
        if place == len(self._order):
            count = len(self.prompts)
            self._order = rng.permutation(count).tolist() if self.shuffle else range(count)
            self._drawn = 0
            return 0
        return place

    def state_dict(self) -> dict[str, Any]:
        """What JSON can hold, to go on from here later; episodes in progress are not in it."""
        passed = {"num_prompts": len(self.prompts), "order": list(self._order), "drawn": self._drawn}
        behind = self._behind + (0 if self._resting else self.share[1] - 1 - self.share[0])
        if behind:
            passed["behind"] = behind
        return {"prompts": passed, "started": self.started, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict()` gave.

        Raises:
            ValueError: it is of other prompts, or no order of these.
        """
        passed = state["prompts"]
        if passed["num_prompts"] != len(self.prompts):
            raise ValueError(f"expected the state of {len(self.prompts)} prompts, got that of {passed['num_prompts']}")
        order = list(passed["order"])
        if sorted(order) != list(range(len(self.prompts)))[: len(order)] or not (
            0 <= passed["drawn"] <= len(order) * self.samples_per_prompt
        ):
            raise ValueError(
                f"expected an order of {len(self.prompts)} prompts and how many of them are drawn, got "
                f"{len(order)} numbers and {passed['drawn']}"
            )
        self._order = order
        self._drawn = int(passed["drawn"])
        self._behind = int(passed.get("behind", 0))
        self._resting = True
        self.started = int(state["started"])
        self.since = int(state.get("since", 0))
