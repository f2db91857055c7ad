"""Gates of lesson 8: Goodhart's law."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.lessons.answers import ask, explain, fail, near, number, numbers, require

_ALPHA = 1.1
_DECLINE = 0.4


def stopping_in_time(
    stops_at: Any, watched: Mapping[float, Sequence[Mapping[str, Any]]], gold: Mapping[float, Sequence[float]]
) -> None:
    """You have a rule that notices over-optimisation without gold."""
    for kl_coef in sorted(watched, reverse=True):
        steps = watched[kl_coef]
        require(callable(stops_at), "`stops_at` must be a function.")
        try:
            place = stops_at(steps)
        except KeyError as error:
            fail(f"A step has no {error}. It has what one can watch: score, kl, entropy, length, samples. Gold is not.")
        except Exception as error:
            fail(f"`stops_at` stopped with {type(error).__name__}: {error}.")
        if place is None:
            require(
                kl_coef > 0, "Your rule never stops the run with β = 0. Which quantity moves away from its start in it?"
            )
            continue
        place = int(number("stops_at(…)", place))
        require(0 <= place < len(steps), f"`stops_at` returns {place}. The places are 0 to {len(steps) - 1}, or None.")
        tokens = steps[place]["tokens"]
        require(
            kl_coef == 0,
            f"Your rule stops the run with β = {kl_coef:g} after {tokens:,} tokens. Nothing is wrong there: a false "
            "alarm.",
        )
        _judge_stop(place, tokens, np.asarray(gold[kl_coef], dtype=np.float64))


def _judge_stop(place: int, tokens: int, gold: np.ndarray) -> None:
    """Whether gold (steps,) at this place is at least half way from its start to its highest value."""
    peak = int(gold.argmax())
    gained = float(gold[peak] - gold[0])
    kept = float(gold[place] - gold[0]) / gained
    if kept >= 0.5:
        return
    if place < peak:
        fail(f"Your rule stops after {tokens:,} tokens. Gold is still rising: only {kept:.0%} of its gain is there.")
    require(kept > 0, f"Your rule stops after {tokens:,} tokens. Gold is below that of π_ref by then: too late.")
    fail(f"Your rule stops after {tokens:,} tokens. Of what gold had gained, {kept:.0%} is left: too late.")


def peaks_by_hand(peak_best_of_n: Any, peak_rl: Any, nats_at_peak_rl: Any) -> None:
    """You can say where over-optimisation begins, from two numbers."""
    value = number("peak_best_of_n", peak_best_of_n)
    if not near(value, 1.0):
        mistakes = {
            "That is where the curve of the best of n is 0 again. The peak is half way.": 2.0,
            "You have b over α. A larger b must bring the peak nearer.": 0.25,
        }
        explain("peak_best_of_n", value, mistakes, "Set the derivative α − 2·b·d to 0.")
    value = number("peak_rl", peak_rl)
    if not near(value, math.e):
        mistakes = {
            "That is where the curve of RL is 0 again. The derivative has one more term, −b.": math.e**2,
            "That is log d, not d.": 1.0,
            "The term −b of the derivative has the wrong sign.": math.e**3,
        }
        explain("peak_rl", value, mistakes, "Set the derivative α − b·log d − b to 0, and solve for d.")
    value = number("nats_at_peak_rl", nats_at_peak_rl)
    if not near(value, math.e**2):
        mistakes = {
            "That is d. d is the root of the KL.": math.e,
            "That is the root of d. d is the root of the KL already.": math.sqrt(math.e),
        }
        explain("nats_at_peak_rl", value, mistakes, "d = √KL.")


def fitting_the_law(fit: Any) -> None:
    """You can fit the law of over-optimisation to a run."""
    kl = np.array([0.2, 0.7, 1.5, 3.0, 6.0, 12.0, 25.0, 50.0])
    d = np.sqrt(kl)
    gain = d * (_ALPHA - _DECLINE * np.log(d))
    result = ask("fit", fit, kl, gain)
    alpha, decline = numbers("fit(…)", result, 2).tolist()
    if near(alpha, _ALPHA, 1e-4) and near(decline, _DECLINE, 1e-4):
        return

    def solve(*columns: np.ndarray) -> list[float]:
        return np.linalg.lstsq(np.stack(columns, axis=1), gain, rcond=None)[0].tolist()

    known = {
        "b has the wrong sign: the second feature is −d·log d.": [_ALPHA, -_DECLINE],
        "α and b have changed places.": [_DECLINE, _ALPHA],
        "You fit over the KL. The law is in d, its root.": solve(kl, -kl * np.log(kl)),
        "This is the curve of the best of n, d·(α − b·d).": solve(d, -(d**2)),
        "The logarithm is that of the KL. It is that of d, half as large.": solve(d, -d * np.log(kl)),
        "The logarithm has the base 10. Use the natural one.": solve(d, -d * np.log10(d)),
        "The second feature lacks the factor d.": solve(d, -np.log(d)),
    }
    for message, wrong in known.items():
        require(not np.allclose([alpha, decline], wrong, atol=1e-4), message)
    fail(f"Points with α = {_ALPHA} and b = {_DECLINE} give α = {alpha:.3g} and b = {decline:.3g}.")


def regression_to_the_mean(expected_gold: Any, sigma: Any) -> None:
    """You know how much of a selected score is noise."""
    value = number("expected_gold", expected_gold)
    if not near(value, 2.0):
        mistakes = {
            "You divide by 1 + σ. Variances add up, so it is σ².": 2.5 / 1.5,
            "This is the proxy. A part of it is noise that was selected.": 2.5,
            "You multiply by 1 + σ². Gold is less than the proxy promises.": 2.5 * 1.25,
            "You divide by the standard deviation of the proxy. Divide by its variance.": 2.5 / math.sqrt(1.25),
        }
        explain("expected_gold", value, mistakes, "Divide the proxy by 1 + σ².")
    value = number("sigma", sigma)
    if not near(value, math.sqrt(2)):
        mistakes = {
            "This is σ². Take the root.": 2.0,
            "This is 1 + σ².": 3.0,
            "The 1 is missing: it is gold's own variance.": math.sqrt(3),
        }
        explain("sigma", value, mistakes, "3/(1 + σ²) must be 1.")


def curing_it(kl_coef: Any, run: Callable[[float], Mapping[str, float]]) -> None:
    """You have held a policy where its reward model is right."""
    beta = number("kl_coef", kl_coef)
    require(beta >= 0, f"β = {beta:g} rewards the policy for leaving π_ref. It must be at least 0.")
    found = run(beta)
    measured = (
        f"With β = {beta:g} the run ends with r_φ {found['score']:+.2f}, gold {found['gold']:+.2f} and a KL of "
        f"{found['kl']:.1f} nats."
    )
    if found["kl"] > 8:
        fail(f"{measured} The policy has left the texts that r_φ knows. A higher price holds it.")
    require(found["gold"] >= 1.2, f"{measured} The policy has hardly moved. A lower price lets it learn.")


GATES: dict[str, Callable[..., None]] = {
    "8a": stopping_in_time,
    "8b": peaks_by_hand,
    "8c": fitting_the_law,
    "8d": regression_to_the_mean,
    "8e": curing_it,
}
