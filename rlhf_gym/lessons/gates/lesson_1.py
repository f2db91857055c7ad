"""Gates of lesson 1: preferences and the Bradley–Terry model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rlhf_gym.functional import bradley_terry_loss
from rlhf_gym.lessons.answers import ask, explain, fail, near, number, require


def pair(probability: Any, loss: Any) -> None:
    """You can turn two scores into a probability and a loss."""
    p = number("probability", probability)
    right = 1 / (1 + math.exp(0.5))
    if not near(p, right, 6e-4):
        mistakes = {
            "This is the probability that y₂ wins.": 1 - right,
            "This is in per cent. A probability lies between 0 and 1.": 100 * right,
            "This is σ(r₁). The other answer plays no part in it.": 1 / (1 + math.exp(-1.0)),
            "This is the share r₁/(r₁ + r₂). The model has the exponentials of the scores there.": 0.4,
        }
        explain("probability", p, mistakes, "y₁ has the lower score, so it wins less than half of the time.", right)
    found = number("loss", loss)
    if not near(found, -math.log(right), 1e-3):
        mistakes = {
            "This is the loss if y₂ had been chosen.": -math.log(1 - right),
            "A loss is not negative here: mind the minus before the logarithm.": math.log(right),
            "This is the logarithm to the base 10. Use the natural logarithm.": -math.log10(right),
            "This is the logarithm to the base 2. Use the natural logarithm.": -math.log2(right),
            "This is 1 − P. The loss is a logarithm.": 1 - right,
        }
        otherwise = "It is the negative logarithm of the probability of what the person said."
        explain("loss", found, mistakes, otherwise, -math.log(right))


def loss_of_a_batch(preference_loss: Any) -> None:
    """Your loss falls when r⁺ grows, and stays finite however wrong a pair is."""

    def loss(chosen: list[float], rejected: list[float]) -> float:
        result = ask("preference_loss", preference_loss, torch.tensor(chosen), torch.tensor(rejected))
        require(
            getattr(result, "numel", lambda: 1)() == 1,
            f"`preference_loss` must return one number, but its shape is {tuple(getattr(result, 'shape', ()))}.",
        )
        return float(result)

    apart = loss([2.0], [0.0])
    equal = loss([0.0], [0.0])
    require(equal >= 0, "Your loss is negative: the minus before the logarithm is missing.")
    if apart > equal:
        fail("Your loss grows when r⁺ grows. The loss of a preference must fall then.")
    require(apart < equal, "Your loss does not change when r⁺ grows.")
    require(
        apart >= 0, f"Your loss is {apart:.3f} at r⁺ = 2, r⁻ = 0. The negative logarithm of a probability is not < 0."
    )
    require(
        near(equal, math.log(2), 1e-4),
        f"At r⁺ = r⁻ either answer wins half of the time, so the loss is −log ½ = .693. Yours is {equal:.3f}.",
    )
    batch = [1.0, -2.0, 0.5], [0.5, 1.0, 3.0]
    right = float(bradley_terry_loss(torch.tensor(batch[0]), torch.tensor(batch[1])))
    found = loss(*batch)
    if near(found, 3 * right, 1e-4):
        fail("This is the sum over the pairs. The loss is the mean, so that it does not depend on the batch's size.")
    if near(found, math.log1p(math.exp(5 / 3)), 1e-4):  # the mean Δ is −5/3
        fail("You take the mean of Δ first. Each pair has a loss of its own; the mean comes last.")
    require(near(found, right, 1e-4), f"For Δ = .5, −3, −2.5 your loss is {found:.3f}. Is it −log σ(Δ), pair by pair?")
    far = loss([-200.0], [0.0])
    require(
        math.isfinite(far),
        f"At Δ = −200 your loss is {far}. The sigmoid is rounded to 0 there, before the logarithm is taken.",
    )
    require(near(far, 200.0, 1e-3), f"At Δ = −200 your loss is {far:.2f}, but −log σ(Δ) is about −Δ there.")
    scores = torch.tensor([0.3], requires_grad=True)
    result = preference_loss(scores, torch.tensor([0.1]))
    require(
        isinstance(result, torch.Tensor) and result.requires_grad,
        "No gradient flows through your loss. Stay with functions of torch, without `.item()` or `float`.",
    )


def gradients(chosen_at_0: Any, rejected_at_0: Any, chosen_at_4: Any, rejected_at_4: Any) -> None:
    """You know how much a pair changes its two scores, and that a pair which is right by far hardly changes them."""
    answers = {
        "chosen_at_0": (number("chosen_at_0", chosen_at_0), -0.5),
        "rejected_at_0": (number("rejected_at_0", rejected_at_0), 0.5),
        "chosen_at_4": (number("chosen_at_4", chosen_at_4), -0.018),
        "rejected_at_4": (number("rejected_at_4", rejected_at_4), 0.018),
    }
    for name, (value, right) in answers.items():
        if near(value, right, 1e-3):
            continue
        score = "r⁺" if name.startswith("chosen") else "r⁻"
        if near(value, -right, 1e-3):
            fail(f"`{name}` has the wrong sign. Does the loss rise or fall when {score} rises?")
        if near(abs(value), 1 - abs(right), 1e-3):
            fail(f"`{name}` is large for a pair that is right by far. Such a pair should hardly change the scores.")
        sigma = "σ(4) is near 1, and not 1" if name.endswith("4") else "σ(0) is not 1: either answer wins half the time"
        mistakes = {f"`{name}` is 0 in your answer. {sigma}.": 0.0}
        otherwise = "Put Δ into σ(Δ) − 1 for the chosen one, and 1 − σ(Δ) for the rejected one."
        explain(name, value, mistakes, otherwise, right)


def same_preferences(same_as_a: Any) -> None:
    """You know what comparisons leave open: a constant for each prompt."""
    if isinstance(same_as_a, str):
        require(len(same_as_a) == 1, '`same_as_a` must be a set of names, such as {"B", "C"}, and not one text.')
        same_as_a = {same_as_a}
    try:
        names = set(same_as_a)
    except TypeError:
        fail('`same_as_a` must be a set of names, such as {"B", "C"}.')
    unknown = names - set("ABCDEF")
    require(not unknown, f"There is no table {', '.join(sorted(map(str, unknown)))}.")
    names -= {"A"}
    reasons = {
        "C": "In C the same answers win, but not with the same probability: look at the differences.",
        "E": "In E every preference is reversed: the answers that won in A lose.",
        "F": "In F one difference between two answers to p is another one than in A.",
    }
    for name, reason in reasons.items():
        require(name not in names, reason)
    require("B" in names, "One table has all differences of A, and is missing. Compare differences, not scores.")
    require("D" in names, "One table is missing. Are answers to two different prompts ever compared?")


def ranking(pairs: Any, weight: Any) -> None:
    """You can turn a ranking into pairs that weigh one together."""
    count = number("pairs", pairs)
    if count != 6:
        mistakes = {
            "These are only neighbours in the order. The first also beats the third and the fourth.": 3.0,
            "Each pair is counted twice, once in each order.": 12.0,
            "An answer is not compared with itself, and each pair counts once.": 16.0,
            "These are answers, not pairs.": 4.0,
        }
        explain("pairs", count, mistakes, "Every two of the four answers make one pair.")
    found = number("weight", weight)
    if not near(found, 1 / 6, 1e-3):
        mistakes = {
            "With weight 1 each, a ranking of 4 counts like six judgements.": 1.0,
            "This divides by the answers. The weights of the pairs must add up to 1.": 0.25,
        }
        explain("weight", found, mistakes, "The weights of all pairs of a ranking add up to 1.", 1 / 6)


GATES: dict[str, Callable[..., None]] = {
    "1a": pair,
    "1b": loss_of_a_batch,
    "1c": gradients,
    "1d": same_preferences,
    "1e": ranking,
}
