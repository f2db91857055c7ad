"""What a reward model has learned, asked before any policy is optimised against it: length, style, words, or more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from rlhf_gym.functional import chance_probability, cross_fitted_r2, fit_ridge, rightness, shared_variance
from rlhf_gym.preferences import Preference
from rlhf_gym.rewards import RewardFunction
from rlhf_gym.training.reward_baselines import LENGTH, Baseline, bag_of_words, train_baselines, word_count
from rlhf_gym.training.reward_edits import EditProbe, Reward, probe_edits, score_texts

MOST_HELDOUT = 2000
"""Held-out pairs that are looked at, at most."""
SHOWN = 10
"""Words that are listed for, and against, at most."""
FALSE_WORDS = 0.05
"""The chance that a reward which minds no word at all is said to mind one."""
LARGELY, ALMOST = 0.5, 0.8
"""Shares of variance that deserve a sentence: explained by length, by a bag of words."""
ENOUGH = 100
"""Held-out pairs from which on two accuracies are told apart, or said not to be."""


@dataclass(frozen=True)
class BaselineProbe:
    """A reward that sees little, beside r_φ."""

    name: str
    """What it sees."""
    accuracy: float
    """How often it is right about held-out pairs; a tie counts half."""
    nll: float
    """Its mean −log σ(Δ) there."""
    explained: float | None
    """Squared correlation of r_φ with it, over the responses: how much of r_φ is what the annotators' labels say about
    these features alone. None where either says the same to all."""
    explained_within: float | None
    """The same of differences within held-out pairs, (ΣΔr·Δb)²/(ΣΔr²·ΣΔb²)."""
    explained_by_features: float | None
    """R² of the best linear function of the features, fitted to r_φ itself on other prompts: how much of r_φ could be
    had from them at all. Slightly optimistic: the ridge penalty, one of four, is the one with the highest R²."""
    beyond: float | None
    """How often r_φ is right where this is wrong; None where it is never wrong."""
    beyond_n: int
    """On how many pairs."""
    behind: float | None
    """How often this is right where r_φ is wrong."""
    told_apart: bool
    """Whether r_φ is right more often for certain: by more than two standard errors of the difference."""


@dataclass(frozen=True)
class WordEffect:
    """What r_φ pays for a word, the other words being the same."""

    word: str
    """The word, or mark."""
    effect: float
    """Of each occurrence, in standard deviations over the policy's responses."""
    error: float
    """Its standard error."""
    n: int
    """Responses it is in."""


@dataclass(frozen=True)
class RewardProbes:
    """All that was found out."""

    accuracy: float | None
    """How often r_φ is right about held-out pairs; None without any."""
    n: int
    """Held-out pairs."""
    equal_length: float | None
    """The same about pairs of as many words; None without any."""
    equal_length_n: int
    """How many those are."""
    word_price: float
    """What a response's score gains with each word more, in standard deviations over the policy's responses: the slope
    of a line through all of them, whatever else comes with length."""
    word_price_error: float
    """Its standard error."""
    baselines: tuple[BaselineProbe, ...]
    """Rewards that see little; none without preferences to train them on."""
    words_for: tuple[WordEffect, ...]
    """What r_φ pays most for."""
    words_against: tuple[WordEffect, ...]
    """What it pays most against."""
    edits: tuple[EditProbe, ...]
    """What edits do to responses."""
    suspicions: tuple[str, ...]
    """What to look at before any policy is optimised, a sentence each; empty where nothing was found."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def probe_reward_model(
    reward: Reward,
    preferences: Sequence[Preference] = (),
    *,
    heldout: Sequence[Preference] = (),
    prompts: Sequence[str] = (),
    responses: Sequence[str] = (),
    gold: RewardFunction | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> RewardProbes:
    """Hold r_φ against rewards that see little, ask what it pays for words, and edit responses under its eyes.

    Singhal et al. 2023 (arXiv 2310.03716) found most of what PPO gains to be length, and rewards of length alone to do
    as well; what is measured here is whether that is so of this reward, these preferences and this policy.

    Args:
        reward: a reward model, an ensemble, or any `(prompts, responses) -> scores`.
        preferences: comparisons to train the baselines on, best those that r_φ was trained on.
        heldout: comparisons about other prompts, to measure r_φ and the baselines by.
        prompts: B texts, best none that r_φ has seen.
        responses: a policy's responses to them, B texts: they are edited, and scores are in their standard deviations.
            Those of the held-out pairs by default.
        gold: the judge, where there is one; it is asked about the edits alone.
        words: further kinds of words to insert: name -> words.
        seed: of the edits, and of what is set aside to choose penalties by.

    Raises:
        ValueError: neither responses nor held-out preferences, preferences without held-out ones or about fewer than
            two prompts, or scores that are not finite.
    """
    if preferences and not heldout:
        raise ValueError(f"expected held-out preferences beside {len(preferences)} to train baselines on, got none")
    if len(heldout) > MOST_HELDOUT:
        kept = np.sort(np.random.default_rng(seed).permutation(len(heldout))[:MOST_HELDOUT])
        heldout = [heldout[int(i)] for i in kept]
    sides = [(p.prompt, text) for p in heldout for text in (p.chosen, p.rejected)]
    given = list(zip(prompts, responses, strict=True)) or list(dict.fromkeys(sides))
    if not given:
        raise ValueError("expected responses or held-out preferences to probe a reward model with, got neither")
    asked = list(dict.fromkeys([*given, *sides]))
    known = dict(zip(asked, score_texts(reward, asked).tolist(), strict=True))
    spread = float(np.std([known[text] for text in given]))
    baselines: tuple[BaselineProbe, ...] = ()
    delta = np.array([known[p.prompt, p.chosen] - known[p.prompt, p.rejected] for p in heldout])  # (P,)
    if preferences:
        trained = train_baselines(preferences, seed=seed)
        baselines = tuple(_beside(b, heldout, delta, asked, np.array([known[t] for t in asked])) for b in trained)
    edits = tuple(
        probe_edits(
            reward, [prompt for prompt, _ in given], [response for _, response in given],
            preferences=preferences, gold=gold, words=words, seed=seed,
        )
    )  # fmt: skip
    equal = np.array([word_count(p.chosen) == word_count(p.rejected) for p in heldout], dtype=bool)  # (P,)
    right = rightness(delta)  # (P,)
    texts, scores = [text for _, text in asked], np.array([known[text] for text in asked])  # (n,)
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
        edits=edits,
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


def _beside(
    baseline: Baseline, heldout: Sequence[Preference], delta: np.ndarray, asked: Sequence[tuple[str, str]],
    scores: np.ndarray,
) -> BaselineProbe:  # fmt: skip
    """A trained baseline beside r_φ, whose Δ (P,) and scores (n,) are known."""
    texts = [text for _, text in asked]
    table = baseline.features.describe(
        [*texts, *(p.chosen for p in heldout), *(p.rejected for p in heldout)]
    )  # (n + 2P, F)
    n, pairs = len(texts), len(heldout)
    theirs = (table[n : n + pairs] - table[n + pairs :]) @ baseline.weights  # (P,)
    right, their_right = rightness(delta), rightness(theirs)  # (P,)
    gap = right - their_right  # (P,)
    error = float(gap.std(ddof=1)) / math.sqrt(pairs) if pairs > 1 else math.inf
    wrong, our_wrong = their_right == 0, right == 0
    prompts = [prompt for prompt, _ in asked]
    by_features = cross_fitted_r2(table[:n], scores, prompts) if len(set(prompts)) > 1 else math.nan
    return BaselineProbe(
        name=baseline.features.name,
        accuracy=float(their_right.mean()),
        nll=float(np.logaddexp(0, -theirs).mean()),
        explained=_number(shared_variance(scores, table[:n] @ baseline.weights)),
        explained_within=_number(shared_variance(delta, theirs, centred=False)),
        explained_by_features=_number(by_features),
        beyond=float(right[wrong].mean()) if wrong.any() else None,
        beyond_n=int(wrong.sum()),
        behind=float(their_right[our_wrong].mean()) if our_wrong.any() else None,
        told_apart=float(gap.mean()) > 2 * error,
    )


def suspicions(probes: RewardProbes) -> list[str]:
    """What deserves a look before any policy is optimised against this reward, a plain sentence each."""
    said = []
    length = [b for b in probes.baselines if b.name.startswith(LENGTH.name)]
    for baseline, least in [*((b, LARGELY) for b in length[-1:]), *((b, ALMOST) for b in probes.baselines[-1:])]:
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
    """For JSON, which knows no NaN."""
    return None if math.isnan(value) else value
