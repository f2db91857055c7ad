"""JSON and lines of JSON in files, each file written whole or not at all, and one error for all that cannot be read."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

LONE_SURROGATE = "a lone surrogate (half of a character, like \\ud800)"
"""What a text must not hold: no encoding can write it, and no tokenizer reads it."""
PACKED = "data.json"
"""The member of a zip of `write_packed`."""
_LONGEST = 1500
"""Characters of a library's message that are kept: some list every weight of a model."""


class InputError(ValueError):
    """Something given cannot be read or used. The message says what and where, what was expected and what came."""


class StoppedError(RuntimeError):
    """Work cannot go on, for a reason that the user can do something about; the message says which."""


@contextmanager
def reading(what: str, source: object) -> Iterator[None]:
    """Make one `InputError` of whatever is raised inside, where `what` is read from `source`.

    This is the one place that knows what libraries raise at a damaged file: EOFError and zlib.error of a cut archive,
    SafetensorError, BadZipFile, KeyError and TypeError of a configuration, TemplateError, bare Exception of tokenizers.

        with reading("a tokenizer", folder):
            tokenizer = AutoTokenizer.from_pretrained(folder)

    Raises:
        InputError: anything went wrong.
        FileNotFoundError: there is no such file. Its message is ours.
        ImportError: a package is missing.
    """
    try:
        yield
    except (InputError, StoppedError, ImportError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"could not load {what} from {source}: {reason(error)}") from error
    except Exception as error:
        raise InputError(f"could not load {what} from {source}: {reason(error)}") from error


def expanded(path: str | Path) -> Path:
    """The path with its "~" as the home folder; as it stands where there is none of that name."""
    return Path(os.path.expanduser(path))


def absolute_path(path: str | Path) -> Path:
    """The path from the root, links followed as far as they lead."""
    return Path(os.path.realpath(expanded(path)))


def reason(error: Exception) -> str:
    """What a library's exception says, in words that need no traceback beside them."""
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f" ({error.filename})"
        return f"{error.strerror}{place}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).strip()
    if not isinstance(error, ValueError | OSError | EOFError | ImportError | RuntimeError) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    text = "; ".join([text, *getattr(error, "__notes__", ())])
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def settle(written: Path, path: Path) -> None:
    """Give a file that has been written its name, both on the disk before this returns, whatever becomes of the power.

    Args:
        written: the file.
        path: its new name, in the same folder; a file of that name is replaced.
    """
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def checkpoint_before(path: Path) -> Path:
    """The name under which the checkpoint before the last is kept."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def checkpoint_next(path: Path) -> Path:
    """The name under which the next checkpoint is written, until it is whole."""
    return path.with_name(f"{path.stem}.next{path.suffix}")


def rotate_checkpoint(path: Path) -> None:
    """Let the next checkpoint, which is on the disk, be the last, and the last the one before."""
    if path.is_file():
        os.replace(path, checkpoint_before(path))
    settle(checkpoint_next(path), path)


def read_checkpoint(path: Path, read: Callable[[Path], T]) -> tuple[T | None, str]:
    """What the last checkpoint holds that can be read, the last or the one before; and what to say about it.

    Args:
        path: the last.
        read: raises an `InputError` for a file that is damaged.

    Returns:
        (contents, message). The contents are None where no checkpoint can be read; the message is "" where none is
        damaged.
    """
    said: list[str] = []
    for each in (path, checkpoint_before(path)):
        if each.is_file():
            try:
                return read(each), "; ".join([*said, f"{each.name} is gone on from"] if said else [])
            except InputError as error:
                said.append(f"{each} is damaged ({error})")
    return None, "; ".join([*said, "it begins anew"] if said else [])


def remove_checkpoints(path: Path) -> None:
    """Remove the last checkpoint, the one before, and what was written of a next one."""
    for each in (checkpoint_next(path), checkpoint_before(path), path):
        each.unlink(missing_ok=True)


def write_packed(path: Path, content: Any) -> None:
    """Write JSON as the one member of a zip, which has a checksum, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(PACKED, json.dumps(content))
    os.replace(partial, path)


def read_packed(path: Path) -> Any:
    """What `write_packed` wrote; None where there is no such file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with reading("JSON", path), zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(PACKED))
    except InputError:
        return None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON whole or not at all."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2) + "\n"


def read_json(path: Path) -> Any:
    """The contents of a JSON file; None where there is none.

    Raises:
        InputError: it holds something else.
    """
    if not path.is_file():
        return None
    with reading("JSON", path):
        return json.loads(path.read_text(encoding="utf-8"))


def json_line(record: dict[str, Any]) -> str:
    """The record as a line of JSON. A text that UTF-8 cannot hold (a lone surrogate) stands there escaped."""
    line = json.dumps(record, ensure_ascii=False)
    return (line if is_text(line) else json.dumps(record)) + "\n"


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: a lone surrogate, half of a character of UTF-16, is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it holds something else.
    """
    with reading("a JSON object", path):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {json.dumps(found)[:60]}")
    return found


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines whole or not at all."""
    write_text(path, "".join(map(json_line, records)))


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add a line of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(record))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, a last line that was cut off left out; none where there is no file.

    Raises:
        InputError: a line holds something else.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                with reading("JSON", f"{path}, line {number}"):
                    record = json.loads(line)
                yield record
