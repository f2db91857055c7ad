"""How variants are compared: in turn, round by round, and what a comparison becomes: a row of the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from tyro.conf import Suppress

from benchmarks.models import SMALL, TINY, Shape, now

Say = Callable[[str], None]
"""A function that is told what is being measured."""


@dataclass(frozen=True)
class Settings:
    """The settings that all measurements of a run share."""

    shapes: Annotated[tuple[Shape, ...], Suppress] = (TINY, SMALL)
    """The models."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both sides run."""
    threads: int = 2
    """The number of torch's threads, for both sides."""
    rounds: int = 5
    """Timed repeats of each variant, in turn with the others."""
    min_seconds: float = 0.3
    """A repeat goes on for at least so long."""
    warm_ups: int = 5
    """Untimed calls of each variant: after so many the decoder has recorded its one-token steps."""
    batches: tuple[int, ...] = (1, 16, 64)
    """Batches of the loops."""
    response: int = 48
    """Tokens of each response."""
    long_response: int = 512
    """Tokens of a long response."""
    episodes: int = 256
    """How many episodes of unequal lengths there are."""
    ppo_episodes: int = 64
    """Episodes of a PPO iteration."""
    ppo_response: int = 48
    """Tokens of each of its responses."""
    ranks: int = 2
    """Processes that train one agent together (docs/scaling.md)."""


@dataclass(frozen=True)
class Row:
    """What was compared with what, and what came out; docs/studies/speed.md says what it should be."""

    what: str
    size: str
    against: str
    ours: float | None
    """Tokens a second (or MB); None where it was not measured."""
    theirs: float | None
    ratio: float | None
    """The median over the rounds of the ratio within a round; None where there is nothing to compare with."""
    note: str

    def cells(self) -> list[str]:
        """The row's cells as text."""
        numbers = [_number(self.ours), _number(self.theirs), "–" if self.ratio is None else f"{self.ratio:.2f}"]
        return [self.what, self.size, self.against, *numbers, self.note]


HEADER = ["what", "size", "against", "ours", "theirs", "ratio", "note"]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


class Comparison(NamedTuple):
    """The results of a round-robin."""

    rates: dict[str, list[float]]
    """Tokens a second of each variant, a number a round."""

    def row(self, ours: str, theirs: str, what: str, size: str, note: str = "") -> Row:
        """The comparison of two variants as a row, with the range over the rounds in its note."""
        each = [a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True)]
        medians = [statistics.median(self.rates[name]) for name in (ours, theirs)]
        spread = f"rounds {min(each):.2f}–{max(each):.2f}" if len(each) > 1 else "one round"
        note = f"{note}; {spread}" if note else spread
        return Row(what, size, theirs, *medians, statistics.median(each), note)


class Variant(NamedTuple):
    """One of the variants that are compared."""

    run: Callable[[], float]
    """Does the work once; returns how many tokens it counts for."""
    warm_ups: int = 1


def round_robin(variants: Mapping[str, Variant], *, rounds: int, min_seconds: float, device: str) -> Comparison:
    """Time every variant once a round, beginning each round with another one.

    A variant is run again and again until `min_seconds` have passed.
    """
    for variant in variants.values():
        for _ in range(variant.warm_ups):
            variant.run()
    names = list(variants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = now(device)
            count = seconds = 0.0
            while count == 0 or seconds < min_seconds:
                count += variants[name].run()
                seconds = now(device) - started
            rates[name].append(count / seconds)
    return Comparison(rates)


def markdown(rows: Sequence[Row], heading: str) -> str:
    """The table as Markdown under a line that says where its numbers come from."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([heading, "", line(HEADER), "|" + "---|" * len(HEADER), *(line(row.cells()) for row in rows)])
