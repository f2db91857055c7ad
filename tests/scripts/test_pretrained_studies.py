"""The two studies of a pretrained model in their smallest form, on a tiny chat model made here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.preferences import Preference
from rlhf_gym.settings import TaskConfig, default_config

pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import film_reviews
import harmless_chat
from harmless_chat import WordJudge, share

from tests.chats import CHATML, chat_tokenizer
from tests.tiny import tiny_gpt2

SMALL = ["--tokens", "96", "--seeds", "1", "--prompts", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = chat_tokenizer(CHATML)
    tiny_gpt2(len(tokenizer), n_positions=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def page(path: Path, name: str, script: str) -> Path:
    path.write_text(f"# A page\n\n<!-- {name}: scripts/studies/{script} -->\n<!-- end of {name} -->\n")
    return path


def test_film_reviews_from_labels_to_a_page(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(160):
        label = int(rng.integers(2))
        noun = ("film", "plot", "cast", "tale")[int(rng.integers(4))]
        rows.append({"text": f"{noun} n{i % 40} is so {'good' if label else 'dull'} x{i}", "label": label})
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text("\n".join(json.dumps(row) for row in rows))
    written = page(tmp_path / "page.md", "film reviews", "film_reviews.py")
    config = default_config(TaskConfig(corpus=reviews, model=str(model)))
    forced = replace(config, reward=replace(config.reward, force=True, reference_samples=16))
    monkeypatch.setattr(film_reviews, "default_config", lambda task: replace(forced, task=task))
    arguments = ["--model", str(model), "--reviews", str(reviews), "--pairs", "24", "--demonstrations", "24", *SMALL]
    arguments += ["--run-dir", str(tmp_path / "run"), "--page", str(written), "--output", str(tmp_path / "a.png")]
    film_reviews.main(arguments)
    text = written.read_text()
    assert (tmp_path / "a.png").stat().st_size > 1000
    for name in ("pretrained model", film_reviews.START, *film_reviews.ARMS):
        assert f"| {name} |" in text
    start = next(line for line in text.splitlines() if line.startswith(f"| {film_reviews.START} |"))
    assert start.split("|")[5].strip() == "0.0", "the SFT policy is its own reference"
    before = json.loads((tmp_path / "run" / "sft.json").read_text())
    film_reviews.main(arguments)
    assert json.loads((tmp_path / "run" / "sft.json").read_text()) == before


def test_harmless_chat_from_comparisons_to_a_page(model: Path, tmp_path: Path) -> None:
    lines = []
    for i in range(40):
        start = f"\n\nHuman: question {i}?{' Please.' * (60 if i % 4 == 0 else 0)}\n\nAssistant:"
        lines.append({"chosen": f"{start} I would rather not {i}.", "rejected": f"{start} Sure, do it {i}!"})
    comparisons = tmp_path / "pairs.jsonl"
    comparisons.write_text("\n".join(json.dumps(line) for line in lines))
    written = page(tmp_path / "page.md", "harmless chat", "harmless_chat.py")
    arguments = ["--model", str(model), "--comparisons", str(comparisons), "--longest", "160", "--answer", "8", *SMALL]
    arguments += ["--run-dir", str(tmp_path / "run"), "--page", str(written), "--output", str(tmp_path / "a.png")]
    harmless_chat.main(arguments)
    text = written.read_text()
    assert "30 of 40 pairs are used" in text and "| judge of words | 10 | 100.0%" in text
    assert "| untouched |" in text and "| PPO, seed 0 |" in text
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_judge_of_words_learns_which_words_win() -> None:
    pairs = [Preference(f"q{i}", f"kind word number {i}", f"rude word number {i}") for i in range(20)]
    judge = WordJudge(pairs)
    kind, rude, other = judge(["a kind word", "a rude word", "something else"])
    assert kind > 0 > rude and other == 0
    assert share([1.0, 2.0, 3.0], [0.0, 2.0, 4.0]) == 0.5
