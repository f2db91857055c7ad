"""What lessons are made of: cells, notebooks, copies, predictions, the order of lessons, the grading of a class."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.cli import main
from rlhf_gym.files import append_jsonl
from rlhf_gym.lessons import (
    Cell,
    LessonError,
    NotYet,
    begin,
    check,
    compare,
    copy_lessons,
    copying,
    find_lessons,
    grade_folder,
    notebook,
    page,
    plot,
    read_cells,
    solved,
    write_cells,
)
from rlhf_gym.lessons.cells import read_notebook, solutions_last
from rlhf_gym.lessons.checking import RECORD_FILE, RECORD_VARIABLE
from rlhf_gym.lessons.clinic import CASES, COLUMNS, clinic_runs


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed gates go to a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


RIGHT = {"probability": 0.01, "log_probability": -4.605}
FILE = """# %% [markdown]
# # Lesson
#
# Text.

# %% Prediction
guess = ...

# %% Exercise 0b
def f(x):
    return ...

# %% Solution 0b [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def f(x):
#     # a comment
#     return x + 1
# ```
#
# </details>

# %% Gate 0b
check("0b", f=f)
"""


def test_a_file_is_its_cells() -> None:
    cells = read_cells(FILE)
    assert [(cell.kind, cell.gate, cell.markdown) for cell in cells] == [
        ("", "", True),
        ("Prediction", "", False),
        ("Exercise", "0b", False),
        ("Solution", "0b", True),
        ("Gate", "0b", False),
    ]
    assert cells[0].source == "# Lesson\n\nText."
    assert write_cells(cells) == FILE
    filled = solved(cells)
    assert filled[1].source == "guess = None"
    assert filled[2].source == "def f(x):\n    # a comment\n    return x + 1"
    assert solutions_last(cells)[-1] == cells[3]


def test_an_exercise_without_a_solution_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"solution of every exercise, got none of 0b"):
        solved([cell for cell in read_cells(FILE) if cell.kind != "Solution"])


@pytest.mark.parametrize("lesson", find_lessons(), ids=lambda lesson: str(lesson.number))
def test_a_notebook_has_the_cells_of_the_file(lesson) -> None:
    cells = lesson.cells
    assert read_cells(write_cells(cells)) == cells
    made = json.loads(notebook(cells))
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in made["cells"]}) == len(cells)
    for cell in made["cells"]:
        needed = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == needed | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert all(isinstance(line, str) for line in cell["source"])
    assert read_notebook(notebook(cells)) == cells
    for cell in solved(cells):
        if not cell.markdown:
            compile(cell.source, cell.title, "exec")


def test_a_page_folds_solutions_away() -> None:
    made = page(read_cells(FILE), "A < B")
    assert "<title>A &lt; B</title>" in made
    assert made.index("<details>") < made.index("return x + 1") < made.index("</details>")
    assert '<pre class="blank"><code>def f(x):' in made


def test_a_page_has_what_cells_print() -> None:
    cells = [Cell("a = 1"), Cell("text", markdown=True), Cell("print(a < 2)")]
    outputs = copying.printed(cells)
    assert outputs == ["", "", "True\n"]
    assert "<summary>What it prints</summary><pre>True\n</pre>" in page(cells, "", outputs)


def test_a_prediction_is_compared_and_not_judged(capsys) -> None:
    with pytest.raises(NotYet, match="Write your prediction first"):
        compare(..., 3.0)
    compare("up", "down")
    compare(None, 0.12345)
    assert capsys.readouterr().out == "You predicted up. Found: down.\nFound: 0.1235.\n"


def test_a_lesson_begins_when_the_one_before_is_passed(capsys) -> None:
    begin(0)
    with pytest.raises(ValueError, match="expected the number of a lesson, got 77"):
        begin(77)
    with pytest.raises(NotYet, match=r"Lesson 0 comes first. .*: 0a, 0b, 0c, 0d. .*begin\(1, anyway=True\)"):
        begin(1)
    begin(1, anyway=True)
    with pytest.raises(LessonError, match="Gate 0b: You added"):
        check("0b", probability=0.8, log_probability=-4.605)
    with pytest.raises(NotYet, match="Gate 0b: `probability` is still a blank"):
        check("0b", probability=..., log_probability=-4.605)
    assert main(["lessons", "list"]) == 0
    assert "0 of 4" in capsys.readouterr().out
    check("0b", **RIGHT)
    assert main(["lessons", "list"]) == 0
    assert "1 of 4" in capsys.readouterr().out
    with pytest.raises(NotYet, match=r"Lesson 0 comes first\. .*: 0a, 0c, 0d\. "):
        begin(1)
    for gate in ("0a", "0c", "0d"):
        append_jsonl(Path(RECORD_FILE), {"gate": gate, "passed": True})
    begin(1)


def test_a_gate_says_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match=r"expected one of the gates 0a, 0b, .*, got '0z'"):
        check("0z", answer=1)
    with pytest.raises(LessonError, match=r"cannot use this answer: TypeError: .*probabilty"):
        check("0b", probabilty=0.01, log_probability=-4.605)


@pytest.mark.parametrize("format", ["ipynb", "py", "html"])
def test_lessons_are_copied_and_never_overwritten(tmp_path, format, monkeypatch) -> None:
    if format == "html":
        monkeypatch.setattr(copying, "find_lessons", lambda: find_lessons()[4:5])  # the others run longer
    paths = copy_lessons(tmp_path / "mine", format)
    assert [path.stem for path in paths] == [lesson.path.stem for lesson in copying.find_lessons()]
    with pytest.raises(FileExistsError, match="expected a folder without lessons"):
        copy_lessons(tmp_path / "mine", format)
    text = paths[0].read_text(encoding="utf-8")
    if format == "py":
        assert text.index("# %% Gate 0d") < text.index("# %% Solution 0a")
    if format == "html":
        assert "<details><summary>What it prints</summary><pre>64 responses, β = 0.5" in text
        assert "low = middle" in text


SHORT = """from rlhf_gym.lessons import begin, check, compare
begin(0)
check("0b", probability={}, log_probability=-4.605)
"""


def test_a_class_is_graded(tmp_path, capsys) -> None:
    """A student with a folder, one with a file, one with a notebook, and files that are no lessons."""
    handed = tmp_path / "class"
    (handed / "anna").mkdir(parents=True)
    (handed / "anna" / "00_text_as_mdp.py").write_text(SHORT.format(0.01) + "compare(..., 3)\n")
    (handed / "ben.py").write_text(SHORT.format(0.8))
    cells = [Cell(SHORT.format("...")), Cell("%matplotlib inline")]
    (handed / "cem.ipynb").write_text(notebook(cells))
    (handed / "notes.py").write_text("print(1)")
    (handed / "broken.ipynb").write_text("{}")
    table = tmp_path / "grades.csv"
    assert main(["lessons", "check", str(handed), "--output", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "notes.py: passed over" in printed
    assert "broken.ipynb: passed over" in printed
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == ["student", "lesson", "gate", "passed", "message", "seconds"]
    found = {(row["student"], row["gate"]): row for row in rows}
    assert len(found) == len(rows) == 12
    assert found["anna", "0b"]["passed"] == "True"
    assert found["anna", "0d"]["message"].startswith("not reached: NotYet: Write your prediction first")
    assert "added the probabilities" in found["ben", "0b"]["message"]
    assert found["ben", "0d"]["message"] == "not reached: gate 0b failed"
    assert "`probability` is still a blank" in found["cem", "0b"]["message"]


def test_a_file_that_never_ends_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "dan.py").write_text("if False:\n    begin(0)\nwhile True:\n    pass\n")
    assert {result.message for result in grade_folder(tmp_path, seconds=0.5)} == {
        "not reached: stopped after 0.5 seconds"
    }


def test_a_record_that_was_cut_off_costs_its_last_line_alone(tmp_path: Path) -> None:
    """A lesson that is stopped while it writes, or that writes there itself, does not end the grading of the class."""
    good = {"gate": "0a", "passed": True, "message": "", "seconds": 1.0}
    lines = [json.dumps(good), "[1]", json.dumps(good | {"gate": "0b", "seconds": "soon"}), '{"gate": "0c", "pas']
    code = f"import os\nopen(os.environ[{RECORD_VARIABLE!r}], 'w').write({chr(10).join(lines)!r})\n"
    (tmp_path / "fay.py").write_text("if False:\n    begin(0)\n" + code)
    assert [result.gate for result in grade_folder(tmp_path, seconds=100) if result.passed] == ["0a"]


def test_a_file_that_asks_at_the_keyboard_gets_no_answer(tmp_path: Path) -> None:
    (tmp_path / "eve.py").write_text("if False:\n    begin(0)\ninput()\n")
    assert {result.message for result in grade_folder(tmp_path, seconds=100)} == {
        "not reached: EOFError: EOF when reading a line"
    }


def test_a_folder_is_no_table_and_a_file_no_folder(tmp_path: Path, capsys) -> None:
    """Both are found before a lesson runs, and nothing is left behind."""
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "dan.py").write_text("begin(0)\n")
    (tmp_path / "grades").mkdir()
    with pytest.raises(SystemExit):
        main(["lessons", "check", "class", "--output", "grades"])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "expected a file to write the table to, got the folder grades" in said
    with pytest.raises(NotADirectoryError, match="expected a folder, got the file"):
        copy_lessons(tmp_path / "class" / "dan.py")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["class", "dan.py", "grades"]


def test_a_folder_without_lessons_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="of lessons in"):
        grade_folder(tmp_path)


def test_a_picture_is_saved_where_there_is_no_screen(tmp_path: Path, capsys) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    plot("curve", [0, 1, 2], {"a": [1, 2, 3], "b": [3, 2, 1]}, "x", "y")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"Picture: {tmp_path / 'curve.png'}\n"
    assert pyplot.get_fignums() == []


def test_no_picture_is_drawn_when_a_lesson_is_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RECORD_VARIABLE, str(tmp_path / "record.jsonl"))
    plot("curve", [0, 1], {"a": [1, 2]}, "x", "y")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_a_lesson_goes_on(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plot("curve", [0, 1], {"a": [1, 2]}, "x", "y")
    assert "A picture needs matplotlib" in capsys.readouterr().out


def test_the_recorded_runs_of_the_clinic_are_complete() -> None:
    runs = clinic_runs()
    assert sorted(runs) == sorted(case.letter for case in CASES.values()) == list("ABCDEFG")
    for curves in runs.values():
        assert list(curves) == list(COLUMNS)
        assert {len(values) for values in curves.values()} == {len(curves["tokens"])}
        assert np.isfinite(list(curves.values())).all()
        assert (np.diff(curves["tokens"]) > 0).all()
