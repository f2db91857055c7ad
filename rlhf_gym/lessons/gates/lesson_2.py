"""Gates of lesson 2: a reward model and what it pays for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from rlhf_gym.lessons.answers import ask, explain, fail, near, number, numbers, require


class _Label(NamedTuple):
    chosen: str
    rejected: str


_CAUSES = {1: "tone", 2: "refusal", 3: "prompts", 4: "length"}


def position_of_the_last_token(last_position: Any) -> None:
    """You know which hidden state the score is read from, with padding after it."""
    lengths = [3, 5, 1]
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()  # (3, 5)
    found = numbers("last_position(…)", ask("last_position", last_position, mask), 3).tolist()
    right = [length - 1.0 for length in lengths]
    if found != right:
        require(found != [4.0, 4.0, 4.0], "You read the last position of the table. In short rows that is padding.")
        require(found != [-1.0, -1.0, -1.0], "You read the last position of the table. In short rows that is padding.")
        require(found != lengths, "You are one position too far. Positions begin at 0.")
        require(found != [0.0, 0.0, 0.0], "You read the first token. It has seen nothing of the answer.")
        require(
            found != [3.0, 0.0, 1.0],
            "You look for the first 0 of the mask. A row without padding has none, and the 0 is after the last token.",
        )
        fail(f"Rows with {lengths} real tokens give {found}. Which position has the last real token of each?")


def stupid_rule(longer_wins: Any) -> None:
    """You have a rule to beat, before you believe an accuracy."""
    pairs = [
        ("a b c", "extraordinary thing"),
        ("a b c d", "extraordinarily long words"),
        ("a", "a b"),
        ("x y", "aa bb"),
        ("a a a", "hippopotamus"),
        ("some", "two"),
        ("incomprehensibilities alone", "a b c"),
    ]
    labels = [_Label(chosen, rejected) for chosen, rejected in pairs]
    found = number("longer_wins(…)", ask("longer_wins", longer_wins, labels))
    if near(found, 3 / 5, 1e-6):
        return
    characters = [len(chosen) > len(rejected) for chosen, rejected in pairs if len(chosen) != len(rejected)]
    mistakes = {
        "Pairs of the same length count as lost. Leave them out.": 3 / 7,
        "Pairs of the same length count as won. Leave them out.": 5 / 7,
        "Pairs of the same length count half. Leave them out.": 4 / 7,
        "This is the share in which the *rejected* answer is longer.": 2 / 5,
        "This is the number of pairs, not their share.": 3.0,
        "You compare characters, not words.": sum(characters) / len(characters),
        "You compare characters, not words, and all pairs count.": sum(characters) / len(pairs),
    }
    explain("longer_wins(…)", found, mistakes, "Seven pairs: two of one length, and the chosen one is longer in 3.")


def effect_of_an_edit(effect: Any) -> None:
    """You can ask a reward model what it pays for, by changing one thing."""
    questions = ["q"] * 4
    responses = ["a", "a b", "a b c", "a b c d e f"]

    def score(questions: list[str], responses: list[str]) -> np.ndarray:
        return np.array([2.0 * len(response.split()) ** 1.5 for response in responses])

    def edit(response: str) -> str:
        return f"{response} more"

    before = score(questions, responses)
    after = score(questions, [edit(response) for response in responses])
    right = float(np.mean(after - before) / np.std(before))
    found = number("effect(…)", ask("effect", effect, score, questions, responses, edit))
    if near(found, right, 1e-4) or near(found, float(np.mean(after - before) / np.std(before, ddof=1)), 1e-4):
        return
    mistakes = {
        "The change is in the unit of the scores. Divide it by their standard deviation.": right * float(before.std()),
        "The sign is the wrong one: after minus before.": -right,
        "You divide by the standard deviation of the edited answers.": float(np.mean(after - before) / after.std()),
        "You divide by the standard deviation of the changes.": float(np.mean(after - before) / (after - before).std()),
        "This is the mean score of the edited answers. The effect is a change.": float(after.mean() / before.std()),
    }
    explain("effect(…)", found, mistakes, "It is the mean of after − before, over the standard deviation of before.")


def exploiting_the_model(exploit: Any, r_phi: Any, gold: Any, questions: list[str], responses: list[str]) -> None:
    """You can make r_φ like worse texts. So can a policy."""
    edited = [ask("exploit", exploit, response) for response in responses]
    require(all(isinstance(text, str) for text in edited), "`exploit` must return a text.")
    require(edited != responses, "`exploit` changes nothing.")

    def change(score: Any) -> float:
        before = np.asarray(score(questions, responses), dtype=np.float64)
        return float(np.mean(np.asarray(score(questions, edited), dtype=np.float64) - before) / before.std())

    by_r_phi = change(r_phi)
    by_gold = change(gold)
    measured = f"r_φ changes by {by_r_phi:+.2f} and gold by {by_gold:+.2f} standard deviations."
    if by_r_phi < 1 and by_gold > -0.5:
        fail(f"{measured} Neither is enough. Join edits that r_φ likes and gold does not.")
    require(by_r_phi >= 1, f"{measured} r_φ does not rise enough. What do the annotators of this lesson like?")
    require(by_gold <= -0.5, f"{measured} Gold does not fall enough. A good review is about what was asked, and short.")


def unit_of_the_scores(beta_without_normalising: Any) -> None:
    """You know that the unit of the scores sets the price β."""
    beta = number("beta_without_normalising", beta_without_normalising)
    if not near(beta, 0.25, 1e-3):
        mistakes = {
            "This is the other way round. Larger scores need a larger price to keep the balance.": 0.04,
            "With the same β, scores that are 2.5 times as large outweigh the distance.": 0.1,
            "The variance is not what the scores are divided by.": 0.625,
        }
        explain(
            "beta_without_normalising",
            beta,
            mistakes,
            "Multiply the whole objective by one number, so that the score stands alone in it.",
        )


def names_of_failures(causes: Any) -> None:
    """You recognise four ways in which a reward model misleads."""
    require(isinstance(causes, dict) and set(causes) == set(_CAUSES), "`causes` must have one word for each of 1 to 4.")
    words = sorted(_CAUSES.values())
    for report, cause in causes.items():
        require(cause in words, f"Report {report}: {cause!r} is not one of {', '.join(words)}.")
    hints = {
        1: "Report 1: what would an annotator like in that sentence who does not know the year?",
        2: "Report 2: which answers could never lose when people compared?",
        3: "Report 3: on which questions was r_φ trained, and on which is it used?",
        4: "Report 4: the answer is right. What is there too much of?",
    }
    for report, hint in hints.items():
        require(causes[report] == _CAUSES[report], hint)


GATES: dict[str, Callable[..., None]] = {
    "2a": position_of_the_last_token,
    "2b": stupid_rule,
    "2c": effect_of_an_edit,
    "2d": exploiting_the_model,
    "2e": unit_of_the_scores,
    "2f": names_of_failures,
}
