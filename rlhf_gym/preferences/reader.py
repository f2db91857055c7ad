"""One way in for every text that comes from a file: its rows, the bad ones among them, what was not used of them.

Rows are JSON lines, a JSON array, lines of text, Parquet or Arrow; `.gz` of each works as well. A row that cannot be
used is named by file and line. All of them are named together, and `skip_bad=True` goes on without them.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Generic, TypeGuard, TypeVar

from rlhf_gym.extras import needs
from rlhf_gym.files import LONE_SURROGATE, InputError, expanded, is_text, reading

T = TypeVar("T")
Json = dict[str, Any]

JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TABLE_SUFFIXES = {".parquet", ".arrow", ".feather"}
_NOT_TEXT = {".csv", ".tsv", ".xls", ".xlsx", ".zip", ".7z", ".xz", ".zst", ".bz2", ".pkl", ".pt"}
_LARGEST = 1e38
"""A float32 goes up to 3.4e38, and so the difference of two numbers is one as well."""
_LONGEST_LINE = 2**28
_SHOWN = 10
"""Bad rows that one message names; it says how many more there are."""


@dataclass(frozen=True)
class Records(Generic[T]):
    """What was read from a file."""

    source: str
    """The file's path, or the data set's name."""
    records: list[T]
    """The records, in the file's order."""
    places: list[str]
    """File and line of each record."""
    rows: int
    """Rows in the file, blank lines aside."""
    bad: tuple[str, ...] = ()
    """What is wrong with each row that was left out, its place in front."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Fields that nothing was made of, and how many rows have them."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What was odd but is no fault, and in how many rows."""

    def drop(self, indices: Iterable[int], note: str) -> Records[T]:
        """The same without the records at these indices; `note` says why, behind their number.

        Raises:
            InputError: nothing is left.
        """
        gone = set(indices)
        if not gone:
            return self
        kept = [i for i in range(len(self.records)) if i not in gone]
        if not kept:
            raise InputError(f"expected some of {len(gone):,} records in {self.source} to be of use, but all {note}")
        return replace(
            self,
            records=[self.records[i] for i in kept],
            places=[self.places[i] for i in kept],
            notes={**self.notes, note: len(gone)},
        )

    def summary(self) -> list[str]:
        """Sentences about what was left out, not used, or odd; none where all is plain."""
        said = []
        if self.bad:
            said.append(f"{len(self.bad):,} of {self.rows:,} rows are left out, such as {self.bad[0]}")
        said += [f"{count:,} {note}" for note, count in self.notes.items()]
        if self.unused:
            names = ", ".join(f"{name} ({count:,})" for name, count in self.unused.items())
            said.append(f"fields that are not used: {names}")
        return [f"{Path(self.source).name}: {sentence}" for sentence in said]


class Row:
    """The fields of one row, which remembers what was read of it."""

    def __init__(self, values: Json) -> None:
        """Fields that are null count as missing."""
        self.values = {name: value for name, value in values.items() if value is not None}
        self.used: set[str] = set()
        self.unused: list[str] = []
        """What is not used inside a field, such as "messages[].name"."""
        self.notes: list[str] = []
        """What is odd about the row, in words that follow a count."""

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return self.values[name]

    def get(self, name: str) -> Any:
        """The field; None where it is missing."""
        self.used.add(name)
        return self.values.get(name)

    @property
    def names(self) -> str:
        """The names of the fields, for messages."""
        return ", ".join(f'"{name}"' for name in self.values) or "no fields"


Source = Iterable[tuple[str, Row | str | ValueError]]
"""(place, row); a row that is none is the error that says why."""


def read_records(
    rows: Source,
    parse: Callable[[Any], list[T]],
    what: str,
    source: str,
    *,
    skip_bad: bool = False,
) -> Records[T]:
    """What `parse` makes of each row.

    Args:
        rows: of `file_rows`, `file_lines` or `table_rows`.
        parse: makes records of a row, or raises a ValueError that says what is wrong with it.
        what: what the rows are to be, for messages.
        source: where they are from.
        skip_bad: whether bad rows are left out.

    Raises:
        InputError: bad rows that are not to be skipped, or no records.
    """
    records: list[T] = []
    places: list[str] = []
    bad: list[str] = []
    unused: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    count = 0
    for place, row in rows:
        count += 1
        try:
            if isinstance(row, ValueError):
                raise row
            found = parse(row)
        except ValueError as error:
            bad.append(f"{place}: {error}")
            continue
        records += found
        places += [place] * len(found)
        if isinstance(row, Row):
            unused.update([*(name for name in row.values if name not in row.used), *set(row.unused)])
            notes.update(row.notes)
    check_bad(bad, source, count, left=len(records), skip_bad=skip_bad)
    if not records:
        raise InputError(f"expected at least one {what} in {source}, got none")
    return Records(source, records, places, count, tuple(bad), dict(unused), dict(notes))


def check_bad(bad: Sequence[str], source: str, count: int, *, left: int, skip_bad: bool) -> None:
    """Refuse what is bad, all in one message.

    Raises:
        InputError: there are bad rows, and they are not to be skipped, or nothing is left without them.
    """
    if not bad or (skip_bad and left):
        return
    lines = [*bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"and {len(bad) - _SHOWN:,} more")
    if len(bad) > 1:
        lines.append(f"{len(bad):,} of {count:,} rows of {source} are bad")
    if left:
        lines.append(f"--skip-bad (skip_bad=True) goes on without {'them' if len(bad) > 1 else 'it'}")
    raise InputError("\n".join(lines))


# --- the rows of a file -------------------------------------------------------------------------------------------


def checked_file(path: str | Path, what: str) -> Path:
    """The path of a file that is there.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is a folder.
    """
    path = expanded(path)
    with reading(f"a file of {what}s", path):
        if path.is_dir():
            raise InputError(f"expected a file of {what}s, got the folder {path}")
        if not path.exists():
            raise FileNotFoundError(f"expected a file of {what}s at {path}, but it does not exist")
    return path


def kind_of(path: Path) -> str:
    """The suffix, that of `.gz` aside."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def file_rows(path: Path, what: str) -> Source:
    """The records of a file: JSON lines or one JSON array, Parquet, or Arrow."""
    if kind_of(path) in TABLE_SUFFIXES:
        yield from _arrow_rows(path, what)
        return
    _refuse_others(path, what)
    with reading(f"a file of {what}s", path), _opened(path) as file:
        lines = _lines(file, path)
        head: list[bytes] = []
        for line in lines:
            head.append(line)
            if line.removeprefix(b"\xef\xbb\xbf").strip():
                break
        begins = head[-1].removeprefix(b"\xef\xbb\xbf").lstrip() if head else b""
        if begins.startswith(b"[") and not _is_whole(begins):
            yield from _array_rows(path, b"".join([*head, *lines]))
            return
        for number, line in enumerate(_chain(head, lines), start=1):
            text = _decoded(line)
            if isinstance(text, ValueError) or text.strip():
                yield f"{path}, line {number}", text if isinstance(text, ValueError) else parse_object(text)


def file_lines(path: Path, what: str) -> Source:
    """The lines of a text file that are not blank."""
    _refuse_others(path, what)
    with reading(f"a file of {what}s", path), _opened(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            text = _decoded(line)
            if isinstance(text, ValueError) or text.strip():
                yield f"{path}, line {number}", text


def table_rows(table: Iterable[Json], source: str) -> Source:
    """The rows of a table that a library has read, each a dict."""
    for number, values in enumerate(table):
        yield f"{source}, row {number}", Row(values)


def _refuse_others(path: Path, what: str) -> None:
    if kind_of(path) in _NOT_TEXT:
        raise InputError(
            f"expected a file of {what}s as JSON lines, a JSON array, Parquet or Arrow, got {path}: "
            f"{kind_of(path)} is not read"
        )


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a file, each read within bounds: a few kilobytes of gzip may hold one of gigabytes."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise InputError(f"expected lines of less than {_LONGEST_LINE >> 20} MB in {path}, got a longer one")
        yield line


def _chain(head: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    yield from head
    yield from rest


def _decoded(line: bytes) -> str | ValueError:
    """A line as text, without its end; the error where it is none."""
    try:
        return line.decode().removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        kind = ", which looks like UTF-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        return ValueError(f"expected UTF-8 text, got {error}{kind}")


def parse_object(text: str) -> Row | ValueError:
    """The JSON object in a text; the error where it holds none."""
    twice: list[str] = []
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, twice))
    except json.JSONDecodeError as error:
        return ValueError(f"expected a JSON object, got {short(text)} ({error.msg}, column {error.colno})")
    except RecursionError:
        return ValueError(f"expected a JSON object, got {short(text)}, which is nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return ValueError(f"expected a JSON object, got {short(text)} ({error})")
    return _row(value, twice)


def _is_whole(line: bytes) -> bool:
    """Whether a line that begins with "[" is JSON of its own, as each line of a file of lists is."""
    try:
        first, *_ = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not isinstance(first, dict) or "role" in first


def _array_rows(path: Path, data: bytes) -> Source:
    """The objects of one JSON array; each has the line that it begins in."""
    text = _decoded(data)
    if isinstance(text, ValueError):
        raise InputError(f"{path}: {text}")
    twice: list[str] = []
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _once(pairs, twice))
    at = _after_blanks(text, text.index("[") + 1)
    seen = 0
    line = 1
    while text[at : at + 1] != "]":
        line += text.count("\n", seen, at)
        seen = at
        try:
            value, at = decoder.raw_decode(text, at)
            at = _after_blanks(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}: expected a JSON array of objects, got {short(text[error.pos :][:60])} "
                f"({error.msg}, column {error.colno})"
            ) from error
        yield f"{path}, line {line}", _row(value, twice)
        twice.clear()
        if text[at] == ",":
            at = _after_blanks(text, at + 1)
            if text[at : at + 1] == "]":
                raise InputError(f"{path}, line {line}: expected an object behind the last comma of the array, got ]")
    if rest := text[at + 1 :].strip():
        raise InputError(f"{path}: expected one JSON array and nothing after it, got {short(rest)}")


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _once(pairs: list[tuple[str, Any]], twice: list[str]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice += [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    return found


def _row(value: Any, twice: Sequence[str]) -> Row | ValueError:
    if not isinstance(value, dict):
        return ValueError(f"expected a JSON object, got {short(value)}")
    if twice:
        return ValueError(f'expected each field once, got "{twice[0]}" twice')
    for name, content in value.items():
        if not is_text(json.dumps([name, content], ensure_ascii=False)):
            return ValueError(f'expected text, got {LONE_SURROGATE} in "{name}"')
    return Row(value)


def _arrow_rows(path: Path, what: str) -> Source:
    """The rows of a Parquet or Arrow file."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise ImportError(needs(f"reading {path}", "pyarrow", "hub")) from error
    with reading(f"a file of {what}s", path), _opened(path) as file:
        batches: Iterable[Any]
        try:
            if kind_of(path) == ".parquet":
                batches = parquet.ParquetFile(file).iter_batches()
            else:
                try:
                    batches = ipc.open_stream(file)
                except pyarrow.ArrowInvalid:
                    file.seek(0)
                    opened = ipc.open_file(file)
                    batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            yield from table_rows((row for batch in batches for row in _rows_of(batch, path)), str(path))
        except pyarrow.ArrowMemoryError as error:  # of a damaged file, whose lengths can be anything
            raise InputError(f"could not load a file of {what}s from {path}: {error}") from error


def _rows_of(batch: Any, path: Path) -> list[Json]:
    """The rows of a batch of records."""
    twice = [name for name, count in Counter(batch.schema.names).items() if count > 1]
    if twice:
        raise InputError(f'{path}: expected each column once, got "{twice[0]}" twice')
    return batch.to_pylist()


def short(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number that single precision holds; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
