"""What a reward may say of a response: one score, a number for each of its tokens, or numbers at some of them.

A row is (T_e,): one number an action, in the tokens of the policy, the stop token included. Tokens that others put into
the response have no place in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.tokens import token_texts

Row = ArrayLike | Mapping[int, float]
"""The rewards of one response's actions: one for each, (T_e,), or by position, `{3: 1.0}`, and 0 elsewhere."""


class DenseRewards(NamedTuple):
    """Rewards at tokens together with scores, as a reward function or a shaping term may return them."""

    rows: Sequence[Row]
    """A row for each of B responses."""
    scores: ArrayLike = 0.0
    """What falls on each response's last action besides, (B,) or one number."""


class Given(NamedTuple):
    """What a reward function gave, checked."""

    scores: np.ndarray
    """The score of each response, (B,) float32; 0 where it gave a row."""
    rows: list[np.ndarray] | None
    """The rewards of each response's actions, (T_e,) float32 each; None where it gave scores alone."""

    @property
    def totals(self) -> np.ndarray:
        """The sum of all that a response got, (B,) float32."""
        if self.rows is None:
            return self.scores
        sums = np.array([row.sum(dtype=np.float64) for row in self.rows])  # (B,)
        return (self.scores + sums).astype(np.float32)


class ScoreError(ValueError):
    """A reward or a verifier returned something other than finite scores; the message says whose, and what came."""


def check_scores(scores: object, count: int, *, source: str) -> np.ndarray:
    """`scores` as float32 (count,), or an error that says what came instead.

    Raises:
        ScoreError: no numbers, another shape, or a score that is not finite.
    """
    try:
        values = _numbers(scores)  # (B,)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"expected {source} to return {count} scores, got {scores!r:.80}: {error}") from error
    if values.shape != (count,):
        got = "None" if scores is None else f"shape {values.shape}"
        raise ScoreError(f"expected {source} to return {count} scores of shape ({count},), got {got}")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ScoreError(f"expected finite scores from {source}, got {values[bad]} for episode {bad}")
    return values


def _numbers(said: Any) -> np.ndarray:
    """What was returned as float32, on the host and without gradients.

    Raises:
        TypeError: texts or complex numbers. ValueError: what holds no numbers, or whole numbers beyond all floats.
    """
    given = np.asarray(said.detach().cpu() if isinstance(said, Tensor) else said)
    if given.dtype.kind in "USc":
        raise TypeError(f"expected real numbers, got {given.dtype}")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is found by whoever asks for finite numbers
            return given.astype(np.float32)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def check_rewards(said: object, count: int, lengths: Sequence[int] | None, *, source: str) -> Given:
    """What a reward function said of `count` responses.

    It is an array of scores, (B,); or for each response a number (its score), a row (T_e,) or a mapping from positions
    of actions to rewards; or `DenseRewards`, which has rows and scores. An array (B, 1) is refused: nobody can tell
    whether it means scores or rows.

    Args:
        said: what was returned.
        count: B.
        lengths: T_e of each response; None where its tokens are not known: rows may then have any length.
        source: who said it, for the error.

    Raises:
        ScoreError: something else; a row of another length; a position that is no action; a number that is not finite.
    """
    if isinstance(said, DenseRewards):
        rows = said.rows
        if len(rows) != count:
            raise ScoreError(f"expected {source} to return {count} rows, one a response, got {len(rows)}")
        scores = np.broadcast_to(said.scores, (count,)) if np.ndim(said.scores) == 0 else said.scores  # type: ignore[arg-type]
        checked = check_scores(scores, count, source=source)
        return Given(checked, [_row(row, i, lengths, source) for i, row in enumerate(rows)])
    if not _has_rows(said, lengths):
        return Given(check_scores(said, count, source=source), None)
    items: Sequence[Row] = said  # type: ignore[assignment]
    if len(items) != count:
        raise ScoreError(f"expected {source} to return {count} scores or rows, one a response, got {len(items)}")
    single = [not isinstance(item, Mapping) and np.ndim(item) == 0 for item in items]  # type: ignore[arg-type]
    numbers = [item if is_score else 0.0 for item, is_score in zip(items, single, strict=True)]
    found = [{} if is_score else item for item, is_score in zip(items, single, strict=True)]
    scores = check_scores(numbers, count, source=source)
    return Given(scores, [_row(row, i, lengths, source) for i, row in enumerate(found)])


def _has_rows(said: object, lengths: Sequence[int] | None) -> bool:
    """Whether something in a list of answers is a row or a mapping, and not a number.

    A column (B, 1) is what a model's head gives: scores of a wrong shape, unless each response is one token in a list.
    """
    if isinstance(said, list | tuple) or (isinstance(said, np.ndarray) and said.dtype == object and said.ndim == 1):
        column = all(not isinstance(item, Mapping) and np.shape(item) == (1,) for item in said)  # type: ignore[arg-type, call-overload]
        if column and (lengths is None or set(lengths) != {1}):
            return False
        return any(isinstance(item, Mapping) or np.ndim(item) > 0 for item in said)
    return not isinstance(said, Mapping) and np.ndim(said) > 1 and np.shape(said)[1] != 1  # type: ignore[arg-type, call-overload]


def _row(row: Row, response: int, lengths: Sequence[int] | None, source: str) -> np.ndarray:
    """One response's rewards as float32 (T_e,)."""
    if isinstance(row, Mapping):
        return _placed(row, response, lengths, source)
    try:
        values = _numbers(row)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"expected {source} to return a row of numbers for response {response}: {error}") from error
    expected = values.shape if lengths is None else (lengths[response],)
    if values.ndim != 1 or values.shape != expected:
        raise ScoreError(
            f"expected {source} to return a row of shape {expected} for response {response}, one number for each of "
            f"its tokens (the stop token is one of them), got shape {values.shape}"
        )
    _check_finite(values, response, source)
    return values


def _placed(row: Mapping[int, float], response: int, lengths: Sequence[int] | None, source: str) -> np.ndarray:
    """One response's rewards as float32 (T_e,), from those at some positions."""
    try:
        places = {index(place): float(value) for place, value in row.items()}
    except (TypeError, ValueError) as error:
        raise ScoreError(
            f"expected {source} to map positions of tokens to rewards for response {response}, got {row!r:.80}: {error}"
        ) from error
    length = max(places, default=-1) + 1 if lengths is None else lengths[response]
    for place in places:
        if not 0 <= place < length:
            raise ScoreError(
                f"expected {source} to name positions in 0 … {length - 1} for response {response}, got {place}"
            )
    values = np.zeros(length, dtype=np.float32)  # (T_e,)
    values[list(places)] = list(places.values())
    _check_finite(values, response, source)
    return values


def _check_finite(values: np.ndarray, response: int, source: str) -> None:
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ScoreError(
            f"expected finite rewards from {source}, got {values[bad]} at token {bad} of response {response}"
        )


# -- where tokens stand in a text --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ResponseTokens:
    """The tokens of a response as a reward function may ask for them, and where they stand in its text.

    Positions count the policy's actions: position t is that of row[t].
    """

    text: str
    """The response as the function was given it."""
    tokenizer: PreTrainedTokenizerBase
    """The policy's tokenizer."""
    all_ids: tuple[int, ...]
    """Every token from the first action on, those of others among them."""
    action_mask: tuple[bool, ...]
    """Which of them are actions."""
    special_tokens: bool = False
    """Whether the text has special tokens."""

    def __len__(self) -> int:
        """T_e, the number of actions."""
        return sum(self.action_mask)

    @property
    def ids(self) -> tuple[int, ...]:
        """The actions, (T_e,)."""
        return tuple(token for token, acted in zip(self.all_ids, self.action_mask, strict=True) if acted)

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """For each action the characters [start, end) of the text that it adds; empty for what the text leaves out."""
        ends = character_ends(self.tokenizer, self.all_ids, self.text, special_tokens=self.special_tokens)
        starts = [0, *ends[:-1]]
        return tuple(
            span for span, acted in zip(zip(starts, ends, strict=True), self.action_mask, strict=True) if acted
        )

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """The positions of each turn's last action; one alone where no one else speaks."""
        acted = self.action_mask
        ends = [i for i, a in enumerate(acted) if a and not (i + 1 < len(acted) and acted[i + 1])]
        return tuple(sum(acted[:i]) for i in ends)

    def position(self, character: int) -> int:
        """The position of the action with which the text is complete up to and with this character.

        Raises:
            IndexError: there is no such character.
        """
        if not 0 <= character < len(self.text):
            raise IndexError(f"expected a character in 0 … {len(self.text) - 1} of the response, got {character}")
        found = [t for t, (_, end) in enumerate(self.spans) if end > character]
        return found[0] if found else len(self) - 1

    def ends_of(self, pattern: str = r"[.!?]+") -> tuple[int, ...]:
        """The positions at which a match of a pattern is complete, by default the ends of sentences; each one once."""
        ends = [match.end() - 1 for match in re.finditer(pattern, self.text) if match.end() > match.start()]
        return tuple(sorted({self.position(end) for end in ends}))


def character_ends(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, *, special_tokens: bool = False
) -> list[int]:
    """How many characters of a decoded text stand when each of its tokens has been read, (T,), never falling.

    Where tokens make the text joined one by one, their lengths add up. Otherwise each beginning of the row is decoded:
    a token that ends within a character (bytes) completes what it shares with the text.
    """
    if not len(ids):
        return []
    left_out = set() if special_tokens else set(tokenizer.all_special_ids)
    words = ["" if i in left_out else word for i, word in zip(ids, token_texts(tokenizer, ids), strict=True)]
    if "".join(words).startswith(text) and "\ufffd" not in text:
        ends = np.minimum(np.cumsum([len(word) for word in words]), len(text)).tolist()
    else:
        beginnings = [list(ids[: t + 1]) for t in range(len(ids))]
        found = tokenizer.batch_decode(beginnings, skip_special_tokens=not special_tokens)
        ends = [_shared(beginning, text) for beginning in found]
    ends = np.maximum.accumulate(ends).tolist()
    return [*ends[:-1], len(text)]


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
