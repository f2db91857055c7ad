"""Baselines for a reward model: rewards that see only the length of a response, its style, or its words.

They are trained on the same preferences by the same loss as r_φ, and say how far one gets that way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rlhf_gym.functional import fit_preference_weights
from rlhf_gym.lm.chat import response_text
from rlhf_gym.preferences import Preference, split_by_prompt

L2S = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""The ridge penalties that cross-validation chooses from."""
MOST_PAIRS = 20_000
"""Pairs that a baseline is trained on at most: so many are enough for so few weights."""
MOST_WORDS = 1000
"""Words in the bag at most, the most common."""
LEAST_TEXTS = 5
"""Responses in which each word of the bag occurs at least."""
WORD = r"\w+(?:'\w+)?|[^\w\s]"
"""A word, or a punctuation mark."""

_PUNCTUATION = re.compile(r"[^\w\s]")
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


@dataclass(frozen=True)
class Features:
    """Numbers that describe a response, whatever its prompt."""

    name: str
    """The subject of the numbers, for reports."""
    names: tuple[str, ...]
    """The name of each feature, F of them."""
    describe: Callable[[Sequence[str]], np.ndarray]
    """Computes the features, (n, F), of n responses."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """A weighted sum of features, called like any reward: (prompts, responses) -> scores (B,)."""

    features: Features
    """The features that it sees."""
    weights: np.ndarray
    """What each feature adds to the score, (F,)."""
    l2: float
    """The penalty on the weights of features in units of their standard deviation, chosen on pairs aside."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """The scores of responses, (B,)."""
        return self.features.describe(responses) @ self.weights


def word_count(text: str) -> int:
    """Number of words of a text, separated by blanks."""
    return len(text.split())


def _length(texts: Sequence[str]) -> np.ndarray:
    return np.array([[word_count(text)] for text in texts], dtype=np.float64)  # (n, 1)


def _style(texts: Sequence[str]) -> np.ndarray:
    return np.array([_style_of(text) for text in texts], dtype=np.float64)  # (n, 12)


def _style_of(text: str) -> tuple[float, ...]:
    words = re.findall(WORD, text.lower())
    pairs = list(pairwise(words))
    n = max(1, len(words))
    letters = max(1, len(text))
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


LENGTH = Features("length", ("words",), _length)
CURVED_LENGTH = Features("length and its square", ("words", "words²"), lambda texts: _length(texts) ** [1, 2])
STYLE = Features(
    "style",
    (
        "words",
        "words²",
        "letters a word",
        "punctuation marks a word",
        "exclamation marks",
        "question marks",
        "share of repeated words",
        "share of repeated pairs of words",
        "share of capitals",
        "share of digits",
        "line breaks",
        "list items",
    ),
    _style,
)
"""How a text looks, its length included."""


def bag_of_words(responses: Sequence[str]) -> Features | None:
    """How often each word occurs that is in enough of these responses; None where no word is."""
    from sklearn.feature_extraction.text import CountVectorizer  # takes a second to import

    counter = CountVectorizer(token_pattern=WORD, min_df=LEAST_TEXTS, max_features=MOST_WORDS)
    try:
        counter.fit(sorted(set(responses)))
    except ValueError:  # there are too few texts, or no word is in enough of them
        return None
    names = tuple(counter.get_feature_names_out().tolist())
    return Features("a bag of words", names, lambda some: counter.transform(some).toarray().astype(np.float64))


def train_baselines(preferences: Sequence[Preference], *, seed: int = 0) -> list[Baseline]:
    """Baselines on length, length and its square, style and a bag of words, by the Bradley–Terry loss.

    The strength of the penalty is chosen on the pairs of a fifth of the prompts, then all pairs are fitted. Weights of
    records count as in the loss of r_φ. The same preferences and seed give the same baselines.

    Raises:
        ValueError: no preferences, or fewer than two prompts.
    """
    if not preferences:
        raise ValueError("expected preferences to train baselines on, got none")
    if len(preferences) > MOST_PAIRS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(preferences))[:MOST_PAIRS])
        preferences = [preferences[int(i)] for i in kept]
    words = bag_of_words([response_text(side) for p in preferences for side in (p.chosen, p.rejected)])
    kinds = [LENGTH, CURVED_LENGTH, STYLE] + ([] if words is None else [words])
    return [train_baseline(features, preferences, seed=seed) for features in kinds]


def train_baseline(features: Features, preferences: Sequence[Preference], *, seed: int = 0) -> Baseline:
    """A baseline on these features; see `train_baselines`."""
    _, aside = split_by_prompt(preferences, 0.2, seed=seed)
    prompts = {p.prompt for p in aside}
    measured = np.array([p.prompt in prompts for p in preferences])  # (P,)
    chosen = features.describe([response_text(p.chosen) for p in preferences])  # (P, F)
    rejected = features.describe([response_text(p.rejected) for p in preferences])  # (P, F)
    spread = np.concatenate([chosen, rejected]).std(axis=0)  # (F,)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)  # (F,)
    d = (chosen - rejected) * scale  # (P, F)
    omega = np.array([p.weight for p in preferences])  # (P,)
    losses = []
    for l2 in L2S:
        weights = fit_preference_weights(d[~measured], l2=l2, weight=omega[~measured])  # (F,)
        losses.append(float((omega * np.logaddexp(0, -d @ weights))[measured].sum()))
    l2 = L2S[int(np.argmin(losses))]
    return Baseline(features, fit_preference_weights(d, l2=l2, weight=omega) * scale, l2)
