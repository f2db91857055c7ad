"""The user's own model and files as a task."""

from __future__ import annotations

import json

import pytest

from rlhf_gym.tasks import files_task
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
