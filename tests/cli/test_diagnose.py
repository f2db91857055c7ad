"""`rlhf-gym diagnose`: a reward model one brings, taken apart from the command line; bad input in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_gym.cli import diagnose_command, main
from rlhf_gym.preferences import Preference, write_preferences
from rlhf_gym.rewards import RewardEnsemble
from tests.tiny import tiny_reward_model
from tests.training.test_probes import by_words, pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble, preferences, others held out, and responses."""
    root = tmp_path_factory.mktemp("diagnose")
    RewardEnsemble([tiny_reward_model(seed=1), tiny_reward_model(seed=2)]).save_pretrained(root / "model")
    write_preferences(root / "train.jsonl", pairs(by_words, 80, 1))
    write_preferences(root / "heldout.jsonl", pairs(by_words, 60, 2))
    rows = [{"prompt": "the film", "response": f"the plot was {word}"} for word in ("good", "bad", "fun", "dull")]
    (root / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    same = [Preference(p.prompt, p.chosen, p.chosen) for p in pairs(by_words, 8, 3)]
    write_preferences(root / "same.jsonl", same)
    write_preferences(
        root / "three.jsonl", [Preference(f"the {word}", "good", "bad") for word in ("film", "a", "plot")]
    )
    return root


def run(files: Path, *others: str) -> int:
    return main(
        ["diagnose", "--reward-model", str(files / "model"), "--preferences", str(files / "train.jsonl"), *others]
    )


def test_tables_and_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = files / "found" / "probes.json"
    more = ["--heldout", str(files / "heldout.jsonl"), "--responses", str(files / "responses.jsonl")]
    assert run(files, *more, "--words", "fun", "--json", str(out)) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert f"on {found['n']:,} held-out pairs" in said and "a bag of words" in said and "your words" in said
    assert {e["name"] for e in found["edits"]} == {
        "repetition",
        "padding",
        "praise",
        "shuffle",
        "truncation",
        "your words",
    }
    assert all(e["n"] <= 4 for e in found["edits"]), "the responses given are edited, and no others"
    assert ("look: " in said) == bool(found["suspicions"])


def test_preferences_alone_are_enough(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "--count", "10") == 0
    assert "edits of responses" in capsys.readouterr().out


def test_a_slow_model_is_asked_about_less_and_it_is_said(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose_command, "seconds_a_text", lambda reward, texts: 1.0)
    heldout = ["--heldout", str(files / "heldout.jsonl")]
    # (1 score + 6 edits) × 40 responses and 2 × 24 held-out texts are 328 s; half of that is allowed
    assert run(files, *heldout, "--count", "40", "--minutes", str(164 / 60)) == 0
    assert "20 of 40 responses and 20 of 24 held-out comparisons are looked at" in capsys.readouterr().out
    assert run(files, *heldout, "--count", "40", "--minutes", "60") == 0
    assert "are looked at" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heldout", "train.jsonl"], "about other prompts than those of"),
        (["--heldout", "nothing.jsonl"], "nothing.jsonl"),
        (["--reward-model", "nowhere/at/all"], "nowhere/at/all"),
        (["--json", "."], "expected a file for what is found out, got the folder ."),
        (["--words", " "], "expected words to insert, got an empty one"),
        (["--preferences", "same.jsonl"], "expected responses that differ in"),
        (["--heldout", "same.jsonl"], "expected responses that differ in"),
        (["--preferences", "three.jsonl"], "about at least 4 prompts in"),
    ],
)
def test_bad_input_is_one_message(
    files: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value = arguments
    assert run(files, name, str(files / value) if value.endswith("jsonl") else value) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("--count", "1", "expected count >= 2, got 1"),
        ("--minutes", "nan", "expected minutes > 0, got nan"),
        ("--seed", "-1", "expected seed in [0, 4294967296), got -1"),
    ],
)
def test_numbers_out_of_range_are_one_message(
    files: Path, name: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run(files, name, value)
    except SystemExit as end:  # tyro's way, or our own where this tyro checks no ranges
        code = end.code
    assert code == 2 and message in " ".join(capsys.readouterr().err.split())
