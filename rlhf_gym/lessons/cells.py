"""The cells of a lesson's file, in the percent format, and what is made of them: a solved lesson, a notebook, a page.

    # %% [markdown]                 text; each line begins with "# "
    # %%                            code
    # %% Prediction                 code with blanks, `...`, which are not judged
    # %% Exercise 1b                code with blanks
    # %% Solution 1b [markdown]     <details> with one ```python block, which takes the exercise's place
    # %% Gate 1b                    code that calls check("1b", …)

Jupytext, VS Code, PyCharm and Spyder read this format.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markdown_it import MarkdownIt

_MARK = re.compile(r"^# %%(?P<title>.*?)(?P<markdown>\[markdown\])?\s*$")
_BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_STYLE = """body{max-width:50em;margin:2em auto;padding:0 1em;font:16px/1.5 system-ui,sans-serif;color:#222}
pre{background:#f5f5f5;padding:.8em;overflow-x:auto;border-left:3px solid #bbb}pre.blank{border-color:#d70}
pre.gate{border-color:#070}code{font-size:.9em}table{border-collapse:collapse}td,th{border:1px solid #ccc;
padding:.2em .6em}details{border:1px solid #ccc;padding:.5em 1em;margin:1em 0}summary{cursor:pointer}"""


@dataclass(frozen=True)
class Cell:
    """A cell of a lesson."""

    source: str
    """The code, or the text without its "# "."""
    title: str = ""
    """What it is: "", "Prediction", "Exercise 1b", "Solution 1b", "Gate 1b"."""
    markdown: bool = False
    """Whether it is text."""

    @property
    def kind(self) -> str:
        """The first word of the title."""
        return self.title.partition(" ")[0]

    @property
    def gate(self) -> str:
        """The second word of the title."""
        return self.title.partition(" ")[2]


def read_cells(text: str) -> list[Cell]:
    """The cells of a lesson's file."""
    cells: list[tuple[re.Match[str] | None, list[str]]] = [(None, [])]
    for line in text.splitlines():
        mark = _MARK.match(line)
        if mark:
            cells.append((mark, []))
        else:
            cells[-1][1].append(line)
    found = []
    for mark, lines in cells:
        markdown = mark is not None and mark["markdown"] is not None
        if markdown:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        source = "\n".join(lines).strip("\n")
        if source:
            found.append(Cell(source, "" if mark is None else mark["title"].strip(), markdown))
    return found


def write_cells(cells: Sequence[Cell]) -> str:
    """The file of these cells, which `read_cells` reads."""
    parts = []
    for cell in cells:
        mark = " ".join(["# %%", *([cell.title] if cell.title else []), *(["[markdown]"] if cell.markdown else [])])
        lines = [f"# {line}".rstrip() for line in cell.source.split("\n")] if cell.markdown else [cell.source]
        parts.append("\n".join([mark, *lines]) + "\n")
    return "\n".join(parts)


def solution(cell: Cell) -> str:
    """The code of a solution's cell.

    Raises:
        ValueError: the cell has not exactly one ```python block.
    """
    blocks = _BLOCK.findall(cell.source)
    if len(blocks) != 1:
        raise ValueError(f"expected one ```python block in the cell {cell.title!r}, got {len(blocks)}")
    return blocks[0].rstrip("\n")


def solved(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells with the solutions in the exercises' places, and no predictions (None).

    Raises:
        ValueError: an exercise has no solution.
    """
    solutions = {cell.gate: solution(cell) for cell in cells if cell.kind == "Solution"}
    missing = [cell.gate for cell in cells if cell.kind == "Exercise" and cell.gate not in solutions]
    if missing:
        raise ValueError(f"expected a solution of every exercise, got none of {', '.join(missing)}")
    found = []
    for cell in cells:
        if cell.kind == "Exercise":
            cell = replace(cell, source=solutions[cell.gate])
        elif cell.kind == "Prediction":
            cell = replace(cell, source=re.sub(r"= \.\.\.", "= None", cell.source))
        found.append(cell)
    return found


def solutions_last(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells with the solutions at the end: a text file cannot fold them away."""
    solutions = [cell for cell in cells if cell.kind == "Solution"]
    heading = [Cell("---\n\n# Solutions", markdown=True)] if solutions else []
    return [*(cell for cell in cells if cell.kind != "Solution"), *heading, *solutions]


def notebook(cells: Sequence[Cell]) -> str:
    """A Jupyter notebook of these cells, format 4.5, not run."""
    made: list[dict[str, Any]] = []
    for index, cell in enumerate(cells):
        made.append(
            {
                "cell_type": "markdown" if cell.markdown else "code",
                "id": f"cell-{index}",
                "metadata": {"title": cell.title} if cell.title else {},
                "source": cell.source.splitlines(keepends=True),
            }
            | ({} if cell.markdown else {"execution_count": None, "outputs": []})
        )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def read_notebook(text: str) -> list[Cell]:
    """The cells of a notebook, whoever saved it.

    Raises:
        ValueError: it is no notebook.
    """
    try:
        found = [
            (c["cell_type"], "".join(c["source"]), c["metadata"].get("title", "")) for c in json.loads(text)["cells"]
        ]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a Jupyter notebook, got something else: {error!r}") from error
    return [Cell(source, title, kind == "markdown") for kind, source, title in found if kind in ("markdown", "code")]


def page(cells: Sequence[Cell], title: str, printed: Sequence[str] | None = None) -> str:
    """A web page of these cells, complete in one file; solutions, and what cells print, are folded away.

    Args:
        cells: the n cells.
        title: of the page.
        printed: what each cell prints, n texts; by default nothing.
    """
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    parts = []
    for cell, output in zip(cells, printed or [""] * len(cells), strict=True):
        if cell.markdown:
            parts.append(markdown.render(cell.source))
        else:
            css = {"Exercise": "blank", "Prediction": "blank", "Gate": "gate"}.get(cell.kind, "code")
            parts.append(f'<pre class="{css}"><code>{html.escape(cell.source)}</code></pre>\n')
            if output and cell.kind != "Gate":
                text = f"<pre>{html.escape(output)}</pre>"
                parts.append(f"<details><summary>What it prints</summary>{text}</details>\n")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{"".join(parts)}</body></html>\n'
