"""Whatever holds the rows, they are the same; whatever is wrong with them is one message that names every place."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.files import InputError
from rlhf_gym.preferences import Preference, load_preferences, read_preferences, read_prompts, write_preferences

PLAIN = {"prompt": "p", "chosen": " a", "rejected": " b"}
PAIR = Preference("p", " a", " b")
LINE = json.dumps(PLAIN)


def written(tmp_path: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (f"{LINE}\n{LINE}\n", "data.jsonl"),
        (f"\ufeff{LINE}\r\n\r\n{LINE}\r\n", "data.jsonl"),
        (f"[{LINE},\n{LINE}]", "data.json"),
        (f"\n[\n {LINE}\n,{LINE}\n]\n", "data.jsonl"),
        (json.dumps([PLAIN, PLAIN], indent=2), "data.json"),
        (gzip.compress(f"{LINE}\n{LINE}".encode(), mtime=0), "data.jsonl.gz"),
        (gzip.compress(json.dumps([PLAIN] * 2).encode(), mtime=0), "data.json.gz"),
    ],
)
def test_containers(tmp_path: Path, content: str | bytes, name: str) -> None:
    assert read_preferences(written(tmp_path, content, name)) == [PAIR, PAIR]


def test_objects_of_an_array_have_the_line_they_begin_in(tmp_path: Path) -> None:
    rows = json.dumps([PLAIN, {"prompt": "p"}, 3], indent=1)
    with pytest.raises(InputError, match=r"line 7: expected the fields(.|\n)*line 10: expected a JSON object, got 3"):
        read_preferences(written(tmp_path, rows, "data.json"))


def test_parquet_and_arrow(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    messages = {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey"}]}
    messages["rejected"] = [messages["chosen"][0], {"role": "assistant", "content": "No"}]
    table = pyarrow.Table.from_pylist([PLAIN | {"margin": 1.5}, PLAIN])
    parquet.write_table(table, tmp_path / "data.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([messages]), tmp_path / "chat.parquet")
    for opened, name in ((ipc.new_stream, "stream.arrow"), (ipc.new_file, "file.arrow")):
        with opened(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    for name in ("data.parquet", "stream.arrow", "file.arrow"):
        assert [p.margin for p in read_preferences(tmp_path / name)] == [1.5, None]
    assert [(p.chosen, p.rejected) for p in read_preferences(tmp_path / "chat.parquet")] == [("Hey", "No")]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "data.parquet").read_bytes()[:60])
    with pytest.raises(InputError, match=r"could not load a file of preferences from .*cut.parquet"):
        read_preferences(tmp_path / "cut.parquet")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 4, names=["prompt", "chosen", "rejected", "chosen"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r'twice.parquet: expected each column once, got "chosen" twice'):
        read_preferences(tmp_path / "twice.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([PLAIN, PLAIN | {"prompt": None}]), tmp_path / "null.parquet")
    with pytest.raises(InputError, match=r'null.parquet, row 1: expected a "prompt"'):
        read_preferences(tmp_path / "null.parquet")
    for words in ([*b"ARROW1\0\0"], [0xFF] * 4, [0xFF] * 4 + [0xF0, 0xFF, 0xFF, 0x7F]):
        (tmp_path / "odd.arrow").write_bytes(bytes(words) * 40)
        with pytest.raises(InputError, match=r"could not load a file of preferences from .*odd.arrow"):
            read_preferences(tmp_path / "odd.arrow")


def test_memory_that_a_damaged_table_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def greedy(file: Any) -> None:
        raise pyarrow.ArrowMemoryError("malloc of size 562958543355968 failed")

    monkeypatch.setattr(parquet, "ParquetFile", greedy)
    with pytest.raises(InputError, match=r"data.parquet: malloc of size 562958543355968 failed"):
        read_preferences(written(tmp_path, b"PAR1", "data.parquet"))


def test_a_table_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ImportError, match=r"reading .* needs pyarrow: in your clone of rlhf-gym, pip install -e '\.\[hub\]'"
    ):
        read_preferences(written(tmp_path, b"PAR1", "data.parquet"))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            gzip.compress(LINE.encode() * 99, mtime=0)[:-20],
            "data.jsonl.gz",
            "could not load a file of preferences from .*ended",
        ),
        (LINE, "data.jsonl.gz", "Not a gzipped file"),
        (
            gzip.compress(LINE.encode() * 99, mtime=0)[:30] + b"\0" * 60,
            "data.jsonl.gz",
            "could not load .*data.jsonl.gz",
        ),
        (f"[{LINE}, ", "data.json", "line 1: expected a JSON array"),
        (f"[{LINE} {LINE}]", "data.json", r"Expecting ',' or '\]'"),
        (f"[{LINE}] x", "data.json", "nothing after it, got 'x'"),
        (f"[{LINE},\n ]", "data.json", r"line 1: expected an object behind the last comma of the array, got \]"),
        ("prompt,chosen", "data.csv", ".csv is not read"),
        (LINE.encode("utf-16"), "data.jsonl", "line 1: expected UTF-8 text, got .*looks like UTF-16"),
        ("[" * 100_000, "data.jsonl", "nested too deeply"),
        ('{"a":' * 100_000, "data.jsonl", "nested too deeply"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "prompt": "q"}', "data.jsonl", '"prompt" twice'),
        ('{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}', "data.jsonl", 'line 1: .*lone surrogate .* "chosen"'),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "round": ' + "9" * 5000 + "}", "data.jsonl", "digits"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str | bytes, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_preferences(written(tmp_path, content, name))


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "\\ud83d\\ude00", "chosen": "a", "rejected": "b"}')
    assert read_preferences(path) == [Preference("😀", "a", "b")]


def test_all_bad_rows_are_named_and_skipped_when_asked(tmp_path: Path) -> None:
    path = written(tmp_path, "\n".join([LINE, "{", *["3"] * 20, LINE]))
    with pytest.raises(InputError) as caught:
        read_preferences(path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}, line 2: expected a JSON object")
    assert lines[9].startswith(f"{path}, line 11: expected a JSON object, got 3")
    assert lines[10:] == [
        "and 11 more",
        f"21 of 23 rows of {path} are bad",
        "--skip-bad (skip_bad=True) goes on without them",
    ]
    found = load_preferences(path, skip_bad=True)
    assert found.records == [PAIR, PAIR] and len(found.bad) == 21
    assert found.places == [f"{path}, line 1", f"{path}, line 23"]
    assert found.summary()[0].startswith("data.jsonl: 21 of 23 rows are left out, such as")
    with pytest.raises(InputError, match="line 1: expected a JSON object, got 3"):
        read_preferences(written(tmp_path, "3\n4"), skip_bad=True)


def test_an_export_is_whole_whatever_a_label_holds(tmp_path: Path) -> None:
    odd = Preference("p", "\ud800", "é")
    write_preferences(tmp_path / "out.jsonl", [odd, PAIR])
    assert read_preferences(tmp_path / "out.jsonl", skip_bad=True) == [PAIR]
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["chosen"] == "\ud800"


def test_line_separators_split_no_line(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "a\u2028b\x85c\nd", "p.txt")) == ["a\u2028b\x85c", "d"]


def test_records_can_be_dropped_but_not_all(tmp_path: Path) -> None:
    found = load_preferences(written(tmp_path, f"{LINE}\n{LINE}"))
    assert found.drop([0], "are long").places == [found.places[1]]
    assert found.drop([0], "are long").notes == {"are long": 1}
    with pytest.raises(InputError, match=r"expected some of 2 records in .* to be of use, but all are long"):
        found.drop([0, 1], "are long")


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    values: list[Any] = [tmp_path, tmp_path / "none.jsonl", str(tmp_path / ("x" * 300))]
    for path in values:
        with pytest.raises((ValueError, OSError), match="preferences"):
            read_preferences(path)


@pytest.mark.parametrize("name", ["long.jsonl", "long.jsonl.gz", "long.txt"])
def test_a_line_without_end_is_refused_before_it_is_read_whole(tmp_path, monkeypatch, name):
    monkeypatch.setattr("rlhf_gym.preferences.reader._LONGEST_LINE", 2**20)
    line = b"x" * 2**21
    (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    read = read_prompts if name.endswith("txt") else load_preferences
    with pytest.raises(ValueError, match=r"expected lines of less than 1 MB in .*, got a longer one"):
        read(tmp_path / name)


@pytest.mark.parametrize("change", [{"weight": -1}, {"weight": 0}, {"weight": float("nan")}, {"margin": -0.5}])
def test_a_preference_that_would_teach_the_reverse_is_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"expected a finite {name} >"):
        Preference("p", "a", "b", **change)
