"""The grading of a class: each student's lessons run, and one table of the gates that they pass."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rlhf_gym.files import write_text
from rlhf_gym.lessons.answers import LessonError
from rlhf_gym.lessons.cells import read_notebook
from rlhf_gym.lessons.checking import RECORD_VARIABLE
from rlhf_gym.lessons.gates import gates_of

_BEGIN = re.compile(r"^\s*begin\((?:lesson=)?(\d+)", flags=re.MULTILINE)


@dataclass(frozen=True)
class GateResult:
    """What became of one gate."""

    student: str
    """The student: the name of the subfolder, or of the file where there is no subfolder."""
    lesson: int
    """The lesson's number."""
    gate: str
    """The gate, such as "1b"."""
    passed: bool
    """Whether the answer was right."""
    message: str
    """What was wrong, or why the gate was not reached; empty if it was passed."""
    seconds: float
    """Seconds from the lesson's begin to the gate; 0 where it was not reached."""


def grade_folder(
    folder: Path, *, seconds: float = 240.0, say: Callable[[str], None] = lambda line: None
) -> list[GateResult]:
    """Run every lesson that students handed in, and see which gates open.

    A file runs in a process of its own, in the folder that it lies in. Gates behind one that fails are not reached.
    It is the students' code that runs: nothing here keeps it from doing harm, or from cheating.

    Args:
        folder: with a subfolder for each student, or with files named after students; `.py` or `.ipynb`.
        seconds: the longest that a file may run.
        say: told each file before it runs.

    Raises:
        FileNotFoundError: there is no file of a lesson in it.
    """
    results = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".ipynb") and p.is_file()):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):  # a notebook's checkpoints
            continue
        student = inside.parts[0] if len(inside.parts) > 1 else path.stem
        try:
            code = _code(path)
        except ValueError as error:
            say(f"{inside}: passed over: {error}")
            continue
        begun = _BEGIN.search(code)
        if begun is None or not gates_of(int(begun[1])):
            say(f"{inside}: passed over: no begin(NUMBER) of a lesson in it")
            continue
        say(str(inside))
        results += _grade(student, int(begun[1]), code, path.parent, seconds)
    if not results:
        raise FileNotFoundError(f"expected .py or .ipynb files of lessons in {folder}, got none")
    return results


def write_grades(path: Path, results: Sequence[GateResult]) -> None:
    """Write the table as CSV, a row a gate."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(GateResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    write_text(path, text.getvalue())


def _code(path: Path) -> str:
    """The code of a file; a notebook's cells one behind the other, without lines that only a notebook reads."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    code = "\n\n".join(cell.source for cell in read_notebook(text) if not cell.markdown)
    return re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE)


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    """What a lesson's record says of each gate; lines that it did not finish, or that are no record, are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    checked = {}
    for line in lines:
        try:
            said = json.loads(line)
            checked[str(said["gate"])] = {
                "passed": said["passed"] is True,
                "message": str(said["message"]),
                "seconds": float(said["seconds"]),
            }
        except (ValueError, KeyError, TypeError):
            continue
    return checked


def _grade(student: str, lesson: int, code: str, folder: Path, seconds: float) -> list[GateResult]:
    with tempfile.TemporaryDirectory() as place:
        record = Path(place) / "record.jsonl"
        script = Path(place) / f"lesson_{lesson}.py"
        write_text(script, code)
        environment = {**os.environ, RECORD_VARIABLE: str(record), "MPLBACKEND": "Agg"}
        environment["PYTHONIOENCODING"] = "utf-8"
        try:
            done = subprocess.run(
                [sys.executable, str(script)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,  # input() is an error at once, and takes nothing from the teacher's keyboard
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
            )
            last = (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""
            last = last.removeprefix(f"{LessonError.__module__}.")
        except subprocess.TimeoutExpired:
            last = f"stopped after {seconds:g} seconds"
        checked = _read_record(record)
    failed = [gate for gate, line in checked.items() if not line["passed"]]
    why = f"not reached: gate {failed[-1]} failed" if failed else f"not reached: {last or 'no check of it'}"
    results = []
    for gate in gates_of(lesson):
        line = checked.get(gate, {"passed": False, "message": why, "seconds": 0.0})
        results.append(GateResult(student, lesson, gate, line["passed"], line["message"], line["seconds"]))
    return results
