"""Labelled text as a task: the split, the tokenizer, the gold classifier, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_gym.tasks import labelled_text_task, reviews_task
from rlhf_gym.tasks.labelled_text import SentimentGold, read_labelled_text, train_tokenizer

GOOD = ("superb", "lovely", "warm", "clever")
BAD = ("dull", "awful", "cold", "stale")
NOUNS = ("film", "plot", "cast", "scene", "score", "ending", "script", "story", "camera", "finale")


def make_texts(n: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        label = int(rng.integers(2))
        words = GOOD if label else BAD
        a, b, c = rng.choice(NOUNS, 3, replace=False)
        x, y = rng.choice(words, 2)
        rows.append({"text": f"the {a} with the {b} was {x} and the {c} was {y} .", "label": label})
    return rows


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in make_texts(300)) + "\n\n")
    return path


def test_a_corpus_becomes_a_task(corpus):
    task = labelled_text_task(corpus, prompt_words=4, vocab_size=400)
    assert set(task.prompts).isdisjoint(task.heldout_prompts)
    assert task.heldout_prompts
    texts = {row["text"] for row in make_texts(300)}
    for d in [*task.demonstrations, *task.heldout_demonstrations]:
        assert d.prompt + d.response in texts
        assert len(d.prompt.split()) == 4
    joined = [task.tokenizer(d.prompt).input_ids + task.tokenizer(d.response).input_ids for d in task.demonstrations]
    assert task.tokenizer.batch_decode(joined) == [d.prompt + d.response for d in task.demonstrations]
    assert max(map(len, joined)) <= task.max_prompt_length + task.max_new_tokens
    assert task.model_config.vocab_size == len(task.tokenizer) <= 400


def accuracy(gold: SentimentGold, texts: list[str], labels: list[int]) -> float:
    return float(np.mean((gold.log_odds(texts) > 0) == np.asarray(labels, dtype=bool)))


def test_gold_is_trained_on_the_labels_and_reads_prompt_and_response(corpus):
    task = labelled_text_task(corpus, vocab_size=400)
    good, bad = task.gold(["the film with the", "the film with the"], [" plot was superb .", " plot was dull ."])
    assert good > 0 > bad
    assert task.gold(["superb lovely"], [" film"])[0] > task.gold(["dull awful"], [" film"])[0]


def test_gold_counts_presence_not_repetition():
    rows, others = make_texts(200), make_texts(100, seed=1)
    gold = SentimentGold.fit([r["text"] for r in rows], [r["label"] for r in rows])
    once, twice, nothing = gold.log_odds(["film superb", "film superb film superb", "unknownword"])
    assert twice == pytest.approx(once, abs=1.0)
    assert nothing == pytest.approx(gold.bias)
    assert accuracy(gold, [r["text"] for r in others], [r["label"] for r in others]) > 0.95


def test_labels_without_a_signal_are_at_chance():
    rng = np.random.default_rng(0)
    texts = [r["text"] for r in make_texts(400)]
    labels = rng.integers(0, 2, 400).tolist()
    gold = SentimentGold.fit(texts[:200], labels[:200])
    assert abs(accuracy(gold, texts[200:], labels[200:]) - 0.5) < 0.1


def test_byte_level_tokens_know_every_character():
    tokenizer = train_tokenizer(["plain words only"], 300)
    text = "naïve café — 日本語 🎬"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected at least one labelled text in .*got none"),
        ('{"text": "a b", "label": 1}\n{"text": "a"', r"line 2: expected a JSON object"),
        ('{"text": "a b"}', r'line 1: expected {"text": …, "label": 0 or 1}, got "text"'),
        ('{"text": "a b", "label": 2}', "line 1: expected the label 0 or 1, got 2"),
        ('{"text": " ", "label": 1}', "line 1: expected a text that is not blank"),
        (
            '{"text": "a b", "label": 1}\n{"text": "c", "label": 1}',
            "expected texts of both labels, 0 and 1, got only 1",
        ),
        ("[1, 2]", r"line 1: expected a JSON object, got \[1, 2\]"),
    ],
)
def test_bad_corpora_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labelled_text(path)


def test_a_missing_corpus_and_texts_too_short_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file of labelled texts at .*does not exist"):
        labelled_text_task(tmp_path / "none.jsonl")
    path = tmp_path / "short.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"word{i} b", "label": i % 2}) for i in range(20)))
    with pytest.raises(ValueError, match="expected texts of more than 4 words"):
        labelled_text_task(path, vocab_size=300)


def test_a_model_of_ones_own_gets_prompts_and_preferences_of_the_labels(tmp_path):
    rows = make_texts(300)
    for i, row in enumerate(rows):
        row["text"] = f"{NOUNS[i % 10]} {row['text']}"
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = labelled_text_task(path, model=reviews_task().sft)
    label = {row["text"]: row["label"] for row in rows}
    pairs = [*task.preferences, *task.heldout_preferences]
    assert len(pairs) > 40 and len(task.heldout_preferences) >= 3
    for pair in pairs:
        assert label[pair.prompt + pair.chosen] == 1 and label[pair.prompt + pair.rejected] == 0
    said = [pair.prompt + response for pair in pairs for response in (pair.chosen, pair.rejected)]
    assert len(set(said)) == len(said), "a text stands in one pair"
    assert {p.prompt for p in task.preferences}.isdisjoint(p.prompt for p in task.heldout_preferences)
    assert task.pretrained is not None and not task.pretraining_texts and not task.demonstrations


def test_gold_shares_no_label_with_the_preferences_of_a_model_of_ones_own(tmp_path, monkeypatch):
    path = tmp_path / "texts.jsonl"
    rows = [row | {"text": f"{NOUNS[i % 10]} {row['text']} text{i}"} for i, row in enumerate(make_texts(300))]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    learned = []
    fit = SentimentGold.fit
    monkeypatch.setattr(SentimentGold, "fit", lambda texts, labels: learned.extend(texts) or fit(texts, labels))
    task = labelled_text_task(path, model=reviews_task().sft)
    paired = {p.prompt + r for p in (*task.preferences, *task.heldout_preferences) for r in (p.chosen, p.rejected)}
    assert len(learned) > 100 and len(paired) > 80
    assert paired.isdisjoint(learned)
    held_out = {row["text"] for row in rows if " ".join(row["text"].split()[:4]) in set(task.heldout_prompts)}
    assert held_out.isdisjoint(learned) and held_out.isdisjoint(paired)
