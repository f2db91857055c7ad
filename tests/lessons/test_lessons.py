"""Every lesson, cell by cell: its blanks are refused, its solutions pass, and wrong answers are told what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_gym.lessons import GATES, Cell, LessonError, NotYet, check, find_lessons, solved
from rlhf_gym.lessons.checking import RECORD_VARIABLE
from rlhf_gym.lessons.gates import gates_of

LESSONS = {lesson.number: lesson for lesson in find_lessons()}


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Passed gates go to a file of the test's own, and lessons begin in any order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RECORD_VARIABLE, str(tmp_path / "record.jsonl"))
    return tmp_path / "record.jsonl"


def run_cell(cell: Cell, names: dict[str, Any]) -> None:
    exec(compile(cell.source, cell.title or "cell", "exec"), names)


@pytest.mark.parametrize("number", LESSONS)
def test_blanks_are_refused_and_solutions_pass(number: int, record: Path) -> None:
    """In one run: each gate is tried with its exercise as the student finds it, then with the solution."""
    cells = LESSONS[number].cells
    names: dict[str, Any] = {"__name__": "lesson"}
    blank = answer = Cell("")
    refused = []
    for cell, filled in zip(cells, solved(cells), strict=True):
        if cell.markdown:
            continue
        if cell.kind == "Exercise":
            blank, answer = cell, filled
            continue
        if cell.kind == "Gate":
            assert blank.gate == cell.gate  # nothing that runs long stands between the two
            run_cell(blank, names)
            with pytest.raises(NotYet, match=rf"Gate {cell.gate}: `\w+` .*blank") as caught:
                run_cell(cell, names)
            assert str(caught.value).split("`")[1] in blank.source
            refused.append(cell.gate)
            run_cell(answer, names)
        run_cell(filled, names)
    passed = [line["gate"] for line in map(json.loads, record.read_text().splitlines()) if line["passed"]]
    assert refused == passed == gates_of(number)


def test_lessons_have_all_their_parts() -> None:
    for lesson in LESSONS.values():
        cells = lesson.cells
        kinds = [cell.kind for cell in cells]
        text = "\n".join(cell.source for cell in cells if cell.markdown)
        assert "**Question.**" in text
        assert "**Change one line.**" in text
        assert "Prediction" in kinds
        assert all("<details><summary>" in cell.source for cell in cells if cell.kind == "Solution")
        assert [cell.gate for cell in cells if cell.kind == "Gate"] == gates_of(lesson.number)


def scripted_play(*, after_end: bool = False, only_terminated: bool = False, keep: Any = None) -> Any:
    def play(env, prompt, tokens):
        env.reset(options={"prompt": prompt})
        rewards = []
        for token in tokens:
            _, reward, terminated, truncated, _ = env.step(token)
            rewards.append(reward)
            if not after_end and (terminated or (truncated and not only_terminated)):
                break
        return rewards if keep is None else keep(rewards)

    return play


def log_prob_with(shift: int, first: int, table=lambda logits: torch.log_softmax(logits, -1), share=1.0) -> Any:
    def response_log_prob(logits, ids, start):
        rows = table(logits)
        return share * sum(rows[i - shift, ids[i]] for i in range(start + first, len(ids)))

    return response_log_prob


def past_sums(rewards, gamma):
    return [sum(rewards[: t + 1]) for t in range(len(rewards))]


def all_discounted(rewards, gamma):
    found, following = [], 0.0
    for reward in reversed(rewards):
        following = gamma * (reward + following)
        found.append(following)
    return found[::-1] if gamma < 1 else [3.0, 2.0, 2.0, 4.0]


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "0a": [
        ({"play": scripted_play(after_end=True)}, "after the episode is terminated"),
        ({"play": scripted_play(only_terminated=True)}, "after the episode is truncated"),
        ({"play": scripted_play(keep=lambda rewards: rewards[-1:])}, "must have 3 numbers"),
        ({"play": scripted_play(keep=lambda rewards: rewards[::-1])}, "environment gives the rewards"),
    ],
    "0b": [
        ({"probability": 0.8, "log_probability": -4.605}, "added the probabilities"),
        ({"probability": 0.2667, "log_probability": -4.605}, "mean"),
        ({"probability": 0.01, "log_probability": 4.605}, "negative"),
        ({"probability": 0.01, "log_probability": -2.0}, "base 10"),
        ({"probability": 0.01, "log_probability": "minus four"}, "must be a number"),
    ],
    "0c": [
        ({"response_log_prob": log_prob_with(0, 0)}, "Row i is read for token i"),
        ({"response_log_prob": log_prob_with(1, -2)}, "prompt's tokens are counted"),
        ({"response_log_prob": log_prob_with(1, 1)}, "first token of the response is missing"),
        ({"response_log_prob": log_prob_with(1, 0, lambda logits: logits)}, "not logarithms of probabilities"),
        ({"response_log_prob": log_prob_with(1, 0, share=0.25)}, "is the sum"),
        ({"response_log_prob": lambda logits, ids: 0.0}, "stopped with TypeError"),
    ],
    "0d": [
        ({"returns": lambda rewards, gamma: rewards}, "rewards themselves"),
        ({"returns": past_sums}, "sums of the past"),
        ({"returns": lambda rewards, gamma: [3.0, 2.0, 2.0, 4.0]}, "nothing is discounted"),
        ({"returns": all_discounted}, "step itself too"),
    ],
}
"""Plausible wrong answers to each gate, and what it says of them."""


@pytest.mark.parametrize(("gate", "index"), [(gate, i) for gate, wrong in WRONG.items() for i in range(len(wrong))])
def test_a_wrong_answer_is_told_what_is_wrong(gate: str, index: int) -> None:
    answers, said = WRONG[gate][index]
    with pytest.raises(LessonError, match=said) as caught:
        check(gate, **answers)
    assert not isinstance(caught.value, NotYet)
    assert str(caught.value).startswith(f"Gate {gate}: ")


def test_every_gate_is_tried_with_wrong_answers() -> None:
    assert {gate for gate in GATES if len(WRONG.get(gate, ())) < 2} == set()
