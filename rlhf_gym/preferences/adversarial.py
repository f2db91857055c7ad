"""Edits that make a response worse, and that a reward model may like: what a policy would find, found beforehand.

Each edit is (response, rng, words) -> response, a pure function of its arguments: the same generator state gives the
same text. Words are what stands between blanks; blanks at the beginning, which byte-level tokenizers need, stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_gym.preferences.records import Candidate, CandidatePair, Preference

Edit = Callable[[str, np.random.Generator, Sequence[str]], str]
"""(response, rng, words to insert) -> the edited response. Those that insert nothing take no notice of the words."""


def repeat(response: str, rng: np.random.Generator, words: Sequence[str] = ()) -> str:
    """A stretch of one to six words, once or twice again right after itself."""
    lead, tokens = _split(response)
    if not tokens:
        return response
    length = int(rng.integers(1, min(6, len(tokens)) + 1))
    start = int(rng.integers(len(tokens) - length + 1))
    stretch = tokens[start : start + length] * int(rng.integers(1, 3))
    return lead + " ".join([*tokens[: start + length], *stretch, *tokens[start + length :]])


def insert(response: str, rng: np.random.Generator, words: Sequence[str]) -> str:
    """One to four of the words, each at a place drawn for it. With praise for words: flattery; with filler: padding.

    Raises:
        ValueError: no words to insert.
    """
    if not words:
        raise ValueError("expected words to insert, got none")
    lead, tokens = _split(response)
    for _ in range(int(rng.integers(1, 5))):
        tokens.insert(int(rng.integers(len(tokens) + 1)), words[int(rng.integers(len(words)))])
    return lead + " ".join(tokens)


def shuffle(response: str, rng: np.random.Generator, words: Sequence[str] = ()) -> str:
    """The same words in another order."""
    lead, tokens = _split(response)
    return lead + " ".join(tokens[int(i)] for i in rng.permutation(len(tokens)))


def truncate(response: str, rng: np.random.Generator, words: Sequence[str] = ()) -> str:
    """Broken off: the first words of it, a quarter to three quarters of them, and at least one."""
    lead, tokens = _split(response)
    low, high = -(-len(tokens) // 4), max(1, 3 * len(tokens) // 4)
    return lead + " ".join(tokens[: int(rng.integers(low, high + 1))]) if len(tokens) > 1 else response


def favoured_words(preferences: Sequence[Preference], count: int, *, at_least: int = 5) -> list[str]:
    """The words that annotators seem to pay for: those most typical of chosen responses as against rejected ones.

    By the log-odds ratio log(n⁺ + ½)/(N⁺ − n⁺ + ½) − log(n⁻ + ½)/(N⁻ − n⁻ + ½), with n± the number of chosen (rejected)
    responses a word is in, N the number of pairs (Haldane's correction, so that an absent word has a finite one).

    Args:
        preferences: the comparisons.
        count: how many words.
        at_least: responses that a word must be in.
    """
    chosen = Counter(word for p in preferences for word in set(p.chosen.split()))
    rejected = Counter(word for p in preferences for word in set(p.rejected.split()))
    n = len(preferences)

    def odds(k: int) -> float:
        return math.log((k + 0.5) / (n - k + 0.5))

    known = [word for word in chosen | rejected if chosen[word] + rejected[word] >= at_least]
    return sorted(known, key=lambda word: (odds(rejected[word]) - odds(chosen[word]), word))[:count]


def common_words(responses: Sequence[str], count: int) -> list[str]:
    """The words that are in most responses: filler, wherever they are put."""
    found = Counter(word for response in responses for word in set(response.split()))
    return sorted(found, key=lambda word: (-found[word], word))[:count]


@dataclass(frozen=True)
class Suspect:
    """A response that a reward model may overrate, beside a normal one to the same prompt."""

    pair: CandidatePair
    """(suspect, normal)."""
    kind: str
    """How the suspect came about."""
    gap: float
    """Its score less that of the normal one."""


def choose_overrated(suspects: Sequence[Suspect], count: int, *, per_prompt: int = 1) -> list[Suspect]:
    """The most overrated ones, kinds in turn, so that one trick that works does not hide the others.

    Only suspects whose score is no lower than that of the normal response are taken: of these r_φ says that they are as
    good or better. Kinds that run out leave their turns to the rest.

    Args:
        suspects: what was found, in any order.
        count: how many at most.
        per_prompt: at most so many of a kind to one prompt.
    """
    queues: dict[str, list[Suspect]] = {}
    for suspect in sorted(suspects, key=lambda s: (-s.gap, s.pair.first.prompt, s.pair.first.response)):
        if suspect.gap >= 0:
            queues.setdefault(suspect.kind, []).append(suspect)
    chosen: list[Suspect] = []
    used: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, str]] = set()
    while len(chosen) < count and queues:
        for kind in sorted(queues):
            picked = _next(queues[kind], used, seen, per_prompt)
            if picked is None:
                del queues[kind]
            elif len(chosen) < count:
                chosen.append(picked)
    return chosen


def edited(base: Candidate, name: str, edit: Edit, rng: np.random.Generator, words: Sequence[str]) -> Candidate:
    """The candidate with an edit, which its source names."""
    return Candidate(base.prompt, edit(base.response, rng, words), f"{name} of {base.source}", base.temperature)


def _next(
    queue: list[Suspect], used: Counter[tuple[str, str]], seen: set[tuple[str, str]], per_prompt: int
) -> Suspect | None:
    """The next of a kind that may be taken; taken out of the queue with those before it."""
    while queue:
        suspect = queue.pop(0)
        prompt, response = suspect.pair.first.prompt, suspect.pair.first.response
        if used[suspect.kind, prompt] < per_prompt and (prompt, response) not in seen:
            used[suspect.kind, prompt] += 1
            seen.add((prompt, response))
            return suspect
    return None


def _split(response: str) -> tuple[str, list[str]]:
    """The blanks at the beginning, and the words."""
    bare = response.lstrip()
    return response[: len(response) - len(bare)], bare.split()
