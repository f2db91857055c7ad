"""Plausible wrong answers to the gates of lesson 4, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def terms(reward=None, entropy=None, prior=None) -> Any:
    def three_terms(pi, ref, r, beta):
        return (
            (pi * r).sum() if reward is None else reward(pi, ref, r, beta),
            -beta * (pi * np.log(pi)).sum() if entropy is None else entropy(pi, ref, r, beta),
            beta * (pi * np.log(ref)).sum() if prior is None else prior(pi, ref, r, beta),
        )

    return three_terms


def policy(weight: Any) -> Any:
    def best_policy(ref, r, beta):
        found = weight(ref, r, beta)
        return found / found.sum()

    return best_policy


def shifted(log_weight: np.ndarray) -> np.ndarray:
    return np.exp(log_weight - log_weight.max())


def log_of_sum(ref, r, b):
    log_weight = np.log(ref) + r / b
    return np.exp(log_weight - np.log(np.exp(log_weight).sum()))


def bisect_wrong(kl_at, delta):
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = np.sqrt(low * high)
        if kl_at(middle) < delta:
            low = middle
        else:
            high = middle
    return middle


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "4a": [
        ({"three_terms": terms(reward=lambda pi, ref, r, b: pi * r)}, "`reward` must be one number"),
        ({"three_terms": lambda pi, ref, r, b: (pi * r).sum()}, "three numbers"),
        ({"three_terms": terms(reward=lambda pi, ref, r, b: r.sum())}, "adds up all rewards"),
        ({"three_terms": terms(reward=lambda pi, ref, r, b: (ref * r).sum())}, "`reward` is weighted by π_ref"),
        ({"three_terms": terms(entropy=lambda pi, ref, r, b: b * (pi * np.log(pi)).sum())}, "`entropy` has the wrong"),
        ({"three_terms": terms(entropy=lambda pi, ref, r, b: -(pi * np.log(pi)).sum())}, "`entropy` lacks the factor"),
        (
            {"three_terms": terms(prior=lambda pi, ref, r, b: b * (ref * np.log(ref)).sum())},
            "over responses of the policy",
        ),
        ({"three_terms": terms(prior=lambda pi, ref, r, b: -b * (pi * np.log(ref)).sum())}, "must lower J"),
        ({"three_terms": lambda pi, ref, r, b: (pi * r).sum()}, "must return three numbers"),
    ],
    "4b": [
        ({"pi_star": [0.5, 0.8155, 1.4778], "best": 1.027}, "not divided by Z"),
        ({"pi_star": [0.090, 0.245, 0.665], "best": 1.027}, "e\\^r alone"),
        ({"pi_star": [0, 0, 1], "best": 1.027}, "keeps the others"),
        ({"pi_star": [0.179, 0.292, 0.529], "best": 2.793}, "This is Z"),
        ({"pi_star": [0.179, 0.292, 0.529], "best": 1.35}, "minus β times the KL"),
        ({"pi_star": [0.179, 0.292, 0.529], "best": 1.03}, "`best` is 1.03. It is rounded too far"),
    ],
    "4c": [
        ({"best_policy": policy(lambda ref, r, b: np.log(ref) + r / b)}, "Use the exponential first"),
        ({"best_policy": log_of_sum}, "add up to 0, not to 1"),
        ({"best_policy": policy(lambda ref, r, b: ref * np.exp(r * b))}, "β multiplies"),
        ({"best_policy": policy(lambda ref, r, b: shifted(r / b))}, "π_ref plays no part"),
        ({"best_policy": policy(lambda ref, r, b: shifted(ref + r / b))}, "Its logarithm belongs there"),
        ({"best_policy": policy(lambda ref, r, b: ref * np.exp(r / b))}, "not finite"),
        ({"best_policy": lambda ref, r, b: shifted(np.log(ref) + r / b)}, "add up to"),
    ],
    "4d": [
        ({"beta_for": bisect_wrong}, "end of the interval"),
        ({"beta_for": lambda kl_at, delta: delta}, "the KL there is"),
        ({"beta_for": lambda kl_at, delta: 1 / delta}, "the KL there is"),
    ],
}
