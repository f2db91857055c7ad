"""Adversarial pairs: edits that make a response worse and that a reward model may score higher all the same.

Each edit is (response, rng, words) -> response; the same generator state gives the same text. Words are separated by
blanks. Blanks at the beginning, which byte-level tokenizers need, stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf_gym.lm.chat import Prompt, Response, prompt_key, response_text
from rlhf_gym.preferences.records import Candidate, CandidatePair, Preference

Edit = Callable[[str, np.random.Generator, Sequence[str]], str]
"""(response, rng, words to insert) -> the edited response. Edits that insert nothing ignore the words."""


def repeat(response: str, rng: np.random.Generator, words: Sequence[str] = ()) -> str:
    """Repeat one to six words once or twice, right after themselves."""
    lead, tokens = _split(response)
    if not tokens:
        return response
    length = int(rng.integers(1, min(6, len(tokens)) + 1))
    start = int(rng.integers(len(tokens) - length + 1))
    stretch = tokens[start : start + length] * int(rng.integers(1, 3))
    return lead + " ".join([*tokens[: start + length], *stretch, *tokens[start + length :]])


def insert(response: str, rng: np.random.Generator, words: Sequence[str]) -> str:
    """Insert one to four of the words, each at a random place. Words of praise make flattery, filler makes padding.

    Raises:
        ValueError: there are no words to insert.
    """
    if not words:
        raise ValueError("expected words to insert, got none")
    lead, tokens = _split(response)
    for _ in range(int(rng.integers(1, 5))):
        tokens.insert(int(rng.integers(len(tokens) + 1)), words[int(rng.integers(len(words)))])
    return lead + " ".join(tokens)


def shuffle(response: str, rng: np.random.Generator, words: Sequence[str] = ()) -> str:
    """Put the words into a random order."""
    lead, tokens = _split(response)
    return lead + " ".join(tokens[int(i)] for i in rng.permutation(len(tokens)))


def truncate(response: str, rng: np.random.Generator, words: Sequence[str] = ()) -> str:
    """Keep the first quarter to three quarters of the words, and at least one."""
    lead, tokens = _split(response)
    low = -(-len(tokens) // 4)
    high = max(1, 3 * len(tokens) // 4)
    return lead + " ".join(tokens[: int(rng.integers(low, high + 1))]) if len(tokens) > 1 else response


def favoured_words(preferences: Sequence[Preference], count: int, *, at_least: int = 5) -> list[str]:
    """The words that are most typical of chosen responses as against rejected ones.

    They are sorted by the log-odds ratio log((n⁺ + ½)/(N − n⁺ + ½)) − log((n⁻ + ½)/(N − n⁻ + ½)). n± is the number of
    chosen (rejected) responses that a word is in, and N the number of pairs. Haldane's ½ keeps the ratio finite.

    Args:
        preferences: the comparisons.
        count: how many words.
        at_least: the fewest responses that a word must be in.
    """
    chosen = Counter(word for p in preferences for word in set(response_text(p.chosen).split()))
    rejected = Counter(word for p in preferences for word in set(response_text(p.rejected).split()))
    n = len(preferences)

    def odds(k: int) -> float:
        return math.log((k + 0.5) / (n - k + 0.5))

    known = [word for word in chosen | rejected if chosen[word] + rejected[word] >= at_least]
    return sorted(known, key=lambda word: (odds(rejected[word]) - odds(chosen[word]), word))[:count]


def common_words(responses: Sequence[Response], count: int) -> list[str]:
    """The words that are in most responses; they are filler wherever they are put."""
    found = Counter(word for response in responses for word in set(response_text(response).split()))
    return sorted(found, key=lambda word: (-found[word], word))[:count]


@dataclass(frozen=True)
class AdversarialPair:
    """A response that a reward model may overrate, beside a normal one to the same prompt."""

    pair: CandidatePair
    """The overrated response, then the normal one."""
    kind: str
    """How the overrated response came about."""
    gap: float
    """The score of the overrated response less that of the normal one."""


def choose_overrated(pairs: Sequence[AdversarialPair], count: int) -> list[AdversarialPair]:
    """The pairs with the largest gaps ≥ 0, kinds in turn, so that one kind does not crowd out the others.

    A prompt has at most one pair of each kind, and a response is in at most one pair. Kinds that run out leave their
    turns to the rest.

    Args:
        pairs: what was found, in any order.
        count: the most pairs that are chosen.
    """
    ordered = sorted(pairs, key=lambda p: (-p.gap, prompt_key(p.pair.first.prompt), prompt_key(p.pair.first.response)))
    queues = {kind: iter([p for p in ordered if p.kind == kind and p.gap >= 0]) for kind in {p.kind for p in pairs}}
    chosen: list[AdversarialPair] = []
    prompts: set[tuple[str, Prompt]] = set()
    texts: set[tuple[Prompt, Response]] = set()
    while len(chosen) < count and queues:
        for kind in sorted(queues):
            for found in queues[kind]:
                prompt = found.pair.first.prompt
                text = (prompt, found.pair.first.response)
                if (kind, prompt) not in prompts and text not in texts:
                    prompts.add((kind, prompt))
                    texts.add(text)
                    chosen.append(found)
                    break
            else:
                del queues[kind]
    return chosen[:count]


def edited(base: Candidate, name: str, edit: Edit, rng: np.random.Generator, words: Sequence[str]) -> Candidate:
    """The candidate after an edit. Its source names the edit."""
    response = edit_answer(base.response, edit, rng, words)
    return Candidate(base.prompt, response, f"{name} of {base.source}", base.temperature)


def edit_answer(response: Response, edit: Edit, rng: np.random.Generator, words: Sequence[str]) -> Response:
    """The response after an edit, which is made to the last answer of a dialogue."""
    if isinstance(response, str):
        return edit(response, rng, words)
    *before, last = response
    return (*before, replace(last, content=edit(last.content, rng, words)))


def _split(response: str) -> tuple[str, list[str]]:
    """The blanks at the beginning, and the words."""
    bare = response.lstrip()
    return response[: len(response) - len(bare)], bare.split()
