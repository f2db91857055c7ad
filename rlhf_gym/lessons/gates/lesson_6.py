"""Gates of lesson 6: PPO's clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_gym.lessons.answers import ask, explain, fail, near, number, numbers, one_number, require

_NEAR = {1: "old", 2: "ref", 3: "old", 4: "ref", 5: "ref"}
_CASES = [(1.5, 1.0), (0.5, 1.0), (1.5, -1.0), (0.5, -1.0)]


def token_that_became_likely(ratio: Any, unclipped: Any, clipped: Any, objective: Any) -> None:
    """You can work out PPO's objective for a token that gained."""
    _by_hand("ratio", ratio, 3.0, _ratio_mistakes(0.06, 0.02), "It is π/π_old.")
    _by_hand("unclipped", unclipped, 12.0, {"Â is missing.": 3.0}, "It is ratio · Â.")
    mistakes = {
        "Â is missing, or you clipped ratio · Â. The ratio is clipped, and then multiplied.": 1.2,
        "This is the lower end of the clip range. The ratio is above 1.": 3.2,
        "Nothing is clipped in it.": 12.0,
    }
    _by_hand("clipped", clipped, 4.8, mistakes, "Clip the ratio to [.8, 1.2], then multiply by Â.")
    mistakes = {
        "This is the larger of both terms. PPO takes the gain beyond the clip away.": 12.0,
        "This adds both terms.": 16.8,
    }
    _by_hand("objective", objective, 4.8, mistakes, "It is one of the two terms.")


def token_that_should_fall(ratio: Any, unclipped: Any, clipped: Any, objective: Any, slope: Any) -> None:
    """You know that PPO takes the minimum for bad tokens too, and what the other rule loses."""
    _by_hand("ratio", ratio, 1.3, _ratio_mistakes(0.13, 0.10), "It is π/π_old.")
    mistakes = {"Mind the sign of Â.": 3.9, "Â is missing.": 1.3}
    _by_hand("unclipped", unclipped, -3.9, mistakes, "It is ratio · Â.")
    mistakes = {
        "Mind the sign of Â.": 3.6,
        "This is the lower end of the clip range. The ratio is above 1, and so is the end that it is clipped to.": -2.4,
        "Nothing is clipped in it.": -3.9,
        "Â is missing.": 1.2,
    }
    _by_hand("clipped", clipped, -3.6, mistakes, "Clip the ratio to [.8, 1.2], then multiply by Â.")
    mistakes = {
        "This is the *maximum* of both terms, a widespread error where Â < 0. Its gradient is 0: a bad token that "
        "became likelier would stay so.": -3.6,
        "Mind the sign: both terms are negative.": 3.9,
    }
    _by_hand("objective", objective, -3.9, mistakes, "It is one of the two terms.")
    mistakes = {
        "A slope of 0 belongs to the clipped term. Which of the terms is the objective here?": 0.0,
        "This is the derivative with respect to the ratio. With respect to log π there is one more factor.": -3.0,
        "This sign would make a bad token more likely.": 3.9,
        "This is the clipped term. It has no slope at all.": -3.6,
        "This is the derivative with respect to π, Â/π_old. The question is about log π.": -30.0,
    }
    _by_hand("slope", slope, -3.9, mistakes, "It is Â times the derivative of the ratio with respect to log π.")


def four_cases(losses: Any, without_gradient: Any) -> None:
    """You know where the clip stops a token, and where it does not."""
    found = numbers("losses", losses, 4).tolist()
    for case, (value, (ratio, advantage)) in enumerate(zip(found, _CASES, strict=True), start=1):
        clipped = min(max(ratio, 0.8), 1.2)
        terms = sorted((ratio * advantage, clipped * advantage))
        if near(value, -terms[0], 1e-3):
            continue
        mistakes = {
            f"Case {case}: this is the objective. A loss is minus the objective.": terms[0],
            f"Case {case}: this is minus the larger of the two terms.": -terms[1],
        }
        explain("losses", value, mistakes, f"Case {case}: work out both terms, take the smaller one, turn the sign.")
    try:
        stopped = {int(case) for case in without_gradient}
    except (TypeError, ValueError):
        fail("`without_gradient` must be a list of numbers from 1 to 4.")
    require(stopped <= {1, 2, 3, 4}, "`without_gradient` must be a list of numbers from 1 to 4.")
    if stopped == {1, 4}:
        return
    require(
        stopped != {1, 3},
        "By this list every token above 1 + ε is stopped. In case 3 the ratio must come down: which term is the loss?",
    )
    require(
        stopped != {1, 2, 3, 4},
        "By this list every token outside the clip range is stopped, also those that must come back.",
    )
    require(
        stopped != {2, 3}, "It is the other way round: these two have gone the wrong way, and must be able to return."
    )
    for case in (1, 4):
        require(case in stopped, f"Case {case}: the loss is the clipped term. Does that depend on π?")
    fail("A case has a gradient where its loss is the unclipped term. Look at your losses again.")


def loss_with_a_clip(clipped_loss: Any) -> None:
    """You have PPO's loss, and at ratio 1 its gradient is REINFORCE's."""
    cases = [*_CASES, (1.1, 2.0), (0.9, -2.0), (1.0, 3.0)]

    def at(loss: Callable[..., Any], ratio: float, advantage: float) -> tuple[float, float]:
        """The loss of one token, and its derivative with respect to log π."""
        old = torch.tensor([-1.7])
        log_prob = (old + math.log(ratio)).requires_grad_(True)
        result = ask("clipped_loss", loss, log_prob, old, torch.tensor([advantage]), 0.2)
        value = one_number("clipped_loss", result)
        require(value.requires_grad, "No gradient flows from your loss to `log_prob`.")
        (slope,) = torch.autograd.grad(value, log_prob)
        return float(value.detach()), float(slope)

    found = [at(clipped_loss, *case) for case in cases]

    def same(other: Callable[..., Tensor]) -> bool:
        wrong = [at(other, *case) for case in cases]
        return all(
            near(a, b, 1e-4) and near(c, d, 1e-4) for (a, c), (b, d) in zip(found, wrong, strict=True)
        )  # values and slopes

    if same(_clipped):
        batch = (torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 3.0]))
        value = float(one_number("clipped_loss", ask("clipped_loss", clipped_loss, *batch, 0.2)))
        require(not near(value, -4.0, 1e-4), "The loss of a batch is the mean over its tokens, not the sum.")
        require(near(value, -2.0, 1e-4), f"At ratio 1 the loss of Â = (1, 3) is {value:.3g}. It is minus their mean.")
        narrow = float(clipped_loss(torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([1.0]), 0.05))
        require(near(narrow, -1.05, 1e-4), f"With ε = .05 your loss clips elsewhere: {narrow:.3g}. Use `epsilon`.")
        return
    known: dict[str, Callable[..., Tensor]] = {
        "Your loss falls when the objective falls. A loss is minimised: mind the sign.": lambda *a: -_clipped(*a),
        "Where Â < 0 you take the maximum. A bad token that became likelier then has no gradient.": (
            lambda p, q, a, e: (
                -torch.where(
                    a > 0,
                    torch.minimum((p - q).exp() * a, (p - q).exp().clamp(1 - e, 1 + e) * a),
                    torch.maximum((p - q).exp() * a, (p - q).exp().clamp(1 - e, 1 + e) * a),
                ).mean()
            )
        ),
        "You take the larger of both terms. PPO takes the gain beyond the clip away.": (
            lambda p, q, a, e: -torch.maximum((p - q).exp() * a, (p - q).exp().clamp(1 - e, 1 + e) * a).mean()
        ),
        "Your loss is the clipped term alone. Tokens that went the wrong way cannot come back.": (
            lambda p, q, a, e: -((p - q).exp().clamp(1 - e, 1 + e) * a).mean()
        ),
        "Nothing is clipped in your loss.": lambda p, q, a, e: -((p - q).exp() * a).mean(),
        "The ratio is upside down: it is π over π_old.": lambda p, q, a, e: _clipped(q, p, a, e),
        "The ratio is a difference of logarithms in yours. `torch.exp` is missing.": (
            lambda p, q, a, e: -torch.minimum((p - q) * a, (p - q).clamp(1 - e, 1 + e) * a).mean()
        ),
        "You clip ratio · Â. It is the ratio that is clipped, and then multiplied.": (
            lambda p, q, a, e: -torch.minimum((p - q).exp() * a, ((p - q).exp() * a).clamp(1 - e, 1 + e)).mean()
        ),
        "The clipped term lacks the factor Â.": (
            lambda p, q, a, e: -torch.minimum((p - q).exp() * a, (p - q).exp().clamp(1 - e, 1 + e)).mean()
        ),
        "You clip to [−ε, ε]. The range lies around 1, because the ratio begins at 1.": (
            lambda p, q, a, e: -torch.minimum((p - q).exp() * a, (p - q).exp().clamp(-e, e) * a).mean()
        ),
        "The ratio is a quotient of logarithms in yours.": (
            lambda p, q, a, e: -torch.minimum(p / q * a, (p / q).clamp(1 - e, 1 + e) * a).mean()
        ),
    }
    for message, wrong in known.items():
        require(not same(wrong), message)
    for (ratio, advantage), (value, slope) in zip(cases, found, strict=True):
        right, right_slope = at(_clipped, ratio, advantage)
        if not (near(value, right, 1e-4) and near(slope, right_slope, 1e-4)):
            fail(
                f"At ratio {ratio:g} and Â = {advantage:g} your loss is {value:.3g}, and its gradient {slope:.3g}. "
                "Work out both terms of this case by hand, as in 6c, and compare."
            )


def two_policies_to_stay_near(near_which: Any) -> None:
    """You keep π_old and π_ref apart."""
    require(
        isinstance(near_which, dict) and set(near_which) == set(_NEAR),
        "`near_which` must have one word for each of 1 to 5.",
    )
    for sentence, word in near_which.items():
        require(word in ("old", "ref"), f"Sentence {sentence}: {word!r} is neither 'old' nor 'ref'.")
    hints = {
        1: "Sentence 1: which of the two policies is a fresh copy at each rollout?",
        2: "Sentence 2: which distance stands in J, multiplied by β?",
        3: "Sentence 3: one step is made where π is still the policy of the rollout. Which distance is 0 there?",
        4: "Sentence 4: what did β = 0 change in the last run, though the clip was there?",
        5: "Sentence 5: whose texts were labelled for the reward model?",
    }
    for sentence, hint in hints.items():
        require(near_which[sentence] == _NEAR[sentence], hint)


def _clipped(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage).mean()


def _ratio_mistakes(new: float, old: float) -> dict[str, float]:
    return {
        "The ratio is upside down: it is π over π_old.": old / new,
        "This is the difference. A ratio is a quotient.": new - old,
        "This is the logarithm of the ratio.": math.log(new / old),
    }


def _by_hand(name: str, answer: Any, right: float, mistakes: dict[str, float], otherwise: str) -> None:
    """A number worked out by hand; the name stands before what is said of a known mistake."""
    value = number(name, answer)
    if not near(value, right, 2e-3):
        explain(name, value, {f"`{name}`: {message}": wrong for message, wrong in mistakes.items()}, otherwise)


GATES: dict[str, Callable[..., None]] = {
    "6a": token_that_became_likely,
    "6b": token_that_should_fall,
    "6c": four_cases,
    "6d": loss_with_a_clip,
    "6e": two_policies_to_stay_near,
}
