"""JSON and lines of JSON in files, each file written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The contents of a JSON file; None where there is none.

    Raises:
        ValueError: it holds something else.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, but: {error}") from error


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines whole or not at all."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add a line of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, a last line that was cut off left out; none where there is no file."""
    if not path.is_file():
        return
    with path.open(newline="\n", encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
