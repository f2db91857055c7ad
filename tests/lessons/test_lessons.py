"""Every lesson, cell by cell: its blanks are refused, its solutions pass, and wrong answers are told what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.lessons import GATES, Cell, LessonError, NotYet, check, find_lessons, solved
from rlhf_gym.lessons.checking import RECORD_VARIABLE
from rlhf_gym.lessons.gates import gates_of
from tests.lessons import (
    wrong_lesson_0,
    wrong_lesson_1,
    wrong_lesson_2,
    wrong_lesson_3,
    wrong_lesson_4,
    wrong_lesson_5,
    wrong_lesson_6,
    wrong_lesson_7,
    wrong_lesson_8,
    wrong_lesson_9,
)

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


WRONG = {
    **wrong_lesson_0.WRONG,
    **wrong_lesson_1.WRONG,
    **wrong_lesson_2.WRONG,
    **wrong_lesson_3.WRONG,
    **wrong_lesson_4.WRONG,
    **wrong_lesson_5.WRONG,
    **wrong_lesson_6.WRONG,
    **wrong_lesson_7.WRONG,
    **wrong_lesson_8.WRONG,
    **wrong_lesson_9.WRONG,
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
