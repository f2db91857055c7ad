"""python docs/tables/concepts.py: docs/coverage.md, made of concepts.toml beside this file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
PAGE = DOCS / "coverage.md"


def entries() -> dict[int, dict[str, Any]]:
    """The rows of the table by their numbers."""
    with (HERE / "concepts.toml").open("rb") as file:
        return {int(number): entry for number, entry in tomllib.load(file).items()}


def lesson_file(number: int) -> Path:
    """The file of a lesson.

    Raises:
        ValueError: there is none with this number, or several.
    """
    found = sorted((DOCS / "lessons").glob(f"{number:02d}_*.py"))
    if len(found) != 1:
        raise ValueError(f"expected one lesson {number:02d}_….py in docs/lessons, got {len(found)}")
    return found[0]


def page() -> str:
    """The page in Markdown."""
    lines = [
        "<!-- made by `python docs/tables/concepts.py` of docs/tables/concepts.toml; do not edit -->",
        "# Which concept is where",
        "",
        "Each concept that this package teaches: the code that has it, the lesson or page that explains it, and a test",
        "that holds it. `python -m pytest FILE -k NAME` runs one. Symbols are in the [glossary](glossary.md).",
    ]
    part = ""
    for number, entry in entries().items():
        if entry["part"] != part:
            part = entry["part"]
            lines += ["", f"## {part}", "", "| | concept | code | lesson or page | test |", "|---|---|---|---|---|"]
        code = "<br>".join(f"`{name.removeprefix('rlhf_gym.')}`" for name in entry["code"])
        target = entry["page"]
        places = [f"[{re.sub(r'_', ' ', Path(target.partition('#')[0]).stem)}]({target})"]
        if "lesson" in entry:
            places.insert(0, f"[lesson {entry['lesson']}](lessons/{lesson_file(entry['lesson']).name})")
        tests = "<br>".join(f"`{test.removeprefix('tests/').replace('::', ' ')}`" for test in entry["tests"])
        concept = entry["concept"].replace("|", "\\|")
        lines.append(f"| {number} | {concept} | {code} | {', '.join(places)} | {tests} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(DOCS.parent)}: {len(entries())} concepts")
