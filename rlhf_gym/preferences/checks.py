"""What is odd about a set of preferences, and how to split one: both before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.tokens import encode_prompts, encode_responses
from rlhf_gym.preferences.records import Preference


@dataclass(frozen=True)
class PreferenceReport:
    """What `check_preferences` found: indices into what it was given, ascending. A record may stand under several."""

    total: int
    """Records looked at."""
    duplicates: tuple[int, ...]
    """Same prompt, chosen and rejected as an earlier record."""
    contradictory: tuple[int, ...]
    """To the same prompt, somebody preferred a to b and somebody b to a: all records on either side."""
    identical: tuple[int, ...]
    """Chosen and rejected are the same text."""
    empty: tuple[int, ...]
    """Chosen or rejected is blank."""
    too_long: tuple[int, ...]
    """Prompt with chosen, or with rejected, is over the length given."""

    @property
    def flagged(self) -> tuple[int, ...]:
        """Every index found under any heading, once, ascending."""
        found = (self.duplicates, self.contradictory, self.identical, self.empty, self.too_long)
        return tuple(sorted({index for indices in found for index in indices}))

    @property
    def kinds(self) -> dict[str, tuple[int, ...]]:
        """What each heading is called, and the indices under it."""
        return {
            "duplicate": self.duplicates,
            "contradictory": self.contradictory,
            "with identical responses": self.identical,
            "with a blank response": self.empty,
            "too long": self.too_long,
        }

    def __str__(self) -> str:
        found = ", ".join(f"{len(indices)} {name}" for name, indices in self.kinds.items() if indices)
        return f"{self.total} preferences: {found or 'nothing odd'}"


def check_preferences(
    preferences: Sequence[Preference],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> PreferenceReport:
    """Report duplicate, contradictory, identical, blank and over-long records. Nothing is dropped.

    Duplicates and contradictions are not always faults (two annotators may agree, or not), so what to do about them is
    the caller's: `[p for i, p in enumerate(preferences) if i not in report.flagged]` keeps the rest.

    Args:
        preferences: the records.
        tokenizer: with `max_length`, what counts tokens.
        max_length: the most tokens that prompt, response and closing EOS may have; None to count none.

    Raises:
        ValueError: a length without a tokenizer.
    """
    seen: set[tuple[str, str, str]] = set()
    duplicates = []
    for index, p in enumerate(preferences):
        key = (p.prompt, p.chosen, p.rejected)
        if key in seen:
            duplicates.append(index)
        seen.add(key)
    return PreferenceReport(
        total=len(preferences),
        duplicates=tuple(duplicates),
        contradictory=tuple(
            i for i, p in enumerate(preferences) if p.chosen != p.rejected and (p.prompt, p.rejected, p.chosen) in seen
        ),
        identical=tuple(i for i, p in enumerate(preferences) if p.chosen == p.rejected),
        empty=tuple(i for i, p in enumerate(preferences) if not p.chosen.strip() or not p.rejected.strip()),
        too_long=() if max_length is None else _too_long(preferences, tokenizer, max_length),
    )


def _too_long(
    preferences: Sequence[Preference], tokenizer: PreTrainedTokenizerBase | None, max_length: int
) -> tuple[int, ...]:
    if tokenizer is None:
        raise ValueError(f"expected a tokenizer to count max_length={max_length} tokens with, got none")
    prompts = encode_prompts(tokenizer, [p.prompt for p in preferences])
    chosen = encode_responses(tokenizer, [p.chosen for p in preferences])
    rejected = encode_responses(tokenizer, [p.rejected for p in preferences])
    rows = enumerate(zip(prompts, chosen, rejected, strict=True))
    return tuple(i for i, (x, a, b) in rows if len(x) + max(len(a), len(b)) > max_length)


class HasPrompt(Protocol):
    """A record that belongs to a prompt: a `Preference`, a `Candidate`, a `Demonstration`."""

    @property
    def prompt(self) -> str:
        """The prompt."""
        ...


Record = TypeVar("Record", bound=HasPrompt)


def split_by_prompt(
    records: Sequence[Record], heldout_fraction: float, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """(train, heldout), all records of a prompt on one side: held-out accuracy is then about unseen prompts.

    The distinct prompts are put in the order of their hashes and the first ⌊fraction·prompts + ½⌋ held out, at least
    one and never all. So the split depends neither on the order of the records nor on how often a prompt occurs, and
    hardly moves as later rounds bring new prompts.

    Args:
        records: anything with a `prompt`.
        heldout_fraction: share of the prompts, in [0, 1); 0 holds out nothing.
        seed: another seed, another split.

    Raises:
        ValueError: the fraction is out of range, or there are fewer than two prompts to split.
    """
    if not 0 <= heldout_fraction < 1:
        raise ValueError(f"expected heldout_fraction in [0, 1), got {heldout_fraction}")
    if heldout_fraction == 0:
        return list(records), []
    prompts = sorted({r.prompt for r in records}, key=lambda prompt: _hash(prompt, seed))
    if len(prompts) < 2:
        raise ValueError(f"expected at least 2 prompts to hold some out, got {len(prompts)}")
    count = min(max(int(heldout_fraction * len(prompts) + 0.5), 1), len(prompts) - 1)
    heldout = set(prompts[:count])
    return [r for r in records if r.prompt not in heldout], [r for r in records if r.prompt in heldout]


def _hash(prompt: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{prompt}".encode(errors="surrogatepass")).digest()
