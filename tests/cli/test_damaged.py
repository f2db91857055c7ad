"""Whatever a file, a folder or a model does wrong reaches a command's user as one message, without a traceback."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_gym.cli.app import main
from tests.tiny import tiny_gpt2, tiny_reward_model, tiny_tokenizer

WORDS = ("film", "good", "bad", "plot", "the", "a")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reward model and files that a run can be made of."""
    root = tmp_path_factory.mktemp("given")
    tiny_gpt2().save_pretrained(root / "lm")
    tiny_tokenizer().save_pretrained(root / "lm")
    tiny_reward_model().save_pretrained(root / "rm")
    rows = [{"prompt": f"{a} {b}", "chosen": " good film", "rejected": " bad film"} for a in WORDS for b in WORDS]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


PAIR = '{"prompt": "film", "chosen": "good", "rejected": "bad"}\n'
FILES: dict[str, tuple[str | bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(PAIR.encode() * 50)[:-20], "could not load a file of"),
    "plain.jsonl.gz": (PAIR, "Not a gzipped file"),
    "latin.jsonl": (b'{"prompt": "\xe9"}', "line 1: expected UTF-8 text"),
    "surrogate.jsonl": (
        '{"prompt": "\\ud800", "responses": ["a", "b"]}',
        "line 1: expected text, got a lone surrogate",
    ),
    "deep.jsonl": ("[" * 100_000, "nested too deeply"),
    "twice.jsonl": ('{"prompt": "a", "prompt": "b"}', 'line 1: expected each field once, got "prompt" twice'),
    "huge.jsonl": ('{"prompt": "p", "margin": ' + "9" * 5000 + "}", "line 1: expected a JSON object"),
    "cut.json": ("[" + PAIR + ",", "line 2: expected a JSON array of objects"),
    "odd.jsonl": ('{"prompt": {"a": 1}, "responses": {"a": 1}, "chosen": [3], "rejected": [4]}', "line 1: "),
    "empty.jsonl": ("", "expected at least one"),
    "table.csv": ("prompt,chosen", ".csv is not read"),
}
COMMANDS: dict[str, list[str]] = {
    "prompts": ["run", "--run-dir", "{out}", "--model", "{root}/lm", "--prompts", "{file}", "--max-new-tokens", "4"],
    "preferences": [
        "run",
        "--run-dir",
        "{out}",
        "--model",
        "{root}/lm",
        "--prompts",
        "{root}/pairs.jsonl",
        "--preferences",
        "{file}",
        "--max-new-tokens",
        "4",
    ],
    "corpus": ["run", "--run-dir", "{out}", "--corpus", "{file}"],
    "check": ["preferences", "check", "{file}"],
    "import": ["preferences", "import", "{file}", "{out}"],
    "diagnose": ["diagnose", "--reward-model", "{root}/rm", "--preferences", "{file}"],
}


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


def _config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _content(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-200])


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_cut, "incomplete metadata, file not fully covered"),
    "header": (_content("model.safetensors", b"\xff" * 64), "header too large"),
    "nothing": (_content("model.safetensors", b""), "header too small"),
    "no JSON": (_content("config.json", b"{"), "not a valid JSON file"),
    "no object": (_content("config.json", b"3"), "could not load"),
    "nested": (_content("config.json", b"[" * 100_000), "nested too deeply"),
    "no type": (_content("config.json", b"{}"), "model_type"),
    "unknown type": (_config(model_type="nonsense"), "nonsense"),
    "shape": (_config(n_embd=48), "whose weights have the shapes of its config.json"),
    "layers": (_config(n_layer=5), "without transformer.h.2.attn.c_attn.bias"),
    "value": (_config(n_embd="wide"), "'n_embd' expected int"),
}


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
        (_without_tokenizer, "got no words of one: is tokenizer.json missing?"),
        (_content("tokenizer.json", b'{"version": '), "could not load a tokenizer from"),
        (_content("tokenizer_config.json", b"[]"), "could not load a tokenizer from"),
        (_content("adapter_config.json", b"{"), "adapter"),
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
