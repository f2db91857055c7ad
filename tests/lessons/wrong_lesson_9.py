"""Plausible wrong answers to the gates of lesson 9, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_gym.lessons.clinic import CASES, clinic_runs
from rlhf_gym.preferences import Preference

RIGHT = {case.letter: diagnosis for diagnosis, case in CASES.items()}
RUNS = clinic_runs()


def diagnosed(**wrong: str) -> dict[str, Any]:
    return {"diagnoses": RIGHT | wrong, "runs": RUNS}


def outcome(score: float, entropy: float, kl: float) -> Any:
    return lambda rate: {"score": [-0.3, score], "entropy": [1.27, entropy], "kl": [0.0, kl]}


def wilson(right: int, n: int, sign: float = -1.0, divided: bool = True) -> float:
    p = right / n
    half = 1.96 * (p * (1 - p) / n + 1.96**2 / (4 * n**2)) ** 0.5
    return (p + 1.96**2 / (2 * n) + sign * half) / (1 + 1.96**2 / n if divided else 1.0)


PAIRS = [("q", f"a {i}", f"b {i}") for i in range(48)]
TWICE = [(i, 48 + i) for i in range(12)]
HELDOUT = [Preference("q", f"good {i}", f"bad {i}") for i in range(100)]
LABELS = "12" * 24 + "21" * 6


def learned(right: int) -> Any:
    """A training whose r_φ is right in so many of the 100 held-out pairs."""

    def train(labels: list[Preference]) -> Any:
        assert len(labels) == 48

        def scores(prompts: list[str], responses: list[str]) -> np.ndarray:
            words = [response.split() for response in responses]
            return np.array([float((word == "good") == (int(i) < right)) for word, i in words])

        return scores

    return train


def labelled(choices: Any, right: int = 70) -> dict[str, Any]:
    pairs = [*PAIRS, *((prompt, second, first) for prompt, first, second in PAIRS[:12])]
    return {"choices": choices, "pairs": pairs, "twice": TWICE, "train": learned(right), "heldout": HELDOUT}


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "9a": [
        ({"diagnoses": {"A": "fast"}, "runs": RUNS}, "one word for each run"),
        (diagnosed(B="long"), "'long' is not one of"),
        (diagnosed(C="kl"), "Run C is not 'kl'. At the end its KL is 3.1 nats"),
        (diagnosed(A="kl"), "Run A is not 'kl'. The score falls from"),
        (diagnosed(F="kl"), "How many different responses are left"),
        (diagnosed(F="fast"), "In its first update 10% of the tokens are clipped"),
        (diagnosed(D="slow"), "Its policy has moved"),
        (diagnosed(E="length"), "Its responses have 12.5 tokens at the start and 11.0"),
        (diagnosed(A="length"), "Its responses grow, but the score falls"),
        (diagnosed(E="collapse"), "At no time fewer than"),
        (diagnosed(A="collapse"), "Its score falls from -0.30"),
        (diagnosed(C="critic"), "Its critic explains up to 39%"),
        (diagnosed(G="critic"), "Which of its curves has moved"),
        (diagnosed(D="healthy"), "Does everything in it learn"),
        (diagnosed(B="healthy"), "What else rises by half"),
        (diagnosed(E="healthy"), "Which curve rises with it"),
    ],
    "9b": [
        ({"learning_rate": -1, "treated": outcome(1, 1, 1)}, "must be above 0"),
        ({"learning_rate": 1e-2, "treated": outcome(-1.9, 0.0, 6)}, "still too large"),
        ({"learning_rate": 1e-6, "treated": outcome(0.4, 1.2, 0.0)}, "Larger steps are possible"),
        ({"learning_rate": 1e-2, "treated": outcome(0.7, 0.8, 74.0)}, "Smaller steps may"),
    ],
    "9c": [
        ({"lower_end": lambda right, n: right / n}, "the share itself"),
        ({"lower_end": lambda right, n: wilson(right, n, 1.0)}, "upper end"),
        ({"lower_end": lambda right, n: wilson(right, n, divided=False)}, "division by"),
        (
            {"lower_end": lambda right, n: right / n - 1.96 * (right / n * (1 - right / n) / n) ** 0.5},
            "too sure of small samples",
        ),
        ({"lower_end": lambda right, n: 0.5}, "For 35 of 50"),
    ],
    "9d": [
        (labelled([1, 2]), "must be a text"),
        (labelled(LABELS.replace("2", "0")), "Write 1 or 2"),
        (labelled(LABELS[:-1]), "There are 60 pairs, and you wrote 59"),
        (labelled("1" * 60), "stands first in 48 of 48"),
        (labelled("12" * 30), "same response in 0 of them"),
        (labelled(LABELS, right=55), "A coin may do as well"),
        (labelled(LABELS, right=20), "Did you write the worse response"),
    ],
}
