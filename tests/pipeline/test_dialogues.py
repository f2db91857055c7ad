"""A whole run on a task of several turns: every stage draws, compares, scores and shows whole dialogues."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.files import read_jsonl
from rlhf_gym.lm import Message
from rlhf_gym.lm.chat import Conversation
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.human_evaluation import comparison_items
from rlhf_gym.pipeline.preparation import load_task
from rlhf_gym.pipeline.samples import draw, log_probs
from rlhf_gym.preferences import read_preferences
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import TaskConfig
from rlhf_gym.tasks import Others, Task, customer_task
from tests.tiny import WORDS, tiny_gpt2, tiny_tokenizer
from tests.tiny_runs import PROMPTS, quiet, tiny_config, tiny_task

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end] {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def reply(messages: Conversation, rng: np.random.Generator) -> str | None:
    """Leaves where the answer says "bad"; else asks on with a word of its own."""
    return None if "bad" in messages[-1].content.split() else f"the {rng.choice(['cast', 'plot'])}"


def dialogues(folder: Path) -> Task:
    """Conversations of two turns of three tokens, and a model to write them."""
    tokenizer = tiny_tokenizer([*WORDS, "[system]", "[user]", "[assistant]", "[end]"])
    tokenizer.chat_template = TEMPLATE
    tiny_gpt2(len(tokenizer), n_layer=1, n_embd=16, initializer_range=0.02).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    asked = [(Message("user", text),) for text in PROMPTS]
    return tiny_task(
        folder,
        prompts=asked[6:],
        heldout_prompts=asked[:6],
        demonstrations=(),
        heldout_demonstrations=(),
        tokenizer=tokenizer,
        max_prompt_length=8,
        pretraining_texts=(),
        model_config=None,
        others=Others(reply, max_turns=2, max_turn_tokens=3, max_reply_tokens=8),
    )


def test_a_run_on_dialogues(tmp_path: Path) -> None:
    task = dialogues(tmp_path / "model")
    run(tiny_config(tmp_path / "run"), task=task, console=quiet())
    folder = RunFolder(tmp_path / "run")
    compared = read_preferences(folder.stage("collect") / "preferences.jsonl")
    said = [response for p in compared for response in (p.chosen, p.rejected)]
    two = [response for response in said if not isinstance(response, str)]
    assert two and all([m.role for m in response] == ["assistant", "user", "assistant"] for response in two)
    assert {response[1].content for response in two} == {"the cast", "the plot"}
    assert all("bad" not in response[0].content.split() for response in two)
    assert all("bad" in response.split() for response in said if isinstance(response, str))
    rows = list(read_jsonl(folder.stage("evaluate") / "samples" / "train-round-1-seed-0.jsonl"))
    assert any(isinstance(row["response"], list) for row in rows)
    metrics = folder.metrics("evaluate")
    assert metrics is not None and all(entry["length"] <= 6 for entry in metrics["policies"])  # actions alone
    items, same = comparison_items(folder, "train", "sft")
    assert len(items) + same == 6
    page = folder.report.read_text()
    assert '<span class="said">' in page


def test_dialogues_are_drawn_by_the_seed_and_only_their_actions_are_scored(tmp_path: Path) -> None:
    task = dialogues(tmp_path / "model")
    model = tiny_gpt2(len(task.tokenizer), n_layer=1, n_embd=16)
    prompts = list(task.prompts[:4]) * 3
    samples = draw(model, task, prompts, seed=3)
    assert draw(model, task, prompts, seed=3).responses == samples.responses
    assert draw(model, task, prompts, seed=4).responses != samples.responses
    assert samples.prompts == [episode.prompt for episode in samples.episodes] == prompts
    assert [len(row) for row in log_probs(model, samples)] == samples.lengths.tolist()
    assert all(3 < n <= 6 for n, r in zip(samples.lengths, samples.responses, strict=True) if not isinstance(r, str))
    likeliest = draw(model, task, prompts, seed=3, greedy_decoding=True)
    first = [response if isinstance(response, str) else response[0].content for response in likeliest.responses]
    assert first[:4] == first[4:8] == first[8:]  # what others say may differ


def test_what_cannot_be_written_in_turns_is_refused_before_any_work(tmp_path: Path) -> None:
    task = dialogues(tmp_path / "model")
    config = tiny_config(tmp_path / "run")
    with pytest.raises(ValueError, match="drawn, best-of-n or greedy, got the decoding beam-2"):
        prepare(replace(config, collect=replace(config.collect, decodings=("beam-2",))), task=task, console=quiet())
    rewriting = "] {{ 'good' if loop.last else 'bad' }} {{ m.content"
    task.tokenizer.chat_template = TEMPLATE.replace("] {{ m.content", rewriting)
    with pytest.raises(ValueError, match="expected a chat template that keeps earlier turns as they were"):
        prepare(config, task=task, console=quiet())
    assert not (tmp_path / "run").exists()


def test_the_embedded_customer_begins_with_its_sft_policy(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", task=TaskConfig(embedded="customer"))
    prepared = prepare(config, console=quiet())
    assert prepared.task.others is not None and prepared.task.others.max_turns == 3
    assert prepared.sft == prepared.pretrained == customer_task().sft
    assert prepared.perplexity_floor is None
    with pytest.raises(ValueError, match="expected embedded to be one of"):
        TaskConfig(embedded="others")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected either the embedded task 'customer' or a task of your own"):
        TaskConfig(embedded="customer", model="x", prompts=Path("prompts.jsonl"))


def test_a_respondent_of_ones_own_is_named_as_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dialogues(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "other_side.py").write_text("def ask(messages, rng):\n    return 'the cast'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    own = TaskConfig(
        model="model", prompts=tmp_path / "prompts.txt", respondent="other_side:ask", max_turns=3, max_turn_tokens=2
    )
    task = load_task(own)
    assert task.others is not None and (task.others.max_turns, task.others.max_turn_tokens) == (3, 2)
    assert task.others.reply((), np.random.default_rng(0)) == "the cast"
    assert task.max_length == task.max_prompt_length + 48 + 2 * 48
    with pytest.raises(ValueError, match=r"to be callable as \(messages, rng\) -> text or None, got '"):
        load_task(replace(own, respondent="other_side:__name__"))
    with pytest.raises(ValueError, match="expected a model and prompts of your own with the respondent"):
        TaskConfig(respondent="other_side:ask")
