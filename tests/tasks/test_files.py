"""The user's own model and files as a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_gym.lm.chat import as_conversation, render_prompt
from rlhf_gym.lm.tokens import encode_prompts
from rlhf_gym.tasks import files_task
from tests.chats import CHATML, GEMMA, chat_tokenizer
from tests.tiny import tiny_gpt2, tiny_tokenizer


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    tiny_gpt2().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_prompts_and_demonstrations_from_files(tmp_path, model):
    prompts = write(
        tmp_path / "prompts.jsonl", [{"prompt": f"the film was {w}"} for w in ("good", "bad", "dull", "fun")]
    )
    shown = write(
        tmp_path / "shown.jsonl",
        [{"prompt": f"the film was {w}", "response": "we liked it"} for w in ("good", "bad", "dull", "fun")],
    )
    task = files_task(model, prompts, demonstrations=shown, heldout_fraction=0.25)
    assert len(task.prompts) == 3
    assert len(task.heldout_prompts) == 1
    assert {d.prompt for d in task.heldout_demonstrations} == set(task.heldout_prompts)
    assert {d.prompt for d in task.demonstrations} == set(task.prompts)
    assert task.max_prompt_length == 4
    assert task.gold is None
    assert task.pretrained == model


def test_one_prompt_is_not_enough_and_a_folder_must_hold_a_model(tmp_path, model):
    prompts = write(tmp_path / "one.jsonl", [{"prompt": "the film"}])
    with pytest.raises(ValueError, match="at least two different prompts"):
        files_task(model, prompts)
    prompts = write(tmp_path / "two.jsonl", [{"prompt": "the film"}, {"prompt": "the plot"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"config.json.*it holds nothing"):
        files_task(tmp_path / "empty", prompts)


def test_conversations_and_their_template(tmp_path: Path) -> None:
    model, prompts, template = tmp_path / "model", tmp_path / "prompts.jsonl", tmp_path / "template.jinja"
    tokenizer = chat_tokenizer(CHATML)
    tiny_gpt2(len(tokenizer), n_positions=256).save_pretrained(model)
    tokenizer.save_pretrained(model)
    asked = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}] for said in ("a", "b")]
    prompts.write_text("".join(json.dumps({"prompt": messages}) + "\n" for messages in asked))
    template.write_text(GEMMA)
    expected = {as_conversation(messages) for messages in asked}
    for choice in ("auto", "none"):
        task = files_task(model, prompts, chat_template=choice)
        assert {*task.prompts, *task.heldout_prompts} == expected
        assert task.max_prompt_length == len(encode_prompts(task.tokenizer, [*expected])[0])
        assert render_prompt(task.tokenizer, task.prompts[0]).startswith("<|im_start|>") == (choice == "auto")
    with pytest.raises(
        ValueError, match=r"prompts\.jsonl, line 1: .* got the roles system, user: System role not supp"
    ):
        files_task(model, prompts, chat_template=str(template))
