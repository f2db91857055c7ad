"""Gates of lesson 3: the KL penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_gym.lessons.answers import ask, explain, fail, near, number, numbers, one_number, require

_PI = torch.tensor([0.5, 0.3, 0.15, 0.05])
_REF = torch.tensor([0.2, 0.3, 0.1, 0.4])


def directions(kl: Any, reverse_kl: Any) -> None:
    """You can tell KL(π‖π_ref) from KL(π_ref‖π)."""
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    backward = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    for name, answer, right, other in (("kl", kl, forward, backward), ("reverse_kl", reverse_kl, backward, forward)):
        value = number(name, answer)
        if near(value, right, 1.5e-3):
            continue
        require(value >= 0, f"`{name}` is negative. No KL is. Which distribution is the mean over?")
        if near(value, other, 1.5e-3):
            fail(f"`{name}` has the other direction. The mean is over the first distribution.")
        mistakes = {
            f"`{name}` is in bits. Use the natural logarithm.": right / math.log(2),
            f"`{name}` is a plain sum of logarithms. Each one is weighted by the first distribution.": abs(
                math.log(1.8) + math.log(0.2)
            ),
        }
        explain(name, value, mistakes, "Two terms: probability under the first one, times log of first over second.")


def estimators(k1: Any, k2: Any, k3: Any) -> None:
    """You know three estimates of the KL, and which of them may be negative."""
    log_p = _PI.log()
    log_q = _REF.log()
    exact = float((_PI * (log_p - log_q)).sum())

    def values(name: str, function: Any) -> Tensor:
        result = ask(name, function, log_p, log_q)
        found = numbers(f"{name}(…)", result, 4)
        return torch.from_numpy(found)

    found = values("k1", k1)
    require(
        not torch.allclose(found, (log_q - log_p).double(), atol=1e-5),
        "`k1` has the wrong sign: its mean over π is −KL(π‖π_ref).",
    )
    require(
        near(float((_PI * found).sum()), exact, 1e-4),
        f"The mean of `k1` over π is {float((_PI * found).sum()):.4f}, and KL(π‖π_ref) is {exact:.4f}.",
    )
    found = values("k2", k2)
    require((found >= -1e-6).all(), "`k2` is a square, and never negative. Yours is.")
    require(
        not torch.allclose(found, ((log_p - log_q) ** 2).double(), atol=1e-5),
        "`k2` is twice as large as it should be: a factor is missing.",
    )
    require(torch.allclose(found, (0.5 * (log_p - log_q) ** 2).double(), atol=1e-5), "`k2` is half a square of k1.")
    found = values("k3", k3)
    swapped = torch.expm1(log_p - log_q) - (log_p - log_q)
    require(
        not torch.allclose(found, swapped.double(), atol=1e-5),
        "`k3` has ρ upside down. Its mean over π is then no KL at all.",
    )
    require((found >= -1e-6).all(), "`k3` is never negative: ρ − 1 is at least log ρ. Yours is negative somewhere.")
    require(
        near(float((_PI * found).sum()), exact, 1e-4),
        f"The mean of `k3` over π is {float((_PI * found).sum()):.4f}, and KL(π‖π_ref) is {exact:.4f}.",
    )


def rewards_of_tokens(token_rewards: Any, total: Any) -> None:
    """You can charge the KL token by token, and add the score at the end."""
    rewards = numbers("token_rewards", token_rewards, 3).tolist()
    right = [-0.1, 0.05, 1.85]
    if not all(near(a, b, 1e-3) for a, b in zip(rewards, right, strict=True)):
        known = {
            "You pay for leaving π_ref. The log-ratio is a cost: it has a minus.": [0.1, -0.05, 2.15],
            "β is missing.": [-0.2, 0.1, 1.7],
            "The score falls on every token. It is the score of the whole response, and falls on the last one.": [
                1.9,
                2.05,
                1.85,
            ],
            "The last token has a KL of its own, besides the score.": [-0.1, 0.05, 2.0],
            "The score is missing.": [-0.1, 0.05, -0.15],
        }
        for message, wrong in known.items():
            if all(near(a, b, 1e-3) for a, b in zip(rewards, wrong, strict=True)):
                fail(message)
        fail(f"`token_rewards` is {rewards}. Put each log-ratio into the formula; only the last token has the score.")
    value = number("total", total)
    if not near(value, 1.8, 1e-3):
        mistakes = {
            "This adds the size of the log-ratios. The second one is negative, and lowers the cost.": 1.7,
            "This is the score. The penalty is missing.": 2.0,
        }
        explain("total", value, mistakes, "It is the sum of the three rewards.")


def loss_of_the_policy(policy_loss: Any) -> None:
    """Your loss has the gradient of J, and you know which log π is differentiated."""
    score = torch.tensor([0.0, 1.0, 2.0, -1.0])
    beta = 0.5
    logits = _PI.log().clone().requires_grad_(True)

    def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
        log_prob = torch.log_softmax(logits, dim=0)
        return torch.autograd.grad(loss(log_prob), logits)[0]

    def on_samples(loss: Callable[..., Any]) -> Tensor:
        """The mean gradient over y ~ π, exactly: the loss of each response, weighted by its probability."""

        def total(log_prob: Tensor) -> Tensor:
            terms = []
            for i in range(4):
                result = ask("policy_loss", loss, log_prob[i : i + 1], _REF.log()[i : i + 1], score[i : i + 1], beta)
                one = one_number("policy_loss", result)
                require(one.requires_grad, "No gradient flows from your loss to `log_prob`.")
                terms.append(_PI[i] * one)
            return torch.stack(terms).sum()

        return gradient(total)

    def minus_j(log_prob: Tensor) -> Tensor:
        return -(log_prob.exp() * (score - beta * (log_prob - _REF.log()))).sum()

    found = on_samples(policy_loss)
    wanted = gradient(minus_j)
    batch = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 3.0])
    two = one_number("policy_loss", ask("policy_loss", policy_loss, *batch, beta))
    if torch.allclose(found, wanted, atol=1e-5):
        require(near(float(two), 3.5, 1e-4), "The loss of a batch is the mean over its responses, not the sum.")
        return

    def same(other: Callable[..., Tensor]) -> bool:
        return torch.allclose(found, on_samples(other), atol=1e-5)

    require(
        not torch.allclose(found, -wanted, atol=1e-5),
        "Your loss falls when J falls. A loss is minimised: mind the sign.",
    )
    if same(lambda p, q, s, b: -((s - b * (p - q)) * p).mean()):
        fail("A gradient goes through the reward. What a response has earned is a number: see `.detach()`.")
    if same(lambda p, q, s, b: -((s + b * (p - q)).detach() * p).mean()):
        fail("Your loss rewards the policy for leaving π_ref. Mind the sign of the log-ratio.")
    if same(lambda p, q, s, b: -(s * p).mean()):
        fail("Your loss has the score's gradient, and none of the penalty. Where is the log-ratio differentiated away?")
    if same(lambda p, q, s, b: -(s - b * (p - q)).mean()):
        fail("You differentiate the reward itself. The reward weighs ∇log π; it is not what is differentiated.")
    if same(lambda p, q, s, b: -((s - b * p).detach() * p).mean()):
        fail("π_ref does not occur in your reward.")
    fail("The mean gradient of your loss is not −∇J. Work out the reward first, then multiply it by log π.")


GATES: dict[str, Callable[..., None]] = {
    "3a": directions,
    "3b": estimators,
    "3c": rewards_of_tokens,
    "3d": loss_of_the_policy,
}
