"""The lessons: what a lesson's file calls, its cells, its gates, and the grading of a class.

A lesson is a file `docs/lessons/NN_name.py` in the percent format. It imports `begin`, `check`, `compare` and `plot`.
"""

from rlhf_gym.lessons.cells import Cell, notebook, page, read_cells, solved, write_cells
from rlhf_gym.lessons.checking import LessonError, NotYet, begin, check, compare
from rlhf_gym.lessons.copying import Lesson, copy_lessons, find_lessons
from rlhf_gym.lessons.gates import GATES
from rlhf_gym.lessons.grading import GateResult, grade_folder, write_grades
from rlhf_gym.lessons.pictures import plot

__all__ = [
    "GATES",
    "Cell",
    "GateResult",
    "Lesson",
    "LessonError",
    "NotYet",
    "begin",
    "check",
    "compare",
    "copy_lessons",
    "find_lessons",
    "grade_folder",
    "notebook",
    "page",
    "plot",
    "read_cells",
    "solved",
    "write_cells",
    "write_grades",
]
