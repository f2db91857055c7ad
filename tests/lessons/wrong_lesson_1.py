"""Plausible wrong answers to the gates of lesson 1, and what is said of them."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import logsigmoid, relu

SLOPES = {"chosen_at_0": -0.5, "rejected_at_0": 0.5, "chosen_at_4": -0.018, "rejected_at_4": 0.018}

WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "1a": [
        ({"probability": 0.6225, "loss": 0.9741}, "probability that y₂ wins"),
        ({"probability": 0.4, "loss": 0.9741}, "share"),
        ({"probability": 0.3775, "loss": 0.4741}, "if y₂ had been chosen"),
        ({"probability": 0.3775, "loss": -0.9741}, "mind the minus"),
        ({"probability": 0.3775, "loss": 0.423}, "base 10"),
        ({"probability": 0.3775, "loss": 1.4053}, "base 2"),
        ({"probability": 37.75, "loss": 0.9741}, "per cent"),
        ({"probability": 0.38, "loss": 0.9741}, "`probability` is 0.38. It is rounded too far"),
    ],
    "1b": [
        ({"preference_loss": lambda c, r: -logsigmoid(r - c).mean()}, "grows when r⁺ grows"),
        ({"preference_loss": lambda c, r: logsigmoid(c - r).mean()}, "the minus before the logarithm"),
        ({"preference_loss": lambda c, r: -logsigmoid(c - r)}, "return one number"),
        ({"preference_loss": lambda c, r: -logsigmoid(c - r).sum()}, "sum over the pairs"),
        ({"preference_loss": lambda c, r: -logsigmoid((c - r).mean())}, "mean of Δ first"),
        ({"preference_loss": lambda c, r: -(c - r).sigmoid().log().mean()}, "rounded to 0"),
        ({"preference_loss": lambda c, r: relu(r - c).mean()}, "does not change when r⁺ grows"),
        ({"preference_loss": lambda c, r: relu(1 + r - c).mean()}, "either answer wins half"),
        ({"preference_loss": lambda c, r: -logsigmoid(c - r).mean().item()}, "No gradient flows"),
    ],
    "1c": [
        ({**SLOPES, "chosen_at_0": 0.5}, "wrong sign. Does the loss rise or fall when r⁺"),
        ({**SLOPES, "chosen_at_4": -0.982}, "hardly change"),
        ({**SLOPES, "chosen_at_4": -0.02}, "rounded too far"),
        ({**SLOPES, "chosen_at_0": 0}, "σ\\(0\\) is not 1"),
        ({**SLOPES, "rejected_at_4": 0}, "near 1, and not 1"),
    ],
    "1d": [
        ({"same_as_a": {"B"}}, "two different prompts"),
        ({"same_as_a": {"B", "C", "D"}}, "not with the same probability"),
        ({"same_as_a": {"B", "D", "E"}}, "every preference is reversed"),
        ({"same_as_a": {"G"}}, "no table G"),
        ({"same_as_a": "B, D"}, "and not one text"),
    ],
    "1e": [
        ({"pairs": 3, "weight": 1 / 6}, "only neighbours"),
        ({"pairs": 12, "weight": 1 / 6}, "counted twice"),
        ({"pairs": 6, "weight": 1}, "six judgements"),
        ({"pairs": 6, "weight": 0.25}, "divides by the answers"),
        ({"pairs": 6, "weight": 0.17}, "rounded too far"),
        ({"pairs": 6, "weight": 0.2}, "add up to 1"),
    ],
}
