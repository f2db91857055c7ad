"""A whole run on a task of several turns: every stage draws, compares, scores and shows whole dialogues."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.files import read_jsonl
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.adversarial import AdversarialConfig, add_adversarial_pairs
from rlhf_gym.pipeline.human_evaluation import comparison_items
from rlhf_gym.pipeline.preparation import load_task
from rlhf_gym.pipeline.reward import adversarial_folder
from rlhf_gym.pipeline.samples import Samples, draw, log_probs
from rlhf_gym.preferences import read_preferences
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import TaskConfig
from rlhf_gym.tasks import customer_task
from tests.tiny import tiny_gpt2
from tests.tiny_runs import PROMPTS, TURNS_TEMPLATE, quiet, tiny_config, tiny_dialogues


def test_a_run_on_dialogues(tmp_path: Path) -> None:
    task = tiny_dialogues(tmp_path / "model")
    run(tiny_config(tmp_path / "run"), task=task, console=quiet())
    folder = RunFolder(tmp_path / "run")
    compared = read_preferences(folder.stage("collect") / "preferences.jsonl")
    said = [response for p in compared for response in (p.chosen, p.rejected)]
    two = [response for response in said if not isinstance(response, str)]
    assert two and all([m.role for m in response] == ["assistant", "user", "assistant"] for response in two)
    assert {response[1].content for response in two} == {"the cast", "the plot"}
    assert all("bad" not in response[0].content.split() for response in two)
    assert all("bad" in response.split() for response in said if isinstance(response, str))
    metrics = folder.metrics("evaluate")
    assert metrics is not None
    for entry, name in zip(metrics["policies"], ("sft", "best_of", "train-round-1-seed-0"), strict=True):
        written = [row["response"] for row in read_jsonl(folder.stage("evaluate") / "samples" / f"{name}.jsonl")]
        assert any(isinstance(response, list) for response in written)
        assert entry["length"] <= 6  # actions alone
        answers = [
            [m["content"] for m in response[::2]] if isinstance(response, list) else [response] for response in written
        ]
        paid = [0.5 * sum("bad" not in answer.split() for answer in given) for given in answers]
        assert entry["turn_reward"][0] == pytest.approx(np.mean(paid))
    log = list(read_jsonl(folder.seed("train", 1, 0) / "metrics.jsonl"))
    assert all(0 < line["rlhf/dense_reward"] <= 1 for line in log)  # the agent learns from it, too

    items, same = comparison_items(folder, "train", "sft")
    assert len(items) + same == 6
    page = folder.report.read_text()
    assert '<span class="said">' in page

    # what the reward model overrates: another last answer behind the same turns, no longer than a turn may be
    prepared = prepare(tiny_config(tmp_path / "run"), task=task, console=quiet())
    found = add_adversarial_pairs(prepared, AdversarialConfig(pairs=20, num_prompts=8, tries=2, words=3))
    labelled = read_preferences(adversarial_folder(prepared, 1) / "preferences.jsonl")
    assert len(labelled) == found["pairs"] and found["after"]["pairs"]["normal"] == found["before"]["pairs"]["normal"]
    longer = [(p.chosen, p.rejected) for p in labelled if not isinstance(p.chosen, str)]
    assert longer and all(chosen[:2] == rejected[:2] and chosen[2] != rejected[2] for chosen, rejected in longer)
    for response in (response for p in labelled for response in (p.chosen, p.rejected)):
        answers = [response] if isinstance(response, str) else [response[0].content, response[2].content]
        assert all(len(answer.split()) <= 3 for answer in answers)


def test_dialogues_are_drawn_by_the_seed_and_only_their_actions_are_scored(tmp_path: Path) -> None:
    task = tiny_dialogues(tmp_path / "model")
    model = tiny_gpt2(len(task.tokenizer), n_layer=1, n_embd=16)
    prompts = list(task.prompts[:4]) * 3
    samples = draw(model, task, prompts, seed=3)
    assert draw(model, task, prompts, seed=3).responses == samples.responses
    assert draw(model, task, prompts, seed=4).responses != samples.responses
    assert samples.prompts == [episode.prompt for episode in samples.episodes] == prompts
    assert [len(row) for row in log_probs(model, samples)] == samples.lengths.tolist()
    assert all(3 < n <= 6 for n, r in zip(samples.lengths, samples.responses, strict=True) if not isinstance(r, str))
    kept = Samples.from_json(json.loads(json.dumps(samples.to_json())))
    assert kept.responses == samples.responses and kept.earned is not None
    assert samples.earned is not None and kept.earned.tolist() == samples.earned.tolist() and kept.earned.max() == 1
    likeliest = draw(model, task, prompts, seed=3, greedy_decoding=True)
    first = [response if isinstance(response, str) else response[0].content for response in likeliest.responses]
    assert first[:4] == first[4:8] == first[8:]  # what others say may differ


def test_what_cannot_be_written_in_turns_is_refused_before_any_work(tmp_path: Path) -> None:
    task = tiny_dialogues(tmp_path / "model")
    config = tiny_config(tmp_path / "run")
    with pytest.raises(ValueError, match="drawn, best-of-n or greedy, got the decoding beam-2"):
        prepare(replace(config, collect=replace(config.collect, decodings=("beam-2",))), task=task, console=quiet())
    rewriting = "] {{ 'good' if loop.last else 'bad' }} {{ m.content"
    task.tokenizer.chat_template = TURNS_TEMPLATE.replace("] {{ m.content", rewriting)
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
    tiny_dialogues(tmp_path / "model")
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
    with pytest.raises(ValueError, match=r"to be callable as \(messages, rng\) -> text, None or Reply, got '"):
        load_task(replace(own, respondent="other_side:__name__"))
    (tmp_path / "other_side.py").write_text("def ask(messages, rng):\n    return 'the cast', 1.0\n")
    sys.modules.pop("other_side")
    with pytest.raises(ValueError, match=r"failed on an empty answer: TypeError\(.*or Reply\(text, reward=…\)"):
        prepare(tiny_config(tmp_path / "run", task=replace(own, reward_model="model")), console=quiet())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="expected a model and prompts of your own with the respondent"):
        TaskConfig(respondent="other_side:ask")
