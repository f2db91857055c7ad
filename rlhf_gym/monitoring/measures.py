"""What the monitor says of a rollout's responses: one number a quantity, with the standard error of each mean.

Everything here is a function of a `Watched`; where it comes from (our agents' buffers, a stock agent's environment) is
`rlhf_gym.monitoring.watched`'s business. Each name is defined in docs/metrics.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_gym.envs.episode import Episode
from rlhf_gym.functional.text_statistics import (
    TokenShare,
    distinct_n,
    longest_repeat,
    repetition,
    spearman,
    token_shares,
)

REFUSAL = (
    r"(?i)\b(I('m|’m| am) (sorry|unable|not able)|I (can('t|not|’t)|won('t|’t)|will not)\b|"
    r"as an? (AI|(large )?language model))"
)
"""A pattern for English refusals, for `RLHFMonitor(patterns={"refusal": REFUSAL})`. Look at what it finds in yours."""


class Watched(NamedTuple):
    """A rollout's episodes, E of them, and what is known of each."""

    episodes: Sequence[Episode]
    """In the order they were started."""
    scores: np.ndarray
    """What r_φ gave, shaped, (E,)."""
    log_probs: Sequence[np.ndarray] | None
    """log π of each one's actions, (T_e,) each; None where the policy was not attached."""
    ref_log_probs: Sequence[np.ndarray] | None
    """log π_ref of the same, the π_ref that learning began with; None without a reference."""
    member_scores: np.ndarray | None
    """The scores that each of k members gives them, (k, E); None where they were not asked."""
    explained_variance: float | None
    """Of the critic's values, by the returns; None without a critic."""


class Figure(NamedTuple):
    """A measured quantity."""

    value: float
    """Its value."""
    error: float = 0.0
    """Its standard error, over episodes; 0 where it is no mean over them."""


def measure(seen: Watched, responses: Sequence[str], patterns: Mapping[str, re.Pattern[str]]) -> dict[str, Figure]:
    """All that can be said of a rollout; what is not defined there (a correlation with a constant) is left out.

    Args:
        seen: the rollout.
        responses: the episodes' responses as texts, special tokens left out, E of them.
        patterns: regular expressions by name: in what share of the responses does each occur?
    """
    lengths = np.array([e.response_length for e in seen.episodes])  # (E,)
    found = {
        "score": mean(seen.scores),
        "score_std": Figure(float(seen.scores.std())),
        "response_length": mean(lengths),
        "missing_eos": share([e.finish_reason == "length" for e in seen.episodes]),
        "score_length_correlation": _correlation(seen.scores, lengths),
        **_texture([e.response_ids.tolist() for e in seen.episodes]),
        **{f"pattern/{name}": share([bool(p.search(text)) for text in responses]) for name, p in patterns.items()},
    }
    if seen.log_probs is not None:
        found["entropy"] = ratio(-_sums(seen.log_probs), lengths)
    if seen.ref_log_probs is not None:
        surprise = ratio(-_sums(seen.ref_log_probs), lengths)
        value = perplexity(surprise.value)
        found["ref_perplexity"] = Figure(value, value * surprise.error)
    if seen.log_probs is not None and seen.ref_log_probs is not None:
        kl = _sums(seen.log_probs) - _sums(seen.ref_log_probs)  # (E,)
        found["kl"], found["kl_per_token"] = mean(kl), ratio(kl, lengths)
    if seen.member_scores is not None and len(seen.member_scores) > 1:
        found["disagreement"] = mean(seen.member_scores.std(axis=0))
    if seen.explained_variance is not None:
        found["explained_variance"] = Figure(seen.explained_variance)
    return {name: figure for name, figure in found.items() if math.isfinite(figure.value)}


def kl_tokens(seen: Watched) -> list[TokenShare]:
    """Which tokens the rollout's Σ log π − log π_ref comes from, the largest part first; none without a KL."""
    if seen.log_probs is None or seen.ref_log_probs is None:
        return []
    ratios = [own - ref for own, ref in zip(seen.log_probs, seen.ref_log_probs, strict=True)]
    return token_shares(np.concatenate([e.response_ids for e in seen.episodes]), np.concatenate(ratios))


def perplexity(surprise: float) -> float:
    """exp of the mean −log p of a token, in nats; inf where that is more than a float holds (beyond 709 nats)."""
    try:
        return math.exp(surprise)
    except OverflowError:
        return math.inf


def mean(values: np.ndarray | Sequence[float]) -> Figure:
    """The mean of (E,) values."""
    x = np.asarray(values, dtype=np.float64)  # (E,)
    return Figure(float(x.mean()), float(x.std() / math.sqrt(len(x))))


def share(hits: Sequence[bool]) -> Figure:
    """The share of hits; its error is that of the share with two hits and two misses more (Agresti and Coull 1998), so
    that a share of 0 is not taken for certain."""
    n, k = len(hits), sum(hits)
    middle = (k + 2) / (n + 4)
    return Figure(k / n, math.sqrt(middle * (1 - middle) / (n + 4)))


def ratio(sums: np.ndarray, counts: np.ndarray) -> Figure:
    """Σ sums / Σ counts over episodes, (E,) each: a mean over tokens. Its error takes episodes as the sample (the
    linearised variance of a ratio): the tokens of one response are not independent."""
    value = float(sums.sum() / counts.sum())
    return Figure(value, float(np.sqrt(((sums - value * counts) ** 2).sum()) / counts.sum()))


def _texture(responses: Sequence[Sequence[int]]) -> dict[str, Figure]:
    """How much the responses repeat themselves and each other, from their tokens."""
    return {
        "distinct_1": Figure(distinct_n(responses, 1)),
        "distinct_2": Figure(distinct_n(responses, 2)),
        "distinct_responses": Figure(len({tuple(r) for r in responses}) / len(responses)),
        "repetition": mean([repetition(r, 2) for r in responses]),
        "longest_repeat": mean([longest_repeat(r) for r in responses]),
    }


def _correlation(scores: np.ndarray, lengths: np.ndarray) -> Figure:
    """Spearman's, with the error of a correlation of normals, (1 − r²)/√(E − 1)."""
    r = spearman(scores, lengths)
    return Figure(r, (1 - r * r) / math.sqrt(max(1, len(scores) - 1)))


def _sums(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of each row, (E,)."""
    return np.array([row.sum(dtype=np.float64) for row in rows])
