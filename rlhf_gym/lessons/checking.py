"""What a lesson's file calls: `begin` a lesson, `compare` a prediction with what was found, `check` an answer.

What was checked is kept in the file `lessons_record.jsonl` of the folder that one works in.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rlhf_gym.files import append_jsonl, read_jsonl
from rlhf_gym.lessons.answers import LessonError, NotYet, blank_in
from rlhf_gym.lessons.gates import GATES, gates_of

RECORD_FILE = "lessons_record.jsonl"
"""What was checked, a line each: gate, passed, message, seconds since the lesson began."""
RECORD_VARIABLE = "RLHF_GYM_LESSONS_RECORD"
"""The environment variable that names another such file. Set by the grading; lessons then begin in any order."""
_clock = {"began": time.perf_counter()}


def begin(lesson: int, *, anyway: bool = False) -> None:
    """Begin a lesson, if all gates of the one before are passed.

    Args:
        lesson: its number, 0 to 9.
        anyway: begin it even if the one before is not finished.

    Raises:
        NotYet: gates of the lesson before are not passed in this folder.
        ValueError: there is no lesson of this number.
    """
    own = gates_of(lesson)
    if not own:
        raise ValueError(f"expected the number of a lesson, got {lesson}")
    _clock["began"] = time.perf_counter()
    if not (anyway or grading()):
        missing = [gate for gate in gates_of(lesson - 1) if gate not in passed(record_file())]
        if missing:
            raise NotYet(
                f"Lesson {lesson - 1} comes first. Not passed yet in {Path.cwd()}: {', '.join(missing)}. "
                f"To begin here all the same, write begin({lesson}, anyway=True)."
            )
    print(f"Lesson {lesson}. Gates: {', '.join(own)}.")


def compare(prediction: Any, found: Any) -> None:
    """Show a prediction beside what was found. It is not judged.

    Args:
        prediction: the student's, written before the run; None for no prediction.
        found: what came out.

    Raises:
        NotYet: the prediction is still a blank.
    """
    if blank_in(prediction):
        raise NotYet("Write your prediction first: replace `...` in the cell above. Write None if you have no idea.")
    if prediction is None:
        print(f"Found: {_shown(found)}.")
    else:
        print(f"You predicted {_shown(prediction)}. Found: {_shown(found)}.")


def check(gate: str, **answers: Any) -> None:
    """Check the answers to an exercise.

    Args:
        gate: the exercise, such as "1b".
        answers: the student's answers, each under the name that it has in the lesson.

    Raises:
        NotYet: an answer is still a blank.
        LessonError: an answer is wrong; the message says in what way.
        ValueError: there is no such gate.
    """
    if gate not in GATES:
        raise ValueError(f"expected one of the gates {', '.join(GATES)}, got {gate!r}")
    try:
        _judge(gate, answers)
    except LessonError as error:
        _record(gate, False, str(error))
        raise type(error)(f"Gate {gate}: {error}") from None
    _record(gate, True, "")
    summary = (GATES[gate].__doc__ or "").strip().splitlines()[0]
    print(f"Gate {gate} passed. {summary}")


def _judge(gate: str, answers: dict[str, Any]) -> None:
    blanks = [name for name, answer in answers.items() if blank_in(answer)]
    for name in blanks:
        if not callable(answers[name]):
            raise NotYet(f"`{name}` is still a blank. Replace `...` by your answer.")
    try:
        GATES[gate](**answers)
    except Exception as error:
        if blanks:  # a function with `...` in it need not be wrong; one that is refused is unfinished
            raise NotYet(f"`{blanks[0]}` still has a blank in it. Replace each `...` by your answer.") from None
        if isinstance(error, LessonError):
            raise
        raise LessonError(f"The gate cannot use this answer: {type(error).__name__}: {error}") from error


def grading() -> bool:
    """Whether a lesson runs to be graded: in any order, and without pictures."""
    return RECORD_VARIABLE in os.environ


def record_file() -> Path:
    """The file of what was checked."""
    return Path(os.environ.get(RECORD_VARIABLE, RECORD_FILE))


def passed(record: Path) -> set[str]:
    """The gates that a file of what was checked has as passed."""
    return {line["gate"] for line in read_jsonl(record) if line["passed"]} if record.is_file() else set()


def _record(gate: str, success: bool, message: str) -> None:
    seconds = round(time.perf_counter() - _clock["began"], 1)
    append_jsonl(record_file(), {"gate": gate, "passed": success, "message": message, "seconds": seconds})


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
