"""Gates of lesson 9: the failure clinic, and labels by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.lessons.answers import ask, explain, fail, near, number, require

if TYPE_CHECKING:
    from rlhf_gym.preferences import Preference

Curves = Mapping[str, Sequence[float]]

_DIAGNOSES = {"A": "fast", "B": "length", "C": "healthy", "D": "critic", "E": "kl", "F": "collapse", "G": "slow"}
_HINTS = {
    "healthy": "Which of its curves do you find ill, beside those of the other runs?",
    "kl": "Its score rises on and on. Which curve rises with it?",
    "fast": "What happens to its score in the first iterations, and how much was clipped then?",
    "slow": "Which of its curves has moved at all?",
    "length": "Its score rises. What else rises by half?",
    "collapse": "Its score rises. How many different responses are left?",
    "critic": "Its policy learns. Does everything in it learn?",
}
"""What to look at in a run, by its right diagnosis."""
_SAME_AT_LEAST = 10
"""Of 12 pairs that come twice: a coin agrees with itself in so many with probability .019."""
_RISE = 1.2
"""What the score of a treated run must gain; with a learning rate of 5e-4 it gains 1.5."""


def diagnoses_of_runs(diagnoses: Any, runs: Mapping[str, Curves]) -> None:
    """You can tell from its curves what is wrong with a run."""
    require(
        isinstance(diagnoses, dict) and set(diagnoses) == set(_DIAGNOSES),
        "`diagnoses` must have one word for each run.",
    )
    for letter, word in diagnoses.items():
        require(word in _HINTS, f"Run {letter}: {word!r} is not one of {', '.join(_HINTS)}.")
    for letter, word in diagnoses.items():
        right = _DIAGNOSES[letter]
        if word != right:
            against = _against(word, runs[letter])
            fail(f"Run {letter} is not {word!r}. {against or _HINTS[right]}")


def _against(claimed: str, run: Curves) -> str | None:
    """What in the curves of a run speaks against a diagnosis; None where no single number does."""
    score = run["score"]
    kl = run["kl"]
    length = run["length"]
    different = run["different"]
    clipped = run["clipped"]
    match claimed:
        case "kl" if kl[-1] < 10:
            return (
                f"At the end its KL is {kl[-1]:.1f} nats, and has stayed there. Without a price it would go on rising."
            )
        case "kl" if score[-1] < score[0]:
            return f"The score falls from {score[0]:.2f} to {score[-1]:.2f}. Without a KL penalty it would rise most."
        case "fast" if clipped[0] < 0.3:
            return f"In its first update {clipped[0]:.0%} of the tokens are clipped. Far too large steps clip most."
        case "slow" if max(kl) > 0.5:
            return f"Its policy has moved: the KL comes to {max(kl):.1f} nats."
        case "length" if length[-1] < 1.25 * length[0]:
            return f"Its responses have {length[0]:.1f} tokens at the start and {length[-1]:.1f} at the end."
        case "length" if score[-1] < score[0]:
            return "Its responses grow, but the score falls. A reward that pays for words would rise with them."
        case "collapse" if min(different) > 0.5:
            return f"At no time fewer than {min(different):.0%} of its responses are different."
        case "collapse" if score[-1] < score[0]:
            return (
                f"Its score falls from {score[0]:.2f} to {score[-1]:.2f}. Who settles on the reward's favourite has a "
                "high score."
            )
        case "critic" if max(run["explained"]) > 0.02:
            return f"Its critic explains up to {max(run['explained']):.0%} of the variance of the returns."
    return None


def treatment(learning_rate: Any, treated: Callable[[float], Curves]) -> None:
    """You have treated a run whose steps were too large."""
    rate = number("learning_rate", learning_rate)
    require(rate > 0, f"The learning rate is {rate:g}. It must be above 0.")
    run = treated(rate)
    score = run["score"]
    entropy = run["entropy"]
    kl = run["kl"]
    measured = (
        f"With {rate:g} the score goes from {score[0]:+.2f} to {score[-1]:+.2f}, the entropy from {entropy[0]:.2f} to "
        f"{entropy[-1]:.2f}, and the KL to {kl[-1]:.2f} nats."
    )
    require(entropy[-1] > 0.5 * entropy[0], f"{measured} The steps are still too large: the policy is broken.")
    if score[-1] - score[0] < _RISE:
        if kl[-1] < 0.3:
            fail(f"{measured} That is too little in so short a time. Larger steps are possible.")
        fail(f"{measured} The policy moves a lot, and its score does not rise much. Smaller steps may do better.")


def interval_of_a_share(lower_end: Any) -> None:
    """You can say how sure a share is."""
    for right, n in ((35, 50), (9, 10), (0, 20)):
        found = number("lower_end(…)", ask("lower_end", lower_end, right, n))
        interval = share_interval(right / n, n)
        if near(found, interval.low, 1e-3):
            continue
        p = right / n
        plain = 1.96 * math.sqrt(p * (1 - p) / n)
        mistakes = {
            "This is the share itself.": p,
            "This is the upper end: mind the sign of the root.": interval.high,
            "This is p − z·√(p·(1 − p)/n). It is too sure of small samples, and Wilson's has three more terms.": p
            - plain,
            "The division by 1 + z²/n is missing.": interval.low * (1 + 1.96**2 / n),
        }
        explain("lower_end(…)", found, mistakes, f"For {right} of {n} it should be another number.")


def labels_by_hand(
    choices: Any,
    pairs: Sequence[tuple[str, str, str]],
    twice: Sequence[tuple[int, int]],
    train: Callable[[list[Preference]], Callable[[list[Any], list[Any]], np.ndarray]],
    heldout: Sequence[Preference],
) -> None:
    """A reward model has learned from your labels."""
    require(isinstance(choices, str), "`choices` must be a text of the digits 1 and 2.")
    digits = "".join(choices.split())
    wrong = sorted(set(digits) - {"1", "2"})
    require(not wrong, f"`choices` has {wrong[:1]}. Write 1 or 2 for each pair.")
    require(len(digits) == len(pairs), f"There are {len(pairs)} pairs, and you wrote {len(digits)} digits.")
    repeated = {later for _, later in twice}
    first_time = [i for i in range(len(pairs)) if i not in repeated]
    _judge_sides(sum(digits[i] == "1" for i in first_time), len(first_time))
    same = sum(digits[a] != digits[b] for a, b in twice)  # the sides are changed the second time
    require(
        same >= _SAME_AT_LEAST,
        f"{len(twice)} pairs came twice. You chose the same response in {same} of them; {_SAME_AT_LEAST} are needed. "
        "Read the guidelines once more, and go through your labels with one eye on them.",
    )
    labels = [_preference(pairs[i], digits[i]) for i in first_time]
    scores = train(labels)
    prompts = [one.prompt for one in heldout]
    chosen = np.asarray(scores(prompts, [one.chosen for one in heldout]))  # (n,)
    rejected = np.asarray(scores(prompts, [one.rejected for one in heldout]))  # (n,)
    share = share_interval(float((chosen > rejected).mean()), len(heldout))
    measured = (
        f"The r_φ that learned from your labels is right in {share.rate:.0%} of {len(heldout)} held-out pairs; the "
        f"interval is {share.low:.2f} to {share.high:.2f}."
    )
    require(share.high >= 0.5, f"{measured} That is surely less than a coin. Did you write the worse response?")
    require(share.low > 0.5, f"{measured} A coin may do as well. Where do your labels leave the guidelines?")


def _judge_sides(first: int, count: int) -> None:
    """Whether one side was chosen more often than chance allows (three standard deviations)."""
    if abs(first - count / 2) > 1.5 * math.sqrt(count):
        fail(
            f"You chose the response that stands first in {first} of {count} pairs. The order was drawn at random, so "
            "about half is to be expected. Did you read both?"
        )


def _preference(pair: tuple[str, str, str], digit: str) -> Preference:
    from rlhf_gym.preferences import Preference  # brings Transformers, without which the other lessons begin sooner

    prompt, first, second = pair
    return Preference(prompt, first, second) if digit == "1" else Preference(prompt, second, first)


GATES: dict[str, Callable[..., None]] = {
    "9a": diagnoses_of_runs,
    "9b": treatment,
    "9c": interval_of_a_share,
    "9d": labels_by_hand,
}
