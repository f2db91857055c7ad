"""`rlhf-gym lessons list | copy | check`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_gym.cli.options import CopyLessons, GradeLessons, ListLessons
from rlhf_gym.lessons import copy_lessons, find_lessons, grade_folder, write_grades
from rlhf_gym.lessons.checking import RECORD_FILE, passed
from rlhf_gym.lessons.gates import gates_of


def lessons_command(options: ListLessons | CopyLessons | GradeLessons) -> int:
    """Run one of the commands about lessons. Returns the exit code."""
    console = Console()
    match options:
        case ListLessons():
            _list(console)
        case CopyLessons():
            for path in copy_lessons(options.folder, options.format, with_solutions=options.with_solutions):
                console.print(escape(str(path)), highlight=False, soft_wrap=True)
        case GradeLessons():
            _grade(console, options)
    return 0


def _list(console: Console) -> None:
    done = passed(Path(RECORD_FILE))
    table = Table("lesson", "gates", "passed here", box=None, header_style="bold")
    for lesson in find_lessons():
        gates = gates_of(lesson.number)
        table.add_row(lesson.title, " ".join(gates), f"{sum(gate in done for gate in gates)} of {len(gates)}")
    console.print(table)


def _grade(console: Console, options: GradeLessons) -> None:
    def say(line: str) -> None:
        console.print(escape(line), style="dim", highlight=False, soft_wrap=True)

    results = grade_folder(options.folder, seconds=options.seconds, say=say)
    write_grades(options.output, results)
    table = Table("student", "gates passed", "seconds", box=None, header_style="bold")
    for student in dict.fromkeys(result.student for result in results):
        own = [result for result in results if result.student == student]
        longest: dict[int, float] = {}
        for result in own:
            longest[result.lesson] = max(longest.get(result.lesson, 0.0), result.seconds)
        table.add_row(escape(student), f"{sum(r.passed for r in own)} of {len(own)}", f"{sum(longest.values()):.0f}")
    console.print(table)
    console.print(f"all gates: {escape(str(options.output))}", style="dim", highlight=False, soft_wrap=True)
