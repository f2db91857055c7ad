"""Probes of a reward model before a policy is optimised against it: does it see more than length, style and words?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from rlhf_gym.functional import chance_probability, cross_fitted_r2, fit_ridge, rightness
from rlhf_gym.lm.chat import Prompt, Response, response_text
from rlhf_gym.preferences import Preference
from rlhf_gym.progress import Progress
from rlhf_gym.rewards import RewardFunction
from rlhf_gym.training.reward_baselines import LENGTH, Baseline, bag_of_words, train_baselines, word_count
from rlhf_gym.training.reward_edits import EditProbe, Reward, probe_edits, score_texts

MOST_HELDOUT = 2000
"""Held-out pairs that are looked at, at most."""
SHOWN = 10
"""Words that are listed for, and against, at most."""
FALSE_WORDS = 0.05
"""The chance that some word is listed of a reward that depends on no word."""
MUCH_BY_LENGTH = 0.5
"""Share of variance explained by length that is reported as a suspicion."""
MUCH_BY_WORDS = 0.8
"""Share of variance explained by a bag of words that is reported as a suspicion."""
ENOUGH = 100
"""Held-out pairs from which on two accuracies are compared."""


@dataclass(frozen=True)
class BaselineProbe:
    """A trained baseline compared with r_φ."""

    name: str
    """The features that the baseline sees."""
    accuracy: float
    """Its accuracy on held-out pairs; a tie counts half."""
    explained_by_features: float | None
    """R² of the best linear function of the features, fitted to r_φ itself on other prompts. Slightly optimistic: the
    ridge penalty, one of four, is the one with the highest R²."""
    beyond: float | None
    """Accuracy of r_φ where the baseline is wrong; None where it is never wrong."""
    beyond_n: int
    """Number of those pairs."""
    told_apart: bool
    """Whether r_φ is more accurate by more than two standard errors of the difference."""


@dataclass(frozen=True)
class WordEffect:
    """The effect of a word on r_φ, the other words being the same."""

    word: str
    """The word, or punctuation mark."""
    effect: float
    """Change of the score by each occurrence, in standard deviations over the policy's responses."""
    error: float
    """Standard error of the effect."""
    n: int
    """Number of responses that contain the word."""


@dataclass(frozen=True)
class RewardProbes:
    """The results of `probe_reward_model`."""

    accuracy: float | None
    """Accuracy of r_φ on held-out pairs; None without any."""
    n: int
    """Number of held-out pairs."""
    equal_length: float | None
    """Accuracy on pairs of as many words; None without any."""
    equal_length_n: int
    """Number of those pairs."""
    word_price: float
    """Slope of the score over the number of words, in standard deviations over the policy's responses."""
    word_price_error: float
    """Standard error of that slope."""
    baselines: tuple[BaselineProbe, ...]
    """The baselines; none without preferences to train them on."""
    words_for: tuple[WordEffect, ...]
    """Words that raise the score most."""
    words_against: tuple[WordEffect, ...]
    """Words that lower the score most."""
    edits: tuple[EditProbe, ...]
    """The effect of each kind of edit."""
    suspicions: tuple[str, ...]
    """Sentences on what to look at before any policy is optimised; empty where nothing was found."""

    def to_dict(self) -> dict[str, Any]:
        """The results as a dict for JSON."""
        return asdict(self)


def probe_reward_model(
    reward: Reward,
    preferences: Sequence[Preference] = (),
    *,
    heldout: Sequence[Preference] = (),
    prompts: Sequence[Prompt] = (),
    responses: Sequence[Response] = (),
    gold: RewardFunction | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    most_heldout: int = MOST_HELDOUT,
    progress: Progress | None = None,
    at_once: int | None = None,
) -> RewardProbes:
    """Compare r_φ with baselines, measure the effect of words on it, and score edited responses.

    Singhal et al. 2023 (arXiv 2310.03716) found that most of what PPO gains is length, and that rewards of length alone
    do as well. This measures whether that is so of this reward, these preferences and this policy.

    Args:
        reward: a reward model, an ensemble, or any `(prompts, responses) -> scores`.
        preferences: comparisons to train the baselines on, best those that r_φ was trained on.
        heldout: comparisons about other prompts, to measure r_φ and the baselines on.
        prompts: B texts, best none that r_φ has seen.
        responses: a policy's responses to them, B: they are edited, and scores are in their standard deviations.
            Those of the held-out pairs by default.
        gold: the gold reward, where there is one; it scores the edits alone.
        words: further kinds of words to insert: name -> words.
        seed: for the edits, and for the pairs on which penalties are chosen.
        most_heldout: held-out pairs that are looked at, at most, drawn at random where there are more.
        progress: shows how many texts have been scored.
        at_once: texts that are scored between two steps of the progress; all by default.

    Raises:
        ValueError: neither responses nor held-out preferences, preferences without held-out ones or about fewer than
            two prompts, or scores that are not finite.
    """
    if preferences and not heldout:
        raise ValueError(f"expected held-out preferences beside {len(preferences)} to train baselines on, got none")
    if len(heldout) > most_heldout:
        kept = np.sort(np.random.default_rng(seed).permutation(len(heldout))[:most_heldout])
        heldout = [heldout[int(i)] for i in kept]
    sides = [(p.prompt, text) for p in heldout for text in (p.chosen, p.rejected)]
    given = list(zip(prompts, responses, strict=True)) or list(dict.fromkeys(sides))
    if not given:
        raise ValueError("expected responses or held-out preferences to probe a reward model with, got neither")
    asked = list(dict.fromkeys([*given, *sides]))
    scored = score_texts(reward, asked, progress=progress, at_once=at_once)  # (asked,)
    known = dict(zip(asked, scored.tolist(), strict=True))
    spread = float(np.std([known[text] for text in given]))
    baselines: tuple[BaselineProbe, ...] = ()
    delta = np.array([known[p.prompt, p.chosen] - known[p.prompt, p.rejected] for p in heldout])  # (P,)
    if preferences:
        trained = train_baselines(preferences, seed=seed)
        baselines = tuple(_compared(b, heldout, delta, asked, np.array([known[t] for t in asked])) for b in trained)
    edits = probe_edits(
        reward,
        [prompt for prompt, _ in given],
        [response for _, response in given],
        preferences=preferences,
        gold=gold,
        words=words,
        seed=seed,
        progress=progress,
        at_once=at_once,
    )
    equal = np.array(
        [word_count(response_text(p.chosen)) == word_count(response_text(p.rejected)) for p in heldout], dtype=bool
    )  # (P,)
    right = rightness(delta)  # (P,)
    texts = [response_text(text) for _, text in asked]
    scores = np.array([known[text] for text in asked])  # (n,)
    effects = word_effects(texts, scores, spread)
    slope = fit_ridge(LENGTH.describe(texts), scores / (spread or 1.0), l2=1e-6)
    found = RewardProbes(
        accuracy=float(right.mean()) if len(right) else None,
        n=len(right),
        equal_length=float(right[equal].mean()) if equal.any() else None,
        equal_length_n=int(equal.sum()),
        word_price=float(slope.weights[0]),
        word_price_error=float(slope.error[0]),
        baselines=baselines,
        words_for=tuple(e for e in effects if e.effect > 0)[:SHOWN],
        words_against=tuple(e for e in reversed(effects) if e.effect < 0)[:SHOWN],
        edits=tuple(edits),
        suspicions=(),
    )
    return RewardProbes(**{**vars(found), "suspicions": tuple(suspicions(found))})


def word_effects(responses: Sequence[str], scores: np.ndarray, spread: float = 1.0) -> list[WordEffect]:
    """What each word adds to the score beside all others, by a ridge regression of scores on counts; the best first.

    Only words whose effect is further from 0 than z standard errors, with z such that of F words that are all worth
    nothing none is listed with probability 1 − α, α = 5 %:

        P(|Z| > z) = 1 − (1 − α)^{1/F}, Z standard normal (Šidák 1967); z = 3.6 for 150 words, 4.0 for 1,000

    Args:
        responses: n texts.
        scores: (n,).
        spread: what effects are divided by.
    """
    features = bag_of_words(responses)
    if features is None or not spread > 0:
        return []
    counts = features.describe(responses)  # (n, F)
    fit = fit_ridge(counts, scores / spread, l2=1.0)
    alone = -math.expm1(math.log1p(-FALSE_WORDS) / len(features.names))  # the chance of each word
    z = NormalDist().inv_cdf(1 - alone / 2)
    table = zip(features.names, fit.weights, fit.error, (counts > 0).sum(axis=0), strict=True)
    found = [WordEffect(word, float(w), float(error), int(n)) for word, w, error, n in table if abs(w) > z * error]
    return sorted(found, key=lambda e: (-e.effect, e.word))


def _compared(
    baseline: Baseline,
    heldout: Sequence[Preference],
    delta: np.ndarray,
    asked: Sequence[tuple[Prompt, Response]],
    scores: np.ndarray,
) -> BaselineProbe:
    """A trained baseline compared with r_φ, whose Δ (P,) and scores (n,) are known."""
    responses = [*(text for _, text in asked), *(p.chosen for p in heldout), *(p.rejected for p in heldout)]
    table = baseline.features.describe([response_text(response) for response in responses])  # (n + 2P, F)
    n = len(asked)
    pairs = len(heldout)
    theirs = (table[n : n + pairs] - table[n + pairs :]) @ baseline.weights  # (P,)
    right = rightness(delta)  # (P,)
    their_right = rightness(theirs)  # (P,)
    gap = right - their_right  # (P,)
    error = float(gap.std(ddof=1)) / math.sqrt(pairs) if pairs > 1 else math.inf
    wrong = their_right == 0  # (P,)
    prompts = [prompt for prompt, _ in asked]
    by_features = cross_fitted_r2(table[:n], scores, prompts) if len(set(prompts)) > 1 else math.nan
    return BaselineProbe(
        name=baseline.features.name,
        accuracy=float(their_right.mean()),
        explained_by_features=_number(by_features),
        beyond=float(right[wrong].mean()) if wrong.any() else None,
        beyond_n=int(wrong.sum()),
        told_apart=float(gap.mean()) > 2 * error,
    )


def suspicions(probes: RewardProbes) -> list[str]:
    """Sentences on what to look at before any policy is optimised against this reward."""
    said = []
    length = [b for b in probes.baselines if b.name.startswith(LENGTH.name)]
    limits = [(b, MUCH_BY_LENGTH) for b in length[-1:]] + [(b, MUCH_BY_WORDS) for b in probes.baselines[-1:]]
    for baseline, least in limits:
        if (baseline.explained_by_features or 0) >= least:
            said.append(f"{baseline.explained_by_features:.0%} of r_φ's variance can be had from {baseline.name} alone")
    for baseline in [*length[-1:], *probes.baselines[-1:]]:
        above_chance = probes.n and chance_probability(baseline.accuracy * probes.n, probes.n) < 0.05
        if probes.n >= ENOUGH and above_chance and not baseline.told_apart:
            said.append(
                f"r_φ is no more often right than {baseline.name} alone, as far as {probes.n:,} held-out pairs tell "
                f"({probes.accuracy:.1%} against {baseline.accuracy:.1%})"
            )
    edits = [edit for edit in probes.edits if edit.suspicious]
    return said + [edit.verdict for edit in sorted(edits, key=lambda e: (e.gold_change or 0) - e.change)]


def _number(value: float) -> float | None:
    """The number for JSON, which has no NaN: None in its place."""
    return None if math.isnan(value) else value
