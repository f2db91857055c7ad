"""What later stages need of a model is tried before the first one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from rlhf_gym.lm import Message
from rlhf_gym.pipeline import prepare
from rlhf_gym.preferences import Demonstration
from rlhf_gym.settings import TaskConfig
from tests import tiny
from tests.tiny_runs import PROMPTS, quiet, tiny_config, tiny_task


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    return folder


def prepared(tmp_path: Path, model: PreTrainedModel, **agent: object) -> None:
    config = tiny_config(tmp_path / "run")
    config = replace(config, agent=replace(config.agent, **agent))
    prepare(config, task=tiny_task(saved(model, tmp_path / "model")), console=quiet())


def test_an_encoder_with_a_decoder_is_refused_in_two_lines(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=29, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match=r"(?s)^expected a causal language model .*\n.*\(t5\)[^\n]*$"):
        prepared(tmp_path, transformers.T5ForConditionalGeneration(config))


@pytest.mark.parametrize(
    ("model", "agent", "message"),
    [
        (
            lambda: tiny.tiny_gpt2(20),
            {},
            r"expected a tokenizer with ids below 20, the rows of the model in",
        ),
        (lambda: tiny.tiny_gpt2(n_layer=2), {"freeze_layers": 2}, r"between layers 1 … 1 of 2, got 2"),
        (lambda: tiny.tiny_gpt2(n_positions=8), {}, r"expected at most 2 \(the model's context is 8\)"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(tmp_path: Path, model, agent: dict, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, model(), **agent)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_nan_is_refused_before_any_work(tmp_path: Path) -> None:
    model = tiny.tiny_gpt2()
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"in a causal language model in .*h\.0\.attn\.c_attn\.bias"):
        prepared(tmp_path, model)


def test_a_model_that_will_run_uncached_says_so_before_any_work(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=29, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.2)
    with pytest.warns(UserWarning, match="BloomModel runs without a cache"):
        prepared(tmp_path, transformers.BloomForCausalLM(config))


def test_a_padded_vocabulary_passes(tmp_path: Path) -> None:
    prepared(tmp_path, tiny.tiny_llama(40))


def test_a_reward_models_broken_template_is_found_before_any_work(tmp_path: Path) -> None:
    asked = [(Message("user", text),) for text in PROMPTS]
    task = tiny_task(
        saved(tiny.tiny_gpt2(), tmp_path / "model"),
        prompts=asked[6:],
        heldout_prompts=asked[:6],
        demonstrations=[Demonstration(prompt, "good film") for prompt in asked[6:]],
        heldout_demonstrations=[],
        max_prompt_length=8,
    )
    reward = tiny.tiny_reward_model()
    reward.tokenizer = tiny.tiny_tokenizer()
    reward.tokenizer.chat_template = "{{ messages[0].content }}{% if messages | length > 1 %}{{ 1 / 0 }}{% endif %}"
    reward.save_pretrained(tmp_path / "reward")
    config = tiny_config(tmp_path / "run")
    config = replace(config, task=TaskConfig(reward_model=str(tmp_path / "reward")))
    with pytest.raises(ValueError, match=r"the reward model in .* cannot read the task's prompts: .*division by zero"):
        prepare(config, task=task, console=quiet())
    assert not (tmp_path / "run").exists()


def test_bad_rows_of_texts_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("ptx", "held"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "the film was good"}\n{"text": 3}\n')
    model = saved(tiny.tiny_gpt2(), tmp_path / "model")
    config = tiny_config(tmp_path / "run")
    mixed = replace(config, agent=replace(config.agent, ptx_coef=0.5, ptx_texts=tmp_path / "ptx.jsonl"))
    watched = replace(config, monitor=replace(config.monitor, held_out=tmp_path / "held.jsonl"))
    for given, name in ((mixed, "ptx"), (watched, "held")):
        with pytest.raises(ValueError, match=f'{name}.jsonl, line 2: expected "text" to be a text, got 3'):
            prepare(given, task=tiny_task(model), console=quiet())
        skipping = replace(given, task=replace(given.task, skip_bad=True))
        notes = prepare(skipping, task=tiny_task(model), console=quiet()).notes
        assert notes[-1].startswith(f"{name}.jsonl: 1 of 2 rows are left out, such as ")


@pytest.mark.parametrize(
    "names", [("config.json.partial",), ("guidelines.md",), ("labels.sqlite", "labels.sqlite-wal"), (".lock",), ()]
)
def test_what_may_lie_in_a_folder_before_a_run_does_not_take_it(names: tuple[str, ...], tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    for name in names:
        (root / name).write_text("half")
    run = prepare(tiny_config(root), task=tiny_task(), console=quiet())
    run.folder.open(run.config)
    assert run.folder.config() == run.config


def test_what_is_somebody_elses_takes_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "thesis.tex").write_text("…")
    with pytest.raises(ValueError, match=r"expected a new folder, .* with thesis.tex in it and no config.json"):
        prepare(tiny_config(root), task=tiny_task(), console=quiet())
