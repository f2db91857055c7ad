"""Plausible wrong answers to the gates of lesson 8, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def steps(kl) -> list[dict[str, float]]:
    return [
        {"tokens": 700 * i, "score": 0.1 * i, "kl": one, "entropy": 1.0, "length": 10.0} for i, one in enumerate(kl)
    ]


RUNS = {
    "watched": {0.1: steps([0, 1, 2, 3, 3, 3]), 0.0: steps([0, 1, 2, 4, 9, 30])},
    "gold": {0.1: [0.0, 0.5, 1.0, 1.2, 1.2, 1.3], 0.0: [0.0, 0.2, 1.0, 0.8, 0.1, -1.0]},
}


def above(limit: float, key: str = "kl") -> Any:
    return lambda steps: next((i for i, step in enumerate(steps) if step[key] > limit), None)


def fit_with(columns: Any) -> Any:
    return lambda kl, gain: np.linalg.lstsq(np.stack(columns(kl, np.sqrt(kl)), axis=1), gain, rcond=None)[0]


def outcome(score: float, gold: float, kl: float) -> Any:
    return lambda kl_coef: {"score": score, "gold": gold, "kl": kl}


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "8a": [
        ({"stops_at": above(0.5, "gold"), **RUNS}, "Gold is not"),
        ({"stops_at": above(99), **RUNS}, "never stops the run with β = 0"),
        ({"stops_at": above(2.5), **RUNS}, "a false alarm"),
        ({"stops_at": lambda steps: None if steps[5]["kl"] < 9 else 1, **RUNS}, "only 20% of its gain"),
        ({"stops_at": above(20), **RUNS}, "below that of π_ref by then: too late"),
        ({"stops_at": above(5), **RUNS}, "10% is left: too late"),
        ({"stops_at": lambda steps: 6, **RUNS}, "places are 0 to 5"),
        ({"stops_at": lambda steps: steps[9], **RUNS}, "stopped with IndexError"),
        ({"stops_at": lambda steps: True if steps[5]["kl"] < 9 else 3, **RUNS}, "a false alarm"),
    ],
    "8b": [
        ({"peak_best_of_n": 2, "peak_rl": 2.718, "nats_at_peak_rl": 7.39}, "The peak is half way"),
        ({"peak_best_of_n": 1, "peak_rl": 7.389, "nats_at_peak_rl": 7.39}, "one more term, −b"),
        ({"peak_best_of_n": 1, "peak_rl": 1, "nats_at_peak_rl": 1}, "log d, not d"),
        ({"peak_best_of_n": 1, "peak_rl": 2.718, "nats_at_peak_rl": 2.718}, "d is the root of the KL"),
        ({"peak_best_of_n": 1, "peak_rl": 2.718, "nats_at_peak_rl": 1.649}, "root of d"),
    ],
    "8c": [
        ({"fit": fit_with(lambda kl, d: [d, d * np.log(d)])}, "b has the wrong sign"),
        ({"fit": fit_with(lambda kl, d: [-d * np.log(d), d])}, "changed places"),
        ({"fit": fit_with(lambda kl, d: [kl, -kl * np.log(kl)])}, "You fit over the KL"),
        ({"fit": fit_with(lambda kl, d: [d, -(d**2)])}, "curve of the best of n"),
        ({"fit": fit_with(lambda kl, d: [d, -d * np.log(kl)])}, "that of d, half as large"),
        ({"fit": fit_with(lambda kl, d: [d, -d * np.log10(d)])}, "base 10"),
        ({"fit": fit_with(lambda kl, d: [d, -np.log(d)])}, "lacks the factor d"),
        ({"fit": lambda kl, gain: (1.0, 1.0)}, "Points with α = 1.1"),
    ],
    "8d": [
        ({"expected_gold": 1.667, "sigma": 1.414}, "Variances add up"),
        ({"expected_gold": 2.5, "sigma": 1.414}, "noise that was selected"),
        ({"expected_gold": 2.236, "sigma": 1.414}, "Divide by its variance"),
        ({"expected_gold": 2, "sigma": 2}, "Take the root"),
        ({"expected_gold": 2, "sigma": 1.732}, "gold's own variance"),
    ],
    "8e": [
        ({"kl_coef": -0.1, "run": outcome(1.5, 1.5, 4)}, "at least 0"),
        ({"kl_coef": 0.0, "run": outcome(1.5, 0.9, 15)}, "A higher price"),
        ({"kl_coef": 2.0, "run": outcome(0.2, 0.4, 0.1)}, "hardly moved"),
    ],
}
