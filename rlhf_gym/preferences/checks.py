"""What is odd about a set of preferences, and how to split one into training and held-out records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Prompt, Response, has_template, last_answer, prompt_key, response_text
from rlhf_gym.lm.tokens import encode_prompts, encode_responses
from rlhf_gym.preferences.records import Preference


@dataclass(frozen=True)
class PreferenceReport:
    """What `check_preferences` found, as ascending indices of records. A record may stand under several headings."""

    total: int
    """Records that were checked."""
    duplicates: tuple[int, ...]
    """Records with the same prompt, chosen and rejected text as an earlier one."""
    contradictory: tuple[int, ...]
    """Records that say a ≻ b where another one says b ≻ a to the same prompt."""
    identical: tuple[int, ...]
    """Records whose chosen and rejected texts are the same."""
    empty: tuple[int, ...]
    """Records with a response in which the assistant says nothing."""
    too_long: tuple[int, ...]
    """Records whose prompt with either response is longer than the given length."""

    @property
    def kinds(self) -> dict[str, tuple[int, ...]]:
        """The headings and the indices under each."""
        return {
            "duplicate": self.duplicates,
            "contradictory": self.contradictory,
            "with identical responses": self.identical,
            "with a blank response": self.empty,
            "too long": self.too_long,
        }

    @property
    def flagged(self) -> tuple[int, ...]:
        """Every index found under any heading, once, ascending."""
        return tuple(sorted({index for indices in self.kinds.values() for index in indices}))

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

    Duplicates and contradictions are not always faults, since annotators may agree or not. To drop everything that is
    reported: `[p for i, p in enumerate(preferences) if i not in report.flagged]`.

    Args:
        preferences: the records.
        tokenizer: counts the tokens for `max_length`.
        max_length: the most tokens of prompt, response and closing EOS together; None for no limit.

    Raises:
        ValueError: a length without a tokenizer.
    """
    too_long: tuple[int, ...] = ()
    if max_length is not None:
        if tokenizer is None:
            raise ValueError(f"expected a tokenizer to count max_length={max_length} tokens with, got none")
        chosen = token_counts(tokenizer, [(p.prompt, p.chosen) for p in preferences])
        rejected = token_counts(tokenizer, [(p.prompt, p.rejected) for p in preferences])
        longest = enumerate(map(max, chosen, rejected))
        too_long = tuple(i for i, length in longest if length > max_length)
    first: dict[tuple[Prompt, Response, Response], int] = {}
    for index, p in enumerate(preferences):
        first.setdefault((p.prompt, p.chosen, p.rejected), index)
    numbered = list(enumerate(preferences))
    return PreferenceReport(
        total=len(preferences),
        duplicates=tuple(i for i, p in numbered if first[p.prompt, p.chosen, p.rejected] < i),
        contradictory=tuple(
            i for i, p in numbered if p.chosen != p.rejected and (p.prompt, p.rejected, p.chosen) in first
        ),
        identical=tuple(i for i, p in numbered if p.chosen == p.rejected),
        empty=tuple(
            i for i, p in numbered if not response_text(p.chosen).strip() or not response_text(p.rejected).strip()
        ),
        too_long=too_long,
    )


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[Prompt, Response]]) -> list[int]:
    """Tokens of each prompt with its response and closing token, of dialogues too whose earlier turns are rewritten."""
    renders = has_template(tokenizer)
    answers = [last_answer(*text) if renders and not isinstance(text[0], str) else text for text in texts]
    asked = [prompt for prompt, _ in answers]
    prompts = encode_prompts(tokenizer, asked)
    responses = encode_responses(tokenizer, [said for _, said in answers], prompts=asked)
    return [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]


class HasPrompt(Protocol):
    """A record that belongs to a prompt: a `Preference`, a `Candidate`, a `Demonstration`."""

    @property
    def prompt(self) -> Prompt:
        """The prompt."""
        ...


Record = TypeVar("Record", bound=HasPrompt)


def split_by_prompt(
    records: Sequence[Record], heldout_fraction: float, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """(train, heldout), all records of a prompt on one side, so that held-out accuracy is about unseen prompts.

    The distinct prompts are sorted by their hashes, and the first ⌊fraction·prompts + ½⌋ are held out: at least one and
    never all. The split depends neither on the order of the records nor on how often a prompt occurs, and it hardly
    changes as later rounds bring new prompts.

    Args:
        records: anything with a `prompt`.
        heldout_fraction: share of the prompts, in [0, 1); 0 holds out nothing.
        seed: another seed gives another split.

    Raises:
        ValueError: the fraction is out of range, or there are fewer than two prompts to split.
    """
    if not 0 <= heldout_fraction < 1:
        raise ValueError(f"expected heldout_fraction in [0, 1), got {heldout_fraction}")
    if heldout_fraction == 0:
        return list(records), []

    def key(prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{seed}\0{prompt_key(prompt)}".encode(errors="surrogatepass")).digest()

    prompts = sorted({record.prompt for record in records}, key=key)
    if len(prompts) < 2:
        raise ValueError(f"expected at least 2 prompts to hold some out, got {len(prompts)}")
    count = min(max(int(heldout_fraction * len(prompts) + 0.5), 1), len(prompts) - 1)
    heldout = set(prompts[:count])
    return [r for r in records if r.prompt not in heldout], [r for r in records if r.prompt in heldout]
