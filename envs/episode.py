"""The records that pass between an environment and an agent, and episodes as rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Conversation, Message, Prompt, Response, as_response
from rlhf_gym.lm.tokens import ActionRows, answer_starts, decode, decode_prompts, decode_responses, stop_token_ids
from rlhf_gym.preferences import Candidate

Observation = dict[str, np.ndarray]
"""`input_ids` (N, L) int64 and `attention_mask` (N, L) int8, left-aligned and right-padded."""


@dataclass(frozen=True, eq=False)
class Episode:
    """A finished episode: its tokens, and which of them are actions."""

    number: int
    """The episode's place in the order in which its environment started them, from 0."""
    slot: int
    """The slot it was played in."""
    input_ids: np.ndarray
    """All tokens in their order: the prompt, then the response with its stop token, shape (L,) int64."""
    action_mask: np.ndarray
    """True where the token is an action of the policy, shape (L,) bool. The state of an action is all before it."""
    finish_reason: str
    """`"stop"` at a stop token, `"length"` at `max_new_tokens`."""
    prompt: Prompt | None = None
    """What the prompt was made of, a text or a conversation; None where it was given as token ids."""
    messages: Conversation | None = None
    """The whole conversation, its last message the last answer, where the prompt is a conversation and others speak
    between the actions (`Turns`); None otherwise."""
    turn_rewards: np.ndarray | None = None
    """What each turn earned, at its last action, (T,) float32; None where there are no turns."""

    def __post_init__(self) -> None:
        if self.action_mask.shape != self.input_ids.shape or self.action_mask.dtype != np.bool_:
            raise ValueError(
                f"expected an action_mask of bool and of input_ids' shape {self.input_ids.shape}, got "
                f"{self.action_mask.dtype} of shape {self.action_mask.shape}"
            )
        if not self.action_mask.any() or self.action_mask[0]:
            raise ValueError(
                "expected at least one action, and at least one token before the first, got action_mask "
                f"{self.action_mask.astype(int).tolist()}"
            )

    @classmethod
    def of_response(
        cls,
        prompt_ids: Sequence[int] | np.ndarray,
        response_ids: Sequence[int] | np.ndarray,
        finish_reason: str,
        *,
        number: int = 0,
        prompt: Prompt | None = None,
    ) -> Episode:
        """The episode of a prompt and one response to it, every token of which is an action."""
        input_ids = np.array([*prompt_ids, *response_ids], dtype=np.int64)
        return cls(number, 0, input_ids, np.arange(len(input_ids)) >= len(prompt_ids), finish_reason, prompt)

    @property
    def response_length(self) -> int:
        """T, the number of actions."""
        return int(self.action_mask.sum())

    @property
    def response_ids(self) -> np.ndarray:
        """The actions, shape (T,)."""
        return self.input_ids[self.action_mask]

    @property
    def asked(self) -> Prompt | None:
        """What the last answer answers: the conversation before it, or the prompt where nobody else spoke."""
        return self.prompt if self.messages is None else self.messages[:-1]

    @property
    def answer_ids(self) -> np.ndarray:
        """The tokens that answer `asked`: all from the first action on, or those of the last answer, (n,)."""
        return self.input_ids[answer_starts(self.action_mask[None], [self.asked])[0] :]

    @property
    def prompt_ids(self) -> np.ndarray:
        """The tokens before the first action, shape (P,)."""
        return self.input_ids[: int(self.action_mask.argmax())]


class EpisodeScores(NamedTuple):
    """The scores of whole episodes, before and after shaping."""

    scores: np.ndarray
    """The scores that fall on the last action, with shaping and missing-EOS penalty, shape (E,)."""
    raw_scores: np.ndarray
    """The scores as r_φ gave them, shape (E,)."""
    member_scores: np.ndarray | None = None
    """What each of r_φ's k members gives in all, shape (k, E); None while deferred."""
    dense: np.ndarray | None = None
    """The reward of each action beside score and KL, shape (E, T), 0 at padding; None where there is none."""
    causal: np.ndarray | None = None
    """The part of it that could be told when its token was written, shape (E, T); None where there is none."""


class EpisodeRewards(NamedTuple):
    """The rewards of whole episodes; rows are packed by action and right-padded to the longest response."""

    rewards: np.ndarray
    """Reward of each action, shape (E, T) float32; 0 at padding."""
    scores: np.ndarray
    """The score on the last action, with shaping and missing-EOS penalty, shape (E,)."""
    log_ratios: np.ndarray
    """log π(a|s) − log π_ref(a|s), shape (E, T); 0 at padding and without a reference."""
    ref_log_probs: np.ndarray
    """log π_ref(a|s), shape (E, T)."""
    raw_scores: np.ndarray | None = None
    """The scores as r_φ gave them, shape (E,); None where rewards were taken step by step."""
    member_scores: np.ndarray | None = None
    """What each of r_φ's k members gives in all, shape (k, E)."""
    dense: np.ndarray | None = None
    """The reward of each action beside score and KL, shape (E, T), 0 at padding; None where there is none."""

    @property
    def totals(self) -> np.ndarray:
        """What each episode earned beside the KL, Σ dense + score, shape (E,)."""
        return self.scores if self.dense is None else self.scores + self.dense.sum(axis=1, dtype=np.float64)


class StepRecord(NamedTuple):
    """The episodes that a step ended, and the log-ratios of its actions."""

    episodes: list[Episode]
    """The episodes it ended."""
    scores: np.ndarray
    """Their scores, shape (episodes,); NaN while deferred."""
    log_ratios: np.ndarray
    """log π(a|s) − log π_ref(a|s) of each slot's action, shape (N,); 0 while deferred and where nothing acted."""
    episode_log_ratios: Sequence[np.ndarray] = ()
    """The same of all actions of each ended episode, (T_e,) each; 0 while deferred."""
    member_scores: np.ndarray | None = None
    """What each of r_φ's k members gives in all, shape (k, episodes); None while deferred and where none ended."""
    dense: np.ndarray | None = None
    """The reward of each action of the ended episodes as it was paid, beside score and KL, shape (episodes, T); None
    while deferred and where there is none."""


@runtime_checkable
class ActionLogProb(Protocol):
    """A policy that knows the log-probability of its actions: what `attach` takes."""

    def action_log_prob(self, observation: Observation, action: np.ndarray) -> np.ndarray | Tensor:
        """log π(a|s) of each slot's action, shape (N,); values of parked slots (empty mask) are not read."""
        ...


@runtime_checkable
class StateValues(Protocol):
    """A policy with a critic, as Stable-Baselines3 writes it; a view shows its values."""

    def predict_values(self, obs: dict[str, Tensor]) -> Tensor:
        """V(s) of each row, shape (B, 1)."""
        ...


def prompts_of(episodes: Sequence[Episode], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """What each episode's last answer answers; as a text, special tokens included, where it was given as token ids."""
    decoded = decode_prompts(tokenizer, [e.prompt_ids.tolist() for e in episodes])
    return [text if e.asked is None else e.asked for e, text in zip(episodes, decoded, strict=True)]


def candidates_from_episodes(
    episodes: Sequence[Episode], tokenizer: PreTrainedTokenizerBase, source: str = "", *, temperature: float = 1.0
) -> list[Candidate]:
    """Played episodes as candidates, to be compared by whoever compares responses.

    The response is a dialogue where others spoke between the actions, else a text. Behind a prompt that is a text or
    token ids, what others said becomes messages of the user's.

    Args:
        episodes: finished episodes, of one turn or several.
        tokenizer: the policy's.
        source: the name of the policy that played them.
        temperature: the temperature at which it sampled.
    """
    stop_ids = stop_token_ids(tokenizer)
    decoded = decode_prompts(tokenizer, [e.prompt_ids.tolist() for e in episodes])
    found = []
    for episode, text in zip(episodes, decoded, strict=True):
        prompt = text if episode.prompt is None else episode.prompt
        if episode.messages is not None and isinstance(prompt, tuple):
            response = as_response(episode.messages[len(prompt) :])
        else:
            response = _decoded_response(episode, tokenizer, stop_ids)
        found.append(Candidate(prompt, response, source, temperature))
    return found


def _decoded_response(episode: Episode, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> Response:
    """What was said in an episode without messages."""
    begin = len(episode.prompt_ids)
    turns = np.split(episode.input_ids[begin:], np.flatnonzero(np.diff(episode.action_mask[begin:])) + 1)
    answers = decode_responses(tokenizer, [turn.tolist() for turn in turns[::2]], stop_ids)
    said: list[Message] = []
    for answer, reply in zip(answers, ["", *decode(tokenizer, [turn.tolist() for turn in turns[1::2]])], strict=True):
        said += [Message("user", reply), Message("assistant", answer)]
    return as_response(said[1:])


def stack_rows(episodes: Sequence[Episode]) -> ActionRows:
    """Episodes as right-padded rows."""
    lengths = torch.tensor([len(episode.input_ids) for episode in episodes])  # (E,)
    shape = (len(episodes), int(lengths.max()))
    input_ids = torch.zeros(shape, dtype=torch.int64)  # (E, L)
    action_mask = torch.zeros(shape, dtype=torch.bool)  # (E, L)
    for row, episode in enumerate(episodes):
        input_ids[row, : lengths[row]] = torch.from_numpy(episode.input_ids)
        action_mask[row, : lengths[row]] = torch.from_numpy(episode.action_mask)
    return ActionRows(input_ids, action_mask, lengths)


def at_actions(table: Tensor, episodes: Sequence[Episode]) -> list[np.ndarray]:
    """The entries of a table (E, L) over all tokens at each episode's actions, (T_e,) each."""
    rows = table.cpu().numpy()  # (E, L)
    return [row[: len(e.input_ids)][e.action_mask] for row, e in zip(rows, episodes, strict=True)]


def pad_actions(rows: Sequence[np.ndarray], width: int | None = None) -> np.ndarray:
    """One amount an action, (T_e,) each, right-padded with 0 to `width` or the longest row: (E, T) float32."""
    width = max((len(row) for row in rows), default=0) if width is None else width
    table = np.zeros((len(rows), width), dtype=np.float32)  # (E, T)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def earned_at_turns(episodes: Sequence[Episode], width: int) -> np.ndarray | None:
    """What the turns of episodes earned, at their last actions, (E, T); None where none earned anything."""
    if not any(e.turn_rewards is not None and e.turn_rewards.any() for e in episodes):
        return None
    return pad_actions([() if e.turn_rewards is None else e.turn_rewards for e in episodes], width)  # type: ignore[misc]
