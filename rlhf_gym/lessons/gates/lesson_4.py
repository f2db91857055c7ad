"""Gates of lesson 4: the objective as reward plus log prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_gym.lessons.answers import ask, explain, fail, near, number, numbers, require

_PI = np.array([0.2, 0.7, 0.1])
_REF = np.array([0.5, 0.3, 0.2])
_R = np.array([0.0, 1.0, 3.0])


def three_terms_of_j(three_terms: Any) -> None:
    """You can write J as a reward, an entropy and a log prior."""
    beta = 0.5
    names = ("reward", "entropy", "prior")
    result = ask("three_terms", three_terms, _PI, _REF, _R, beta)
    require(
        isinstance(result, tuple | list) and len(result) == 3,
        "`three_terms` must return three numbers: `reward, entropy, prior`.",
    )
    for name, term in zip(names, result, strict=True):
        shape = tuple(np.shape(term))
        require(not shape, f"`{name}` must be one number, but its shape is {shape}. Add up over the responses.")
    terms = [number(name, term) for name, term in zip(names, result, strict=True)]
    right = (
        float((_PI * _R).sum()),
        float(-beta * (_PI * np.log(_PI)).sum()),
        float(beta * (_PI * np.log(_REF)).sum()),
    )
    weights = {
        "reward": {"`reward` is weighted by π_ref. The policy is π.": float((_REF * _R).sum())},
        "entropy": {
            "`entropy` has the wrong sign. An entropy is at least 0, and it is added.": -right[1],
            "`entropy` lacks the factor β.": right[1] / beta,
            "`entropy` has log π without its weight. It is a mean over π.": float(-beta * np.log(_PI).sum()),
        },
        "prior": {
            "`prior` has the wrong sign. A response that π_ref finds improbable must lower J.": -right[2],
            "`prior` lacks the factor β.": right[2] / beta,
            "`prior` is weighted by π_ref. The mean is over responses of the policy, y ~ π.": float(
                beta * (_REF * np.log(_REF)).sum()
            ),
            "`prior` has log π_ref without its weight. It is a mean over π.": float(beta * np.log(_REF).sum()),
        },
    }
    for name, value, wanted in zip(names, terms, right, strict=True):
        if not near(value, wanted, 1e-5):
            otherwise = "Each term is a sum over responses, weighted by π."
            if name == "reward" and near(value, float(_R.sum()), 1e-5):
                fail("`reward` adds up all rewards. It is a mean, weighted by π.")
            explain(name, value, weights[name], otherwise)


def optimum_by_hand(pi_star: Any, best: Any) -> None:
    """You can work out the best policy and its objective."""
    weight = np.array([0.5, 0.3, 0.2]) * np.exp([0.0, 1.0, 2.0])
    right = weight / weight.sum()
    found = numbers("pi_star", pi_star, 3)
    if not np.allclose(found, right, atol=2e-3):
        softmax = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
        require(
            not np.allclose(found, weight, atol=5e-3),
            "These weights do not add up to 1. They are not divided by Z yet.",
        )
        require(not np.allclose(found, softmax, atol=2e-3), "This is e^r alone. π_ref, the prior, plays no part in it.")
        product = np.array([0.0, 0.3, 0.4]) / 0.7
        require(not np.allclose(found, product, atol=2e-3), "This is π_ref · r. The reward stands in an exponent.")
        require(
            not np.allclose(found, [0.0, 0.0, 1.0], atol=1e-6),
            "That is the response with the highest reward. With β > 0 the best policy keeps the others.",
        )
        require(abs(found.sum() - 1) < 5e-3, f"`pi_star` adds up to {found.sum():.3f}. Probabilities add up to 1.")
        fail("`pi_star` is not π_ref · e^{r/β}/Z. Work out the three products, then divide each by their sum.")
    value = number("best", best)
    if not near(value, math.log(weight.sum()), 2e-3):
        mistakes = {
            "This is Z. J* has its logarithm.": float(weight.sum()),
            "This is the mean reward of π*. J* is this minus β times the KL.": float((right * [0, 1, 2]).sum()),
            "This is the mean reward of π_ref.": 0.7,
            "This is the KL of π*, not its objective.": float((right * np.log(right / [0.5, 0.3, 0.2])).sum()),
        }
        explain("best", value, mistakes, "J* = β · log Z.", math.log(weight.sum()))


def optimum_as_function(best_policy: Any) -> None:
    """You have π* as a function that no size of r/β breaks."""
    beta = 0.5

    def normal(weight: np.ndarray) -> np.ndarray:
        return weight / weight.sum()

    def of(r: np.ndarray, beta: float) -> np.ndarray:
        return numbers("best_policy(…)", ask("best_policy", best_policy, _REF, r, beta), 3)

    found = of(_R, beta)
    if not np.allclose(found, normal(_REF * np.exp(_R / beta)), atol=1e-6):
        logits = np.log(_REF) + _R / beta
        require(
            not np.allclose(found, normal(logits), atol=1e-6),
            "You divide the logarithms by their sum. Use the exponential first.",
        )
        require(abs(found.sum() - 1) < 1e-6, f"Your probabilities add up to {found.sum():.4f}, not to 1.")
        known = {
            "β multiplies the reward. A large β must keep the policy near π_ref, so it divides.": normal(
                _REF * np.exp(_R * beta)
            ),
            "β plays no part in your policy.": normal(_REF * np.exp(_R)),
            "π_ref plays no part in your policy. It is the prior.": normal(np.exp(_R / beta)),
            "The policy prefers low rewards: mind the sign.": normal(_REF * np.exp(-_R / beta)),
            "π_ref is added to the exponent. Its logarithm belongs there.": normal(np.exp(_REF + _R / beta)),
        }
        for message, wrong in known.items():
            require(not np.allclose(found, wrong, atol=1e-6), message)
        fail("Your policy is not π_ref · e^{r/β}/Z.")
    with np.errstate(all="ignore"):
        try:
            extreme = np.asarray(ask("best_policy", best_policy, _REF, _R, 1e-3), dtype=np.float64)
        except (TypeError, ValueError):
            fail("`best_policy` must return an array of probabilities.")
    require(
        np.isfinite(extreme).all(),
        "At β = .001 your policy is not finite: e^{3000} is too large. Subtract the largest logarithm first.",
    )
    require(
        abs(extreme.sum() - 1) < 1e-6,
        f"At β = .001 your probabilities add up to {extreme.sum():.4g}, not to 1. Does an e^{{3000}} occur on the way?",
    )
    require(
        np.allclose(extreme, [0.0, 0.0, 1.0], atol=1e-6),
        "At β = .001 nearly all probability must be on the best response.",
    )


def multiplier(beta_for: Any) -> None:
    """You can find the β that belongs to a KL: a penalty and a constraint are the same family."""

    def kl_at(beta: float) -> float:
        log_weight = np.log(_REF) + _R / beta
        pi = np.exp(log_weight - log_weight.max())
        pi = pi / pi.sum()
        return float((pi * (np.log(np.maximum(pi, 1e-300)) - np.log(_REF))).sum())

    for delta in (0.05, 0.4, 1.0):
        beta = number("beta_for(…)", ask("beta_for", beta_for, kl_at, delta))
        if beta > 900 or beta < 1.1e-3:
            fail(
                f"For δ = {delta} your β runs to {beta:.3g}, an end of the interval. A larger β has a smaller KL: "
                "which half must be kept?"
            )
        require(
            abs(kl_at(beta) - delta) < 1e-3,
            f"For δ = {delta} your β is {beta:.4g}, and the KL there is {kl_at(beta):.4f}.",
        )


GATES: dict[str, Callable[..., None]] = {
    "4a": three_terms_of_j,
    "4b": optimum_by_hand,
    "4c": optimum_as_function,
    "4d": multiplier,
}
