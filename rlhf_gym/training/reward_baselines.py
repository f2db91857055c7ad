"""Rewards that see little: the length of a response, its style, its words without their order.

Trained on the same preferences by the same loss as r_φ, they say how far one gets that way: what r_φ is to know more
than.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rlhf_gym.functional import fit_preference_weights
from rlhf_gym.preferences import Preference, split_by_prompt

L2S = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""Penalties to choose from, the strongest first: each fit begins from the one before."""
MOST_PAIRS = 20_000
"""Pairs that a baseline is trained on at most: so many are enough for so few weights."""
MOST_WORDS, LEAST_TEXTS = 1000, 5
"""Words in the bag at most, the most common; each in so many responses at least."""

_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_PUNCTUATION, _ITEM = re.compile(r"[^\w\s]"), re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)

Describe = Callable[[str], Sequence[float]]
"""What a text is described by: one number a feature."""


@dataclass(frozen=True)
class Features:
    """Numbers that describe a response, whatever its prompt."""

    name: str
    """What they are about."""
    names: tuple[str, ...]
    """What each of them is, F of them."""
    describe: Describe
    """response -> F numbers."""

    def __call__(self, responses: Sequence[str]) -> np.ndarray:
        """Of each response, (n, F)."""
        known: dict[str, Sequence[float]] = {}
        for text in responses:
            if text not in known:
                known[text] = self.describe(text)
        return np.array([known[text] for text in responses], dtype=np.float64).reshape(-1, len(self.names))


@dataclass(frozen=True, eq=False)
class Baseline:
    """A weighted sum of features, called like any reward: (prompts, responses) -> scores (B,)."""

    features: Features
    """What it sees."""
    weights: np.ndarray
    """What each feature adds to the score, (F,)."""
    l2: float
    """The penalty on the weights of features in units of their standard deviation, chosen on pairs aside."""

    @property
    def name(self) -> str:
        """What it sees, in a word."""
        return self.features.name

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Scores (B,)."""
        return self.features(responses) @ self.weights


def word_count(text: str) -> int:
    """Words of a text: what stands between blanks."""
    return len(text.split())


def words_of(text: str) -> list[str]:
    """Words and marks of a text, small letters."""
    return _WORD.findall(text.lower())


LENGTH = Features("length", ("words",), lambda text: (word_count(text),))
CURVED_LENGTH = Features(
    "length and its square", ("words", "words²"), lambda text: (word_count(text), word_count(text) ** 2)
)


def _style(text: str) -> tuple[float, ...]:
    words = words_of(text)
    pairs = list(pairwise(words))
    n, letters = max(1, len(words)), max(1, len(text))
    return (
        word_count(text),
        word_count(text) ** 2,
        sum(map(len, words)) / n,
        len(_PUNCTUATION.findall(text)) / n,
        text.count("!"),
        text.count("?"),
        1 - len(set(words)) / n,
        1 - len(set(pairs)) / max(1, len(pairs)),
        sum(map(str.isupper, text)) / letters,
        sum(map(str.isdigit, text)) / letters,
        text.count("\n"),
        len(_ITEM.findall(text)),
    )


STYLE = Features(
    "style",
    (
        "words", "words²", "letters a word", "punctuation marks a word", "exclamation marks", "question marks",
        "share of repeated words", "share of repeated pairs of words", "share of capitals", "share of digits",
        "line breaks", "list items",
    ),
    _style,
)  # fmt: skip
"""What a text looks like: its length among the rest, since style without length is seldom what is meant."""


def bag_of_words(responses: Sequence[str]) -> Features:
    """How often each word occurs that is in enough of these responses. Their sum is about the length."""
    found = Counter(word for text in set(responses) for word in set(words_of(text)))
    kept = sorted((w for w, n in found.items() if n >= LEAST_TEXTS), key=lambda w: (-found[w], w))[:MOST_WORDS]
    names = tuple(sorted(kept))
    place = {word: i for i, word in enumerate(names)}

    def describe(text: str) -> list[float]:
        counts = [0.0] * len(names)
        for word in words_of(text):
            if word in place:
                counts[place[word]] += 1
        return counts

    return Features("a bag of words", names, describe)


def train_baselines(preferences: Sequence[Preference], *, seed: int = 0) -> list[Baseline]:
    """Length, length and its square, style, bag of words: each by the Bradley–Terry loss on these preferences.

    How strongly weights are held is decided on the pairs of a fifth of the prompts, then all pairs are fitted. Records'
    weights count as in the loss of r_φ. The same preferences and seed give the same baselines.

    Raises:
        ValueError: no preferences, or fewer than two prompts.
    """
    if not preferences:
        raise ValueError("expected preferences to train baselines on, got none")
    if len(preferences) > MOST_PAIRS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(preferences))[:MOST_PAIRS])
        preferences = [preferences[int(i)] for i in kept]
    words = bag_of_words([text for p in preferences for text in (p.chosen, p.rejected)])
    kinds = [LENGTH, CURVED_LENGTH, STYLE, *([words] if words.names else [])]
    return [train_baseline(features, preferences, seed=seed) for features in kinds]


def train_baseline(features: Features, preferences: Sequence[Preference], *, seed: int = 0) -> Baseline:
    """One of them; see `train_baselines`."""
    _, aside = split_by_prompt(preferences, 0.2, seed=seed)
    prompts = {p.prompt for p in aside}
    measured = np.array([p.prompt in prompts for p in preferences])  # (P,)
    chosen, rejected = (features([getter(p) for p in preferences]) for getter in (_chosen, _rejected))  # (P, F) each
    spread = np.concatenate([chosen, rejected]).std(axis=0)  # (F,)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)  # (F,)
    d = (chosen - rejected) * scale  # (P, F)
    omega = np.array([p.weight for p in preferences])  # (P,)
    losses, start = [], np.zeros(len(scale))
    for l2 in L2S:
        start = fit_preference_weights(d[~measured], l2=l2, weight=omega[~measured], start=start)
        losses.append(float((omega * np.logaddexp(0, -d @ start))[measured].sum()))
    l2 = L2S[int(np.argmin(losses))]
    return Baseline(features, fit_preference_weights(d, l2=l2, weight=omega) * scale, l2)


def _chosen(preference: Preference) -> str:
    return preference.chosen


def _rejected(preference: Preference) -> str:
    return preference.rejected
