"""Where the lessons' files are, and copies of them to work in."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_gym.files import write_text
from rlhf_gym.lessons.cells import Cell, notebook, page, read_cells, solutions_last, solved, write_cells
from rlhf_gym.lessons.checking import RECORD_VARIABLE

Format = Literal["ipynb", "py", "html"]


@dataclass(frozen=True)
class Lesson:
    """A lesson's file."""

    number: int
    """0 to 9."""
    title: str
    """Its first heading."""
    path: Path
    """The file."""

    @property
    def cells(self) -> list[Cell]:
        """Its cells."""
        return read_cells(self.path.read_text(encoding="utf-8"))


def find_lessons() -> list[Lesson]:
    """The lessons, in order: those in docs/lessons of a checkout, or those that the wheel carries."""
    here = Path(__file__).resolve().parent
    root = here.parent.parent
    folder = root / "docs" / "lessons" if (root / "pyproject.toml").is_file() else here / "pages"
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.py")):
        heading = re.search(r"^# # (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found.append(Lesson(int(path.name[:2]), heading[1] if heading else path.stem, path))
    return found


def copy_lessons(folder: Path, format: Format = "ipynb", *, with_solutions: bool = False) -> list[Path]:
    """Write the lessons into a folder to work in.

    Args:
        folder: made if there is none.
        format: "ipynb" notebooks, "py" files to run, "html" pages to read. For pages each lesson runs once, with its
            solutions, so that they have what it prints.
        with_solutions: put the solutions into the exercises' places, for a teacher.

    Raises:
        FileExistsError: a file would be overwritten. Nothing is written then.
        NotADirectoryError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder, got the file {folder}")
    lessons = find_lessons()
    paths = [folder / f"{lesson.path.stem}.{format}" for lesson in lessons]
    there = [path.name for path in paths if path.exists()]
    if there:
        raise FileExistsError(f"expected a folder without lessons, got {folder} with {', '.join(there)}")
    folder.mkdir(parents=True, exist_ok=True)
    for lesson, path in zip(lessons, paths, strict=True):
        cells = solved(lesson.cells) if with_solutions else lesson.cells
        if format == "ipynb":
            text = notebook(cells)
        elif format == "html":
            text = page(cells, lesson.title, printed(solved(lesson.cells)))
        else:
            text = write_cells(solutions_last(cells))
        write_text(path, text)
    return paths


def printed(cells: Sequence[Cell]) -> list[str]:
    """What each cell prints when they run one after the other; nothing of texts."""
    names = {"__name__": "lesson"}
    found = []
    before = os.environ.get(RECORD_VARIABLE)
    with tempfile.TemporaryDirectory() as place:
        os.environ[RECORD_VARIABLE] = str(Path(place) / "record.jsonl")
        try:
            for cell in cells:
                output = io.StringIO()
                if not cell.markdown:
                    with contextlib.redirect_stdout(output):
                        exec(compile(cell.source, cell.title or "cell", "exec"), names)
                found.append(output.getvalue())
        finally:
            del os.environ[RECORD_VARIABLE]
            if before is not None:
                os.environ[RECORD_VARIABLE] = before
    return found
