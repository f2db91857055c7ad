"""Plausible wrong answers to the gates of lesson 5, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def estimates(weight: Any = None, direction: Any = None) -> Any:
    def one_estimate_each(pi, chosen, reward, baseline):
        one_hot = np.eye(len(pi))[chosen]
        w = reward - baseline if weight is None else weight(reward, baseline)
        d = one_hot - pi if direction is None else direction(one_hot, pi)
        return w[:, None] * d

    return one_estimate_each


def gae(
    delta: Any = None, advantage: Any = None, keep: Any = lambda delta, advantage: advantage, order: int = -1
) -> Any:
    def with_a_mistake(rewards, values, gamma, lam):
        found = []
        next_value = next_advantage = 0.0
        for r, v in zip(reversed(rewards), reversed(values), strict=True):
            d = r + gamma * next_value - v if delta is None else delta(r, v, next_value, gamma)
            a = d + gamma * lam * next_advantage if advantage is None else advantage(d, next_advantage, gamma, lam)
            found.append(a)
            next_value = v
            next_advantage = keep(d, a)
        return found[::order]

    return with_a_mistake


ENDS = {"with_lambda_0": [-0.1, -0.1, 0.7], "with_lambda_1": [0.5, 0.6, 0.7]}

WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "5a": [
        ({"gradient": [-0.5, 0.7, -0.2]}, "R is missing"),
        ({"gradient": [1.0, -1.4, 0.4]}, "the drawn token must gain"),
        ({"gradient": [0, 1.4, 0]}, "were not drawn have a gradient"),
        ({"gradient": [-0.3, 0.42, -0.12]}, "one factor π"),
        ({"gradient": [0, 6.667, 0]}, "about logits"),
        ({"gradient": [1, 2, 3]}, "multiply by R"),
        ({"gradient": 1.4}, "must be a list"),
    ],
    "5b": [
        ({"estimates": estimates(weight=lambda r, b: r)}, "baseline is not subtracted"),
        ({"estimates": estimates(weight=lambda r, b: r + b)}, "baseline is added"),
        ({"estimates": estimates(direction=lambda o, pi: pi - o)}, "sign is the wrong way round"),
        ({"estimates": estimates(direction=lambda o, pi: o)}, "only the drawn token"),
        ({"estimates": estimates(direction=lambda o, pi: (o * pi).sum(1, keepdims=True) * (o - pi))}, "∇log π"),
        ({"estimates": lambda *a: estimates()(*a).mean(axis=0)}, "the shape"),
        ({"estimates": estimates(weight=lambda r, b: r * b)}, "not \\(R − b\\)"),
    ],
    "5c": [
        ({"advantages": [-3, -2, 1, 4]}, "mean of all four"),
        ({"advantages": [4, 2.667, -1.333, -5.333]}, "positive advantage"),
        ({"advantages": [5, 4.667, 3.667, 2.667]}, "These are the baselines"),
        ({"advantages": [-14, -12, -6, 0]}, "not their mean"),
        ({"advantages": [-2.75, -1.5, 2.25, 6]}, "three of them"),
        ({"advantages": [-4, -2.667, 1.333, 5]}, "add up to"),
    ],
    "5d": [
        ({"with_lambda_0": ENDS["with_lambda_1"], "with_lambda_1": ENDS["with_lambda_0"]}, "of the other λ"),
        ({**ENDS, "with_lambda_0": [-0.5, -0.4, 0.7]}, "`with_lambda_0` lacks V"),
        ({**ENDS, "with_lambda_0": [0.1, 0.1, -0.7]}, "value minus reward"),
        ({**ENDS, "with_lambda_1": [1, 1, 1]}, "are the returns"),
        ({**ENDS, "with_lambda_1": [-0.1, -0.2, 0.5]}, "from the front"),
        ({**ENDS, "with_lambda_1": [0.5, 0.5, 0.7]}, "G_t − V"),
    ],
    "5e": [
        ({"gae": gae(advantage=lambda d, n, g, lam: d + g * n)}, "as with λ = 1"),
        ({"gae": gae(advantage=lambda d, n, g, lam: d)}, "as with λ = 0"),
        ({"gae": gae(advantage=lambda d, n, g, lam: d + lam * n)}, "by λ alone"),
        ({"gae": gae(delta=lambda r, v, n, g: r + n - v)}, "not discounted"),
        ({"gae": gae(delta=lambda r, v, n, g: r - v)}, "always 0 in yours"),
        ({"gae": gae(delta=lambda r, v, n, g: r + g * n)}, "not subtracted in δ_t"),
        ({"gae": gae(delta=lambda r, v, n, g: r)}, "critic plays no part"),
        ({"gae": gae(keep=lambda d, a: d)}, "TD errors are lost"),
        ({"gae": gae(order=1)}, "wrong order"),
        ({"gae": gae(delta=lambda r, v, n, g: v - r - g * n)}, "signs are the wrong way round"),
        ({"gae": gae(delta=lambda r, v, n, g: 2 * r - v)}, "nothing comes after the end"),
    ],
}
