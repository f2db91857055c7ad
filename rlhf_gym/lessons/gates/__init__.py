"""The gates of all lessons, a file a lesson.

A gate takes the student's answers by their names. The first line of its docstring is what the student is told who
passes it.
"""

from __future__ import annotations

from collections.abc import Callable

from rlhf_gym.lessons.gates.lesson_0 import GATES as OF_LESSON_0
from rlhf_gym.lessons.gates.lesson_1 import GATES as OF_LESSON_1
from rlhf_gym.lessons.gates.lesson_2 import GATES as OF_LESSON_2
from rlhf_gym.lessons.gates.lesson_3 import GATES as OF_LESSON_3
from rlhf_gym.lessons.gates.lesson_4 import GATES as OF_LESSON_4
from rlhf_gym.lessons.gates.lesson_5 import GATES as OF_LESSON_5
from rlhf_gym.lessons.gates.lesson_6 import GATES as OF_LESSON_6
from rlhf_gym.lessons.gates.lesson_7 import GATES as OF_LESSON_7
from rlhf_gym.lessons.gates.lesson_8 import GATES as OF_LESSON_8
from rlhf_gym.lessons.gates.lesson_9 import GATES as OF_LESSON_9

GATES: dict[str, Callable[..., None]] = {
    **OF_LESSON_0,
    **OF_LESSON_1,
    **OF_LESSON_2,
    **OF_LESSON_3,
    **OF_LESSON_4,
    **OF_LESSON_5,
    **OF_LESSON_6,
    **OF_LESSON_7,
    **OF_LESSON_8,
    **OF_LESSON_9,
}
"""Each gate under its name: the lesson's number and a letter, in the order in which they are met."""


def gates_of(lesson: int) -> list[str]:
    """The names of a lesson's gates, in order."""
    return [gate for gate in GATES if gate[:-1] == str(lesson)]
