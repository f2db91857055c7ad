"""Plausible wrong answers to the gates of lesson 3, and what is said of them."""

from __future__ import annotations

from typing import Any

import torch

KLS = {"kl": 0.368, "reverse_kl": 0.511}


def k1(p, q):
    return p - q


def k2(p, q):
    return 0.5 * (p - q) ** 2


def k3(p, q):
    return torch.exp(q - p) - 1 - (q - p)


KS = {"k1": k1, "k2": k2, "k3": k3}

WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "3a": [
        ({"kl": 0.511, "reverse_kl": 0.368}, "`kl` has the other direction"),
        ({"kl": 0.531, "reverse_kl": 0.511}, "in bits"),
        ({"kl": -0.368, "reverse_kl": 0.511}, "negative"),
        ({"kl": 0.368, "reverse_kl": 1.0}, "Two terms"),
    ],
    "3b": [
        ({**KS, "k1": lambda p, q: q - p}, "`k1` has the wrong sign"),
        ({**KS, "k2": lambda p, q: (p - q) ** 2}, "a factor is missing"),
        ({**KS, "k3": lambda p, q: torch.exp(p - q) - 1 - (p - q)}, "upside down"),
        ({**KS, "k3": lambda p, q: torch.exp(q - p) - 1 + (q - p)}, "never negative"),
        ({**KS, "k3": lambda p, q: torch.exp(q - p) - (q - p)}, "The mean of `k3`"),
    ],
    "3c": [
        ({"token_rewards": [0.1, -0.05, 2.15], "total": 2.2}, "it has a minus"),
        ({"token_rewards": [-0.2, 0.1, 1.7], "total": 1.6}, "β is missing"),
        ({"token_rewards": [1.9, 2.05, 1.85], "total": 5.8}, "falls on every token"),
        ({"token_rewards": [-0.1, 0.05, 2.0], "total": 1.95}, "KL of its own"),
        ({"token_rewards": [-0.1, 0.05, 1.85], "total": 1.7}, "adds the size"),
        ({"token_rewards": 1.8, "total": 1.8}, "must be a list"),
    ],
    "3d": [
        ({"policy_loss": lambda p, q, s, b: -((s - b * (p - q)) * p).mean()}, "gradient goes through the reward"),
        (
            {"policy_loss": lambda p, q, s, b: ((s - b * (p - q)).detach() * p).mean()},
            "A loss is minimised: mind the sign",
        ),
        (
            {"policy_loss": lambda p, q, s, b: -((s + b * (p - q)).detach() * p).mean()},
            "rewards the policy for leaving",
        ),
        ({"policy_loss": lambda p, q, s, b: -(s - b * (p - q)).mean()}, "differentiate the reward itself"),
        ({"policy_loss": lambda p, q, s, b: -(s * p - b * (p - q)).mean()}, "none of the penalty"),
        ({"policy_loss": lambda p, q, s, b: -((s - b * (p - q)).detach() * p).sum()}, "not the sum"),
        ({"policy_loss": lambda p, q, s, b: -((s - b * (p - q)) * p).mean().item()}, "as a tensor, but it returns"),
        ({"policy_loss": lambda p, q, s, b: -((s - b * (p - q)).detach() * p)}, "one number, the mean over the batch"),
        ({"policy_loss": lambda p, q, s, b: -((s - b * (p - q)) * p).mean().detach()}, "No gradient flows"),
    ],
}
