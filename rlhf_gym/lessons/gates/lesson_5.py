"""Gates of lesson 5: the policy gradient, baselines and GAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_gym.lessons.answers import ask, fail, near, numbers, require


def gradient_by_hand(gradient: Any) -> None:
    """You can work out the step that one drawn token asks for."""
    found = numbers("gradient", gradient, 3)
    if np.allclose(found, [-1.0, 1.4, -0.4], atol=5e-3):
        return
    _known(
        found,
        {
            "R is missing: this is ∂log π/∂z alone.": [-0.5, 0.7, -0.2],
            "Each sign is the wrong way round. R is positive, so the drawn token must gain.": [1.0, -1.4, 0.4],
            "Tokens that were not drawn have a gradient too: −π_i each.": [0.0, 1.4, 0.0],
            "This is the gradient of π(a), with one factor π(a) too many.": [-0.3, 0.42, -0.12],
            "This is R times the derivative with respect to π, 1/π. The question is about logits.": [0.0, 2 / 0.3, 0.0],
            "The first token gains in yours. The second one was drawn.": [1.0, -0.6, -0.4],
        },
    )
    fail(f"`gradient` is {found.tolist()}. For each token take [drawn or not] − π_i, and multiply by R.")


def estimates_with_a_baseline(estimates: Any) -> None:
    """You can estimate the policy gradient, and take a baseline away."""
    pi = np.array([0.5, 0.3, 0.2])
    chosen = np.array([1, 0, 2, 0])
    reward = np.array([2.0, -1.0, 3.0, 0.5])
    baseline = 0.7
    try:
        found = np.asarray(ask("estimates", estimates, pi, chosen, reward, baseline), dtype=np.float64)
    except (TypeError, ValueError):
        fail("`estimates` must return an array of numbers, shape (n, V).")
    require(found.shape == (4, 3), f"`estimates` must return the shape (n, V) = (4, 3), but it is {found.shape}.")
    one_hot = np.eye(3)[chosen]
    weight = (reward - baseline)[:, None]
    if np.allclose(found, weight * (one_hot - pi), atol=1e-6):
        return
    _known(
        found,
        {
            "The baseline is not subtracted: `weight` is R alone.": reward[:, None] * (one_hot - pi),
            "The baseline is added. It is what was expected, so it is subtracted.": (
                (reward + baseline)[:, None] * (one_hot - pi)
            ),
            "The sign is the wrong way round: what was drawn would lose when R is above the baseline.": (
                -weight * (one_hot - pi)
            ),
            "`direction` moves only the drawn token. The others have −π_i.": weight * one_hot,
            "`direction` has one factor π(a) too many: it is ∇π and not ∇log π.": (
                weight * pi[chosen][:, None] * (one_hot - pi)
            ),
        },
    )
    fail("Your estimates are not (R − b)·∇log π. `direction` is 1 − π_i where i was drawn, and −π_i elsewhere.")


def leave_one_out(advantages: Any) -> None:
    """You can compare a response with the others."""
    found = numbers("advantages", advantages, 4)
    scores = np.array([1.0, 2.0, 5.0, 8.0])
    right = scores - (scores.sum() - scores) / 3
    if np.allclose(found, right, atol=5e-3):
        return
    _known(
        found,
        {
            "This is the mean of all four as baseline. A response is not among those it is compared with.": scores - 4,
            "The signs are the wrong way round: the best response must have a positive advantage.": -right,
            "These are the baselines. The advantage is R minus the baseline.": (scores.sum() - scores) / 3,
            "You took the sum of the others, and not their mean.": scores - (scores.sum() - scores),
            "You divided the sum of the others by 4. There are three of them.": scores - (scores.sum() - scores) / 4,
            "These are divided by a standard deviation. RLOO does not do that.": (scores - 4) / scores.std(ddof=1),
        },
    )
    require(abs(found.sum()) < 0.02, f"Your advantages add up to {found.sum():.3f}. RLOO's always add up to 0.")
    fail(f"`advantages` is {found.tolist()}. Take from each R the mean of the other three.")


def gae_by_hand(with_lambda_0: Any, with_lambda_1: Any) -> None:
    """You can work out both ends of GAE."""
    ends = {"with_lambda_0": [-0.1, -0.1, 0.7], "with_lambda_1": [0.5, 0.6, 0.7]}
    for name, answer in (("with_lambda_0", with_lambda_0), ("with_lambda_1", with_lambda_1)):
        found = numbers(name, answer, 3)
        if np.allclose(found, ends[name], atol=5e-3):
            continue
        other = ends["with_lambda_1" if name == "with_lambda_0" else "with_lambda_0"]
        _known(
            found,
            {
                f"`{name}` has the values of the other λ. λ = 0 looks one step ahead.": other,
                f"`{name}` lacks V(s_{{t+1}}): the critic's opinion of what comes next.": [-0.5, -0.4, 0.7],
                f"`{name}` has the wrong sign: value minus reward.": [-value for value in ends[name]],
                f"`{name}` are the returns. What was expected is not subtracted.": [1.0, 1.0, 1.0],
                f"`{name}` has a value after the end. Nothing comes after the last token.": [-0.1, -0.1, 1.0],
                f"`{name}` adds up the TD errors from the front. They are added from t to the end.": [-0.1, -0.2, 0.5],
            },
        )
        what = "r_t + V(s_{t+1}) − V(s_t)" if name == "with_lambda_0" else "G_t − V(s_t)"
        fail(f"`{name}` is {found.tolist()}. Each number is {what}.")


def gae_as_a_function(gae: Any) -> None:
    """You have GAE, and know what γ, λ and the critic do in it."""
    rewards = [1.0, -2.0, 3.0, 0.5]
    values = [0.5, 0.4, -0.3, 0.8]

    def returned(gamma: float, lam: float) -> np.ndarray:
        return numbers("gae(…)", ask("gae", gae, list(rewards), list(values), gamma, lam), 4)

    found = returned(0.9, 0.5)
    right = _gae(rewards, values, 0.9, 0.5)
    if np.allclose(found, right, atol=1e-5):
        exact = numbers("gae(…)", ask("gae", gae, [0.0, 0.0, 1.0], [0.5, 0.4, 0.3], 1.0, 0.95), 3)
        require(
            np.allclose(exact, [0.43675, 0.565, 0.7], atol=1e-5),
            f"With r = (0, 0, 1), V = (.5, .4, .3), γ = 1, λ = .95 yours is {exact.tolist()}.",
        )
        return
    zero = [0.0] * 4
    summed = _gae(rewards, values, 0.9, 0.0)
    _known(
        found,
        {
            "λ has no effect in yours: it is as with λ = 1.": _gae(rewards, values, 0.9, 1.0),
            "λ has no effect in yours: it is as with λ = 0. Is `next_advantage` updated and used?": summed,
            "γ has no effect in yours: it is as with γ = 1.": _gae(rewards, values, 1.0, 0.5),
            "Later advantages are discounted by λ alone. The factor is γ·λ.": _gae(
                rewards, values, 0.9, 0.5, trace=0.5
            ),
            "V(s_{t+1}) is not discounted. It is one step away: γ.": _gae(rewards, values, 1.0, 0.5, trace=0.45),
            "V(s_{t+1}) is always 0 in yours. Is `next_value` updated and used?": (
                _gae(rewards, values, 0.9, 0.5, following=zero)
            ),
            "V(s_t) is not subtracted in δ_t.": _gae(rewards, zero, 0.9, 0.5, following=[*values[1:], 0.0]),
            "The critic plays no part in yours.": _gae(rewards, zero, 0.9, 0.5),
            "`next_value` holds a reward. It is the critic's value of the next state.": (
                _gae(rewards, values, 0.9, 0.5, following=[*rewards[1:], 0.0])
            ),
            "`next_advantage` holds δ alone, so that later TD errors are lost.": [
                *(summed[:-1] + 0.45 * summed[1:]),
                summed[-1],
            ],
            "The advantages are in the wrong order: the last token's stands first.": right[::-1],
            "All signs are the wrong way round.": -right,
        },
    )
    if not near(float(found[-1]), rewards[-1] - values[-1], 1e-5):
        fail("The last advantage must be r − V: nothing comes after the end.")
    fail("Your advantages are not δ_t + γ·λ·Â_{t+1}. Check δ_t first, with λ = 0.")


def _gae(
    rewards: list[float],
    values: list[float],
    gamma: float,
    lam: float,
    *,
    trace: float | None = None,
    following: list[float] | None = None,
) -> np.ndarray:
    """GAE, (T,); `trace` stands in the place of γλ and `following` in that of V(s_{t+1}), for known mistakes."""
    next_values = [*values[1:], 0.0] if following is None else following
    factor = gamma * lam if trace is None else trace
    found = np.zeros(len(rewards))
    advantage = 0.0
    for t in reversed(range(len(rewards))):
        advantage = rewards[t] + gamma * next_values[t] - values[t] + factor * advantage
        found[t] = advantage
    return found


def _known(found: np.ndarray, mistakes: dict[str, Any]) -> None:
    """Say which known mistake gives these numbers, if one does."""
    for message, wrong in mistakes.items():
        require(not np.allclose(found, wrong, atol=5e-3), message)


GATES: dict[str, Callable[..., None]] = {
    "5a": gradient_by_hand,
    "5b": estimates_with_a_baseline,
    "5c": leave_one_out,
    "5d": gae_by_hand,
    "5e": gae_as_a_function,
}
