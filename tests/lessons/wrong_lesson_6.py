"""Plausible wrong answers to the gates of lesson 6, and what is said of them."""

from __future__ import annotations

from typing import Any

import torch

GOOD = {"ratio": 3.0, "unclipped": 12.0, "clipped": 4.8, "objective": 4.8}
BAD = {"ratio": 1.3, "unclipped": -3.9, "clipped": -3.6, "objective": -3.9, "slope": -3.9}
CASES = {"losses": [-1.2, -0.5, 1.5, 0.8], "without_gradient": [1, 4]}
NEAR = {1: "old", 2: "ref", 3: "old", 4: "ref", 5: "ref"}


def loss(choose: Any = torch.minimum, ratio: Any = lambda p, q: (p - q).exp(), reduce: Any = torch.mean) -> Any:
    def with_a_mistake(p, q, a, e):
        r = ratio(p, q)
        return -reduce(choose(r * a, r.clamp(1 - e, 1 + e) * a))

    return with_a_mistake


def maximum_where_negative(u, c):
    return torch.where(u > 0, torch.minimum(u, c), torch.maximum(u, c))


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "6a": [
        ({**GOOD, "ratio": 1 / 3}, "upside down"),
        ({**GOOD, "ratio": 0.04}, "This is the difference"),
        ({**GOOD, "unclipped": 3.0}, "`unclipped`: Â is missing"),
        ({**GOOD, "clipped": 12.0}, "Nothing is clipped"),
        ({**GOOD, "clipped": 1.2}, "`clipped`: Â is missing, or"),
        ({**GOOD, "objective": 12.0}, "the larger of both terms"),
        ({**GOOD, "objective": "4.8?"}, "must be a number"),
    ],
    "6b": [
        ({**BAD, "objective": -3.6}, "\\*maximum\\* of both terms, a widespread error .* Its gradient is 0"),
        ({**BAD, "clipped": -2.4}, "lower end of the clip range"),
        ({**BAD, "clipped": -3.9}, "Nothing is clipped"),
        ({**BAD, "unclipped": 3.9}, "sign of Â"),
        ({**BAD, "slope": 0}, "belongs to the clipped term"),
        ({**BAD, "slope": -3}, "one more factor"),
        ({**BAD, "slope": 3.9}, "more likely"),
    ],
    "6c": [
        ({**CASES, "losses": [1.2, 0.5, -1.5, -0.8]}, "Case 1: this is the objective"),
        ({**CASES, "losses": [-1.2, -0.5, 1.2, 0.8]}, "Case 3: this is minus the larger"),
        ({**CASES, "losses": [-1.2, -0.5, 1.5, 0.5]}, "Case 4: this is minus the larger"),
        ({**CASES, "losses": [-1.2, -0.5, 1.5, 0.7]}, "Case 4: work out both terms"),
        ({**CASES, "without_gradient": [1, 3]}, "every token above 1 \\+ ε is stopped"),
        ({**CASES, "without_gradient": [1, 2, 3, 4]}, "also those that must come back"),
        ({**CASES, "without_gradient": [2, 3]}, "the other way round"),
        ({**CASES, "without_gradient": [1]}, "Case 4: the loss is the clipped term"),
        ({**CASES, "without_gradient": [1, 2, 4]}, "Look at your losses"),
        ({**CASES, "without_gradient": 1}, "a list of numbers from 1 to 4"),
    ],
    "6d": [
        ({"clipped_loss": lambda *a: -loss()(*a)}, "A loss is minimised: mind the sign"),
        ({"clipped_loss": loss(choose=maximum_where_negative)}, "Where Â < 0 you take the maximum"),
        ({"clipped_loss": loss(choose=torch.maximum)}, "the larger of both terms"),
        ({"clipped_loss": loss(choose=lambda u, c: c)}, "the clipped term alone"),
        ({"clipped_loss": loss(choose=lambda u, c: u)}, "Nothing is clipped"),
        ({"clipped_loss": loss(ratio=lambda p, q: (q - p).exp())}, "upside down"),
        ({"clipped_loss": loss(ratio=lambda p, q: p - q)}, "`torch.exp` is missing"),
        ({"clipped_loss": loss(ratio=lambda p, q: p / q)}, "quotient of logarithms"),
        ({"clipped_loss": loss(ratio=lambda p, q: (p - q).exp().detach())}, "No gradient flows"),
        ({"clipped_loss": loss(reduce=torch.sum)}, "not the sum"),
        ({"clipped_loss": loss(reduce=lambda x: x)}, "one number, the mean over the batch"),
        (
            {
                "clipped_loss": lambda p, q, a, e: (
                    -torch.minimum((p - q).exp() * a, (p - q).exp().clamp(-e, e) * a).mean()
                )
            },
            "to \\[−ε, ε\\]",
        ),
        (
            {
                "clipped_loss": lambda p, q, a, e: (
                    -torch.minimum((p - q).exp() * a, (p - q).exp().clamp(1 - e, 1 + e)).mean()
                )
            },
            "lacks the factor Â",
        ),
        ({"clipped_loss": lambda p, q, a, e: loss()(p, q, a, 0.2)}, "Use `epsilon`"),
        ({"clipped_loss": lambda p, q, a, e: loss()(p, q, a, 2 * e)}, "At ratio 1.5 and Â = 1 your loss is"),
    ],
    "6e": [
        ({"near_which": NEAR | {2: "old"}}, "Sentence 2: which distance stands in J"),
        ({"near_which": NEAR | {3: "ref"}}, "Sentence 3: one step"),
        ({"near_which": NEAR | {4: "old"}}, "Sentence 4: what did β = 0 change"),
        ({"near_which": NEAR | {5: "both"}}, "neither 'old' nor 'ref'"),
        ({"near_which": ["old"]}, "one word for each"),
    ],
}
