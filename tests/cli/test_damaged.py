"""Whatever a file, a folder or a model does wrong reaches a command's user as one message, without a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_gym.cli.app import main
from tests.trouble import COMMANDS, FILES, MODELS, given, with_content, without_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reward model and files that a run can be made of."""
    return given(tmp_path_factory.mktemp("given"))


def message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on standard error, after it has failed as it should."""
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and errors.count("error:") == 1, errors
    return " ".join(errors.split())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, command: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = FILES[name]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    words = [word.format(root=root, file=path, out=tmp_path / "out") for word in COMMANDS[command]]
    said = message([*words, *(["--device", "cpu"] if words[0] in ("run", "diagnose") else [])], capsys)
    assert expected in said and str(path) in said


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["lm", "rm"])
def test_damaged_models(name: str, kind: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = MODELS[name]
    folder = tmp_path / "model"
    shutil.copytree(root / kind, folder)
    change(folder)
    pairs = str(root / "pairs.jsonl")
    run = [
        "run",
        "--run-dir",
        str(tmp_path / "out"),
        "--model",
        str(folder),
        "--prompts",
        pairs,
        "--preferences",
        pairs,
    ]
    diagnose = ["diagnose", "--reward-model", str(folder), "--preferences", pairs]
    said = message([*(run if kind == "lm" else diagnose), "--device", "cpu"], capsys)
    assert expected in said and str(folder) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without_tokenizer, "got no words of one: is tokenizer.json missing?"),
        (with_content("tokenizer.json", b'{"version": '), "could not load a tokenizer from"),
        (with_content("tokenizer_config.json", b"[]"), "could not load a tokenizer from"),
        (with_content("adapter_config.json", b"{"), "adapter"),
    ],
)
def test_damaged_tokenizers(
    change: Callable[[Path], None], expected: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(root / "lm", folder)
    change(folder)
    pairs = str(root / "pairs.jsonl")
    run = [
        "run",
        "--run-dir",
        str(tmp_path / "out"),
        "--model",
        str(folder),
        "--prompts",
        pairs,
        "--preferences",
        pairs,
    ]
    assert expected in message([*run, "--device", "cpu"], capsys)


def test_odd_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    for path in (str(loop), os.fsdecode(b"/no/\xff.jsonl"), "~nobody-of-this-name/x.jsonl", "x" * 300):
        message(["run", "--run-dir", str(tmp_path / "out"), "--corpus", path], capsys)
        message(["preferences", "check", path], capsys)


def test_bad_rows_are_skipped_and_long_ones_dropped(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty response is one, twice the same says nothing; all that is left out stands in the first lines."""
    good = (root / "pairs.jsonl").read_text()
    long = json.dumps({"prompt": "film", "chosen": " good" * 100, "rejected": " bad"})
    empty = json.dumps({"prompt": "film", "chosen": "", "rejected": " bad"})
    same = json.dumps({"prompt": "film", "chosen": " bad", "rejected": " bad"})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join([good.strip(), "{", long, empty, same]))
    arguments = [
        "run",
        "--run-dir",
        str(tmp_path / "out"),
        "--model",
        str(root / "lm"),
        "--prompts",
        str(root / "pairs.jsonl"),
        "--preferences",
        str(pairs),
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
    ]

    def stop(_: object, __: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_gym.pipeline.stages.collect_stage", stop)
    assert f"{pairs}, line 37: expected a JSON object" in message(arguments, capsys)
    said = message([*arguments, "--skip-bad"], capsys)
    assert "got 1 longer, line 38: --drop-longer-than" in said

    assert main([*arguments, "--skip-bad", "--drop-longer-than", "16"]) == 130
    out = " ".join(capsys.readouterr().out.split())
    for line in (
        "pairs.jsonl: 1 of 40 rows are left out",
        "pairs.jsonl: 1 pairs of twice the same response are left out",
        "pairs.jsonl: 1 pairs of more than 16 tokens are left out",
        "pairs.jsonl: 1 pairs have an empty response, which is kept",
    ):
        assert line in out
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["notes"]) == 5
