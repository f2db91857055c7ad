"""What the store of judgements holds: items to judge, and what people said about them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from rlhf_gym.preferences.records import Candidate, CandidatePair

ItemKind = Literal["comparison", "ranking", "rating"]
Action = Literal["chosen", "tie", "ranking", "ratings", "skip", "undo"]

ACTIONS: dict[ItemKind, tuple[Action, ...]] = {
    "comparison": ("chosen", "tie", "skip", "undo"),
    "ranking": ("ranking", "skip", "undo"),
    "rating": ("ratings", "skip", "undo"),
}
"""What can be said about each kind of item."""

MAX_NAME, MAX_REASON, MAX_SECONDS = 60, 4000, 86_400.0


@dataclass(frozen=True)
class Item:
    """Something to judge: responses to one prompt."""

    kind: ItemKind
    """"comparison" of two, "ranking" of K ≥ 2, or "rating" of K ≥ 1, each by itself."""
    candidates: tuple[Candidate, ...]
    """The K responses, in the item's own order, which nobody who judges gets to know."""
    batch: str = ""
    """What it was put there for; a session of labelling serves one batch."""
    round: int = 0
    """In which round of collecting."""
    labels_wanted: int = 1
    """From how many annotators; more than one to measure how far they agree."""
    id: int = 0
    """Its number in the store; 0 for one that is not in it."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ItemKind):
            raise ValueError(f"expected an item of kind {', '.join(get_args(ItemKind))}, got {self.kind!r}")
        k, least = len(self.candidates), 1 if self.kind == "rating" else 2
        if k < least or (self.kind == "comparison" and k != 2):
            raise ValueError(f"expected {'2' if self.kind == 'comparison' else f'at least {least}'} responses in a "
                             f"{self.kind}, got {k}")  # fmt: skip
        if len({candidate.prompt for candidate in self.candidates}) != 1:
            raise ValueError(f"expected responses to one prompt, got {[c.prompt for c in self.candidates]!r}")
        if self.labels_wanted < 1:
            raise ValueError(f"expected labels_wanted >= 1, got {self.labels_wanted}")

    @property
    def prompt(self) -> str:
        """The prompt that all of them answer."""
        return self.candidates[0].prompt

    @property
    def responses(self) -> tuple[str, ...]:
        """Their texts."""
        return tuple(candidate.response for candidate in self.candidates)

    @property
    def key(self) -> str:
        """The same for the same item: kind, batch, round, prompt, responses and who wrote them."""
        texts = [[c.response, c.source] for c in self.candidates]
        said = json.dumps([self.kind, self.batch, self.round, self.prompt, texts])
        return hashlib.sha256(said.encode()).hexdigest()


class Assignment(NamedTuple):
    """An item, lent to an annotator."""

    item: Item
    """The item."""
    shown: tuple[int, ...]
    """Indices of its candidates in the order this annotator sees them, first on the left or on top."""


@dataclass(frozen=True)
class Judgement:
    """One record of the log: what an annotator said about an item. Later ones overrule earlier ones."""

    id: str
    """Made by whoever sends it, so that sending it again does not double it."""
    item: int
    """The item's number."""
    annotator: str
    """Who."""
    action: Action
    """"chosen", "tie", "ranking", "ratings", "skip", or "undo", which takes back what this annotator said last."""
    value: tuple[float, ...] = ()
    """By the item's own order: the index chosen; the rank of each, 1 the best; the rating of each; else empty."""
    seconds: float = 0.0
    """Time taken."""
    shown: tuple[int, ...] = ()
    """The order shown, as in `Assignment`; empty where unknown."""
    reason: str = ""
    """Why, in the annotator's words."""
    time: float = 0.0
    """Seconds since 1970 at which it was stored; set by the store where it is 0."""

    def content(self) -> tuple[object, ...]:
        """What makes it the same judgement when it comes again."""
        return self.item, self.annotator, self.action, self.value, self.reason


def comparisons(pairs: Sequence[CandidatePair], *, batch: str = "", round: int = 0, labels: int = 1) -> list[Item]:
    """Items that ask which of two is better."""
    return [Item("comparison", tuple(pair), batch, round, labels) for pair in pairs]


def check_name(name: str) -> str:
    """An annotator's name, without the blanks around it.

    Raises:
        ValueError: it is blank, too long, or holds what cannot be printed.
    """
    stripped = name.strip()
    if not 0 < len(stripped) <= MAX_NAME or not stripped.isprintable():
        raise ValueError(f"expected an annotator's name of 1 to {MAX_NAME} printable characters, got {name[:80]!r}")
    return stripped


def check_judgement(judgement: Judgement, item: Item) -> None:
    """Whether it can be said about that item.

    Raises:
        ValueError: it cannot; says what was expected and what came.
    """
    if not 0 < len(judgement.id) <= 100 or not judgement.id.isprintable():
        raise ValueError(f"expected a judgement's id of 1 to 100 printable characters, got {judgement.id[:120]!r}")
    check_name(judgement.annotator)
    if judgement.action not in ACTIONS[item.kind]:
        raise ValueError(f"expected one of {', '.join(ACTIONS[item.kind])} for a {item.kind}, got {judgement.action!r}")
    k = len(item.candidates)
    if judgement.shown and sorted(judgement.shown) != list(range(k)):
        raise ValueError(f"expected shown to be an order of {k} responses, got {judgement.shown}")
    if not 0 <= judgement.seconds <= MAX_SECONDS:
        raise ValueError(f"expected seconds in [0, {MAX_SECONDS:.0f}], got {judgement.seconds}")
    if len(judgement.reason) > MAX_REASON:
        raise ValueError(f"expected a reason of at most {MAX_REASON} characters, got {len(judgement.reason)}")
    try:
        judgement.reason.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected a reason that is text, got {error.reason} at {error.start}") from error
    _check_value(judgement.action, judgement.value, k)


def _check_value(action: Action, value: tuple[float, ...], k: int) -> None:
    if action == "chosen" and (len(value) != 1 or value[0] not in range(k)):
        raise ValueError(f"expected the index of the chosen one of {k} responses, got {list(value)}")
    if action == "ranking" and (len(value) != k or any(rank not in range(1, k + 1) for rank in value)):
        raise ValueError(f"expected {k} ranks from 1 to {k}, one for each response, got {list(value)}")
    if action == "ratings" and (len(value) != k or not all(math.isfinite(rating) for rating in value)):
        raise ValueError(f"expected {k} finite ratings, one for each response, got {list(value)}")
    if action in ("tie", "skip", "undo") and value:
        raise ValueError(f"expected no value with {action!r}, got {list(value)}")
