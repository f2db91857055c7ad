"""Plausible wrong answers to the gates of lesson 2, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def rule(
    ties: float = 0.0, count=lambda text: len(text.split()), *, all_pairs: bool = False, turned: bool = False
) -> Any:
    def longer_wins(labels):
        lengths = [(count(one.chosen), count(one.rejected)) for one in labels]
        if turned:
            lengths = [pair[::-1] for pair in lengths]
        won = sum(a > b for a, b in lengths)
        tied = sum(a == b for a, b in lengths)
        return (won + ties * tied) / (len(labels) if all_pairs else len(labels) - tied)

    return longer_wins


def change(score, questions, responses, edit):
    before = score(questions, responses)
    return before, score(questions, [edit(response) for response in responses])


def effect_with(formula: Any) -> Any:
    return lambda *arguments: formula(*change(*arguments))


def by_words(questions, responses):
    return np.array([float(len(response.split())) for response in responses])


EXPLOIT = {
    "r_phi": by_words,
    "gold": lambda questions, responses: -by_words(questions, responses),
    "questions": ["q"] * 3,
    "responses": ["a", "a b", "a b c"],
}
CAUSES = {1: "tone", 2: "refusal", 3: "prompts", 4: "length"}

WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "2a": [
        ({"last_position": lambda mask: mask.sum(1)}, "one position too far"),
        ({"last_position": lambda mask: mask.sum(1) * 0 + mask.shape[1] - 1}, "last position of the table"),
        ({"last_position": lambda mask: mask.argmin(1)}, "first 0 of the mask"),
        ({"last_position": lambda mask: mask.sum() - 1}, "must be a list of numbers"),
    ],
    "2b": [
        ({"longer_wins": rule(all_pairs=True)}, "count as lost"),
        ({"longer_wins": rule(1.0, all_pairs=True)}, "count as won"),
        ({"longer_wins": rule(0.5, all_pairs=True)}, "count half"),
        ({"longer_wins": rule(count=len)}, "compare characters"),
        ({"longer_wins": rule(turned=True)}, "rejected"),
    ],
    "2c": [
        ({"effect": effect_with(lambda before, after: (after - before).mean())}, "unit of the scores"),
        ({"effect": effect_with(lambda before, after: (before - after).mean() / before.std())}, "after minus before"),
        ({"effect": effect_with(lambda before, after: (after - before).mean() / after.std())}, "the edited answers"),
        ({"effect": effect_with(lambda before, after: after.mean() / before.std())}, "effect is a change"),
        ({"effect": effect_with(lambda before, after: (after - before) / before.std())}, "must be a number"),
    ],
    "2d": [
        ({"exploit": lambda text: text, **EXPLOIT}, "changes nothing"),
        ({"exploit": lambda text: text[0], **EXPLOIT}, "Neither is enough"),
        ({"exploit": lambda text: f"{text} x x", **EXPLOIT | {"gold": by_words}}, "Gold does not fall enough"),
        ({"exploit": lambda text: "", **EXPLOIT | {"gold": by_words}}, "r_φ does not rise enough"),
        ({"exploit": lambda text: 3, **EXPLOIT}, "must return a text"),
    ],
    "2e": [
        ({"beta_without_normalising": 0.04}, "the other way round"),
        ({"beta_without_normalising": 0.1}, "With the same β"),
        ({"beta_without_normalising": 0.625}, "variance"),
    ],
    "2f": [
        ({"causes": CAUSES | {1: "length"}}, "Report 1: what would an annotator"),
        ({"causes": CAUSES | {3: "tone"}}, "Report 3: on which questions"),
        ({"causes": CAUSES | {2: "shy"}}, "'shy' is not one of"),
        ({"causes": {1: "tone"}}, "one word for each"),
    ],
}
