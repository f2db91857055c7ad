"""Whatever bytes a file holds: records that can be written and read back, or one error of ours."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlhf_gym.files import InputError, is_text
from rlhf_gym.preferences.files import (
    load_steps,
    read_candidates,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_texts,
    write_preferences,
)
from rlhf_gym.tasks.labelled_text import read_labelled_text

READERS: list[Callable[..., Any]] = [
    read_preferences,
    read_demonstrations,
    read_candidates,
    read_prompts,
    read_texts,
    load_steps,
    read_labelled_text,
]
TEXT = {"prompt": "p", "chosen": " a", "rejected": " b", "text": "t", "label": 1, "response": "r"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey"}]
LINES = [
    TEXT,
    {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "completions": ["s"], "labels": [True]},
    {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "No"}], "messages": TURNS},
    {"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
    {
        "data": {"prompt": "p", "left": "a", "right": "b"},
        "annotations": [{"result": [{"value": {"selected": "left"}}]}],
    },
    {"fields": {"prompt": "p", "a": "x", "b": "y"}, "responses": {"best": [{"value": ["a", "b"], "user_id": 1}]}},
    {"context": TURNS[:1], "response1": "a", "response2": "b", "overall_preference": -2},
]
NAMES = sorted(
    {name for line in LINES for name in line}
    | {"role", "content", "from", "value", "rank", "result", "selected", "user_id", "status", "to_name", "system"}
    | {"instruction", "input", "question", "completion", "output", "answer", "ratings", "margin", "weight", "round"}
    | {"score_A", "score_B", "score_chosen", "score_rejected", "helpfulness", "rating", "annotator", "conversations"}
)
VALUES = ["left", "right", "user", "assistant", "\n\nHuman: x\n\nAssistant: y", "a b", "a c", "", " ", "desirable"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.sampled_from([10**400, 1e308, 1e-320, float("nan"), float("inf"), 0.5])
    | st.sampled_from(VALUES)
    | st.text(st.characters(exclude_categories=()), max_size=3)
)
values = st.recursive(
    scalars | st.sampled_from([TURNS, TURNS[:1], TURNS[1:], TURNS[1]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=6,
)
fields = st.dictionaries(st.sampled_from(NAMES), values, max_size=4)
odd_rows = st.builds(lambda line, more: line | more, st.sampled_from([{}, *LINES]), fields)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def _arrow(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import ipc

    out = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    with ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


SOUND = {
    "data.jsonl": "".join(json.dumps(line) + "\n" for line in LINES).encode(),
    "data.json": json.dumps(LINES, indent=1).encode(),
    "data.txt": b"one\ntwo\n",
    "data.jsonl.gz": gzip.compress("".join(json.dumps(line) + "\n" for line in LINES).encode(), mtime=0),
    "data.parquet": _parquet([TEXT, TEXT | {"label": 0}]),
    "data.arrow": _arrow([TEXT, TEXT | {"label": 0}]),
}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file's name and its bytes: a sound file with a few bytes changed, taken out or put in, or its end cut off."""
    name = draw(st.sampled_from(sorted(SOUND)))
    content = SOUND[name]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        cut = draw(st.sampled_from([0, 1, 1, 4, len(content)]))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + cut :]
    return name, content


def check(folder: Path, name: str, content: bytes) -> None:
    """Every reader gives sound records or an InputError of some words, and skip_bad changes nothing about that."""
    path = folder / name
    path.write_bytes(content)
    messages = []
    for reader in READERS:
        for skip_bad in (False, True):
            try:
                found = reader(path, skip_bad=skip_bad)
            except InputError as error:
                messages.append(str(error))
                continue
            records = found if isinstance(found, list) else found.records
            assert records
            for record in records:
                plain = dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record
                assert is_text(json.dumps(plain, ensure_ascii=False, allow_nan=False, default=dataclasses.asdict))
            if reader is read_preferences:
                write_preferences(folder / "again.jsonl", records)
                assert read_preferences(folder / "again.jsonl") == records
    assert all(is_text(message) and "\n  File" not in message for message in messages)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(st.sampled_from(sorted(SOUND)), st.binary(max_size=60))
def test_any_bytes(folder: Path, name: str, content: bytes) -> None:
    check(folder, name, content)


@given(damaged())
@settings(max_examples=2 * settings.default.max_examples)
def test_damaged_files(folder: Path, file: tuple[str, bytes]) -> None:
    check(folder, *file)


@example([{"fields": {"a": "x", "b": "y", "[]": "z"}, "responses": {"q": [{"value": ["a", "b", []]}]}}], False)
@given(st.lists(odd_rows, min_size=1, max_size=3), st.booleans())
@settings(max_examples=3 * settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
def test_rows_of_any_values_under_the_fields_that_are_known(folder: Path, rows: list[Any], as_array: bool) -> None:
    content = json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    check(folder, "data.json" if as_array else "data.jsonl", content.encode())
