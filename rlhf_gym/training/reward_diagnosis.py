"""Diagnosis of a reward model on held-out preferences, before a policy is optimised against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from rlhf_gym.functional import chance_probability, confidence, length_controlled_accuracy, reliability_curve
from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.preferences import Preference
from rlhf_gym.training.reward_evaluation import ScoredPairs

LENGTH_EDGES = (0, 2, 5, 10)
"""Upper ends of the buckets of length difference, in words."""
CHANCE = 0.05
"""A reward model is refused if a coin does as well with at least this probability."""
ENOUGH = 20
"""Pairs from which on that is asked; fewer cannot tell."""


@dataclass(frozen=True)
class Share:
    """The accuracy on some of the pairs."""

    name: str
    """A description of the pairs."""
    n: int
    """Number of pairs."""
    accuracy: float
    """Share of them with Δ > 0; Δ = 0 counts half."""


def diagnose_reward_model(pairs: ScoredPairs) -> dict[str, Any]:
    """The figures of the reward stage on held-out pairs beyond `RewardMetrics`, ready for JSON:

    - `chance`: the probability that a coin is right as often (one-sided binomial test).
    - `score_std`: standard deviation of the scores over the distinct responses, without normalisation.
    - `length_controlled`, `length_controlled_pairs`: accuracy where length tells nothing, None where no pairs allow it;
      see `rlhf_gym.functional.length_controlled_accuracy`.
    - `longer_chosen`: share of pairs of unequal length in which the annotators chose the longer response.
    - `reliability`: a record for each bin of confidence: low, high, n, confidence, accuracy.
    - `by_annotator`, `by_source`, `by_length`: the accuracy on parts of the pairs.
    """
    right = pairs.right  # (P,)
    longer = pairs.longer  # (P,)
    controlled = length_controlled_accuracy(right, longer, edges=LENGTH_EDGES)
    unequal = longer != 0
    curve = reliability_curve(confidence(pairs.delta), right)
    bins = zip(*(column.tolist() for column in curve), strict=True)
    return {
        "chance": chance_probability(float(right.sum()), len(right)),
        "score_std": float(pairs.scores.std()),
        "length_controlled": controlled.accuracy if controlled.used else None,
        "length_controlled_pairs": controlled.used,
        "longer_chosen": float((longer[unequal] > 0).mean()) if unequal.any() else None,
        "reliability": [
            {"low": low, "high": high, "n": n, "confidence": p, "accuracy": accuracy}
            for low, high, n, p, accuracy in bins
            if n
        ],
        "by_annotator": [asdict(share) for share in accuracy_by_name(pairs, lambda p: p.annotator or "unnamed")],
        "by_source": [asdict(share) for share in accuracy_by_name(pairs, source_name)],
        "by_length": [asdict(share) for share in accuracy_by_length(pairs)],
    }


def source_name(preference: Preference) -> str:
    """The writers of the two responses."""
    sources = sorted({preference.chosen_source or "unnamed", preference.rejected_source or "unnamed"})
    return " and ".join(sources)


def accuracy_by_name(pairs: ScoredPairs, name: Callable[[Preference], str]) -> list[Share]:
    """The accuracy on the pairs of each name, in the order of the names."""
    names = np.array([name(p) for p in pairs.preferences])  # (P,)
    return [_share(pairs.right, names == each, str(each)) for each in np.unique(names)]


def accuracy_by_length(pairs: ScoredPairs) -> list[Share]:
    """The accuracy by how many words the chosen response is the longer one; buckets without pairs are left out."""
    shares = []
    low = 1
    ranges = [(0, 0)]
    for high in LENGTH_EDGES[1:]:
        ranges.append((low, high))
        low = high + 1
    for first, last in [*((-b, -a) for a, b in ranges[:0:-1]), *ranges]:
        name = f"{first:+d} to {last:+d}" if first != last else f"{first:+d}" if first else "equal"
        shares.append(_share(pairs.right, (pairs.longer >= first) & (pairs.longer <= last), name))
    beyond = LENGTH_EDGES[-1]
    shares.insert(0, _share(pairs.right, pairs.longer < -beyond, f"below {-beyond}"))
    shares.append(_share(pairs.right, pairs.longer > beyond, f"above {beyond:+d}"))
    return [share for share in shares if share.n]


def reward_complaints(metrics: dict[str, Any]) -> list[str]:
    """Why no policy should be optimised against this reward model, with what to do about it; empty for a sound one.

    Args:
        metrics: `RewardMetrics` and `diagnose_reward_model`, as one record.
    """
    complaints = []
    accuracy = metrics["accuracy"]
    n = metrics["n"]
    if not metrics["score_std"] > 1e-6:
        complaints.append(
            f"expected scores that differ, got a standard deviation of {metrics['score_std']:.1g} over the held-out "
            "responses: the model says the same to everything. A smaller learning rate (scores that blew up and were "
            "clipped flat), another --reward.seed, or a look at whether chosen and rejected are often the same"
        )
    elif n >= ENOUGH and metrics["chance"] >= CHANCE:
        _, low, high = share_interval(accuracy, n)
        flipped = " It is wrong more often than right: are chosen and rejected mixed up in the data?" * (accuracy < 0.4)
        complaints.append(
            f"expected an accuracy above chance, got {accuracy:.1%} on {n} held-out pairs (95 % interval "
            f"{100 * low:.0f}–{100 * high:.0f} %), and tossing a coin is right as often with probability "
            f"{metrics['chance']:.2g}.{flipped}{_enough(accuracy)} "
            "What helps is more preferences, more --reward.epochs, a larger --reward.learning-rate, or annotators who "
            "agree with one another. The agent would learn noise from this"
        )
    return complaints


def _enough(accuracy: float) -> str:
    """How many held-out pairs tell this accuracy from a coin half of the time; nothing where it is not above one's.

    A one-sided test at the level 5 % by the normal approximation: n = (1.645/2)² / (accuracy − ½)².
    """
    if accuracy <= 0.5:
        return ""
    needed = math.ceil((NormalDist().inv_cdf(1 - CHANCE) / 2 / (accuracy - 0.5)) ** 2)
    return (
        f" Some {needed:,} held-out pairs would tell {accuracy:.1%} from a coin, and --collect.heldout-fraction sets "
        "their share."
    )


def _share(right: np.ndarray, here: np.ndarray, name: str) -> Share:
    return Share(name, int(here.sum()), float(right[here].mean()) if here.any() else 0.0)
