"""The rows an environment writes in: N episodes in progress, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_gym.envs.episode import Episode, Observation
from rlhf_gym.envs.prompts import PromptIds
from rlhf_gym.lm.chat import Conversation, Prompt


class Slots:
    """N left-aligned, right-padded rows of prompt and response, and the reward of each action so far.

    Args:
        num_slots: N.
        max_prompt_length, max_new_tokens, room: their sum is L, the tokens that a row has room for; `room` is that for
            tokens of others between the actions.
        pad_token_id: the token in padded places.
    """

    def __init__(
        self, num_slots: int, *, max_prompt_length: int, max_new_tokens: int, pad_token_id: int, room: int = 0
    ) -> None:
        width = max_prompt_length + max_new_tokens + room
        self.pad_token_id = pad_token_id
        self.ids = np.full((num_slots, width), pad_token_id, dtype=np.int64)  # (N, L)
        self.lengths = np.zeros(num_slots, dtype=np.int64)  # (N,); 0 where parked
        self.action_mask = np.zeros((num_slots, width), dtype=bool)  # (N, L)
        self.response_lengths = np.zeros(num_slots, dtype=np.int64)  # (N,), actions taken
        self.prompts: list[Prompt | None] = [None] * num_slots  # what each row's prompt was made of
        self.numbers = np.zeros(num_slots, dtype=np.int64)  # (N,) of the episode in the slot
        self.log_ratios = np.zeros((num_slots, max_new_tokens), dtype=np.float32)  # (N, T)
        self.log_probs = np.zeros((num_slots, max_new_tokens), dtype=np.float32)  # (N, T)
        self.rewards = np.zeros((num_slots, max_new_tokens), dtype=np.float32)  # (N, T)
        self.turn_rewards = np.zeros((num_slots, max_new_tokens), dtype=np.float32)  # (N, T)
        self.dense = np.zeros((num_slots, max_new_tokens), dtype=np.float32)  # (N, T), without those of turns
        self.messages: list[Conversation | None] = [None] * num_slots  # of ended conversations with others
        self._columns = np.arange(width)

    def park(self, slot: int) -> None:
        """Empty a slot."""
        self.ids[slot] = self.pad_token_id
        self.action_mask[slot] = False
        self.lengths[slot] = 0
        self.response_lengths[slot] = 0
        for table in (self.log_ratios, self.log_probs, self.rewards, self.turn_rewards, self.dense):
            table[slot] = 0

    def begin(self, slot: int, prompt: PromptIds, number: int) -> None:
        """Start an episode in a slot."""
        self.park(slot)
        self.ids[slot, : len(prompt)] = prompt
        self.lengths[slot] = len(prompt)
        self.prompts[slot] = prompt.prompt
        self.messages[slot] = None
        self.numbers[slot] = number

    def append(self, acting: np.ndarray, actions: np.ndarray, log_ratios: np.ndarray, log_probs: np.ndarray) -> None:
        """Write an action, its log-ratio and its log π, (N,) each, in the slots that act, (N,) bool."""
        rows = np.flatnonzero(acting)
        self.ids[rows, self.lengths[rows]] = actions[rows]
        self.action_mask[rows, self.lengths[rows]] = True
        self.log_ratios[rows, self.response_lengths[rows]] = log_ratios[rows]
        self.log_probs[rows, self.response_lengths[rows]] = log_probs[rows]
        self.lengths[rows] += 1
        self.response_lengths[rows] += 1

    def earn(self, acting: np.ndarray, rewards: np.ndarray) -> None:
        """Note the reward (N,) of the action just appended, in the slots that acted, (N,) bool."""
        rows = np.flatnonzero(acting)
        self.rewards[rows, self.response_lengths[rows] - 1] = rewards[rows]

    def insert(self, slot: int, ids: Sequence[int]) -> None:
        """Write tokens of others, which are no actions, behind what is in a slot."""
        length = int(self.lengths[slot])
        self.ids[slot, length : length + len(ids)] = ids
        self.lengths[slot] += len(ids)

    def earn_turn(self, slot: int, reward: float) -> None:
        """Note the reward of the turn that ended with the action just appended."""
        self.turn_rewards[slot, self.response_lengths[slot] - 1] = reward

    def episode(self, slot: int, finish_reason: str) -> Episode:
        """The finished episode of a slot."""
        return Episode(
            number=int(self.numbers[slot]),
            slot=int(slot),
            input_ids=self.ids[slot, : self.lengths[slot]].copy(),
            action_mask=self.action_mask[slot, : self.lengths[slot]].copy(),
            finish_reason=finish_reason,
            prompt=self.prompts[slot],
            messages=self.messages[slot],
            turn_rewards=self.turn_rewards[slot, : self.response_lengths[slot]].copy(),
        )

    def observation(self, lengths: np.ndarray | None = None) -> Observation:
        """The observation of all slots; `lengths` (N,) replaces the rows' own."""
        lengths = self.lengths if lengths is None else lengths
        mask = (self._columns < lengths[:, None]).astype(np.int8)  # (N, L)
        return {"input_ids": self.ids.copy(), "attention_mask": mask}

    def prompt_ids(self, slot: int) -> np.ndarray:
        """The tokens of a slot before its first action, (P,)."""
        acted = np.flatnonzero(self.action_mask[slot])  # (T,)
        return self.ids[slot, : acted[0] if len(acted) else self.lengths[slot]]

    def states(self, slot: int) -> Observation:
        """The states the actions of a slot's response were taken from, one a row: (T, L)."""
        lengths = np.flatnonzero(self.action_mask[slot])  # (T,): a state holds what stands before its action
        ids = np.repeat(self.ids[slot][None], len(lengths), axis=0)  # (T, L)
        return {"input_ids": ids, "attention_mask": (self._columns < lengths[:, None]).astype(np.int8)}
