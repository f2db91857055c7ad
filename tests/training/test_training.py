"""Supervised training of language models: what is learned from, exactness of batches and of resuming, folders."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from rlhf_gym.lm.loading import load_causal_lm, load_tokenizer
from rlhf_gym.preferences import Demonstration
from rlhf_gym.training import SFTConfig, SFTMetrics, evaluate_sft, is_finished, pretrain, stage, train_sft
from rlhf_gym.training.data import (
    IGNORED,
    Row,
    collate_rows,
    demonstration_rows,
    text_rows,
)
from rlhf_gym.training.language_modeling import parts_for, summed_loss
from rlhf_gym.training.stage import epoch_batches, schedule_factor
from tests.tiny import WORDS, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.trouble import cut, flip

EOS = 1
DEMONSTRATIONS = [
    Demonstration(f"{WORDS[i % 7]} {WORDS[10 + i % 5]}", " ".join(WORDS[i % 7 : i % 7 + 1 + i % 4])) for i in range(35)
]
HELDOUT = [Demonstration("cast the", "cast scene"), Demonstration("plot was", "plot")]
CONFIG = SFTConfig(epochs=2, learning_rate=1e-2, batch_size=8, save_steps=0, use_cpu=True)


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# --- what is learned from -------------------------------------------------------------------------------------------


def test_rows_are_prompt_response_eos() -> None:
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    rows = demonstration_rows(tokenizer, [Demonstration("good bad", "fine"), Demonstration("the", "")])
    assert rows == [Row([3, 4, 5, EOS], 2), Row([13, EOS], 1)]
    batch = collate_rows(rows)
    assert batch.input_ids.tolist() == [[3, 4, 5, EOS], [13, EOS, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    # EOS is predicted although it is the pad token; prompts and padding are not
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 5, EOS], [IGNORED, EOS, IGNORED, IGNORED]]
    assert batch.first == 1
    assert text_rows(tokenizer, ["good bad"]) == [Row([3, 4, EOS], 1)]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_logits_in_chunks_give_the_same_gradient_and_metrics(
    make: Callable[[], PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    rows = demonstration_rows(tokenizer, DEMONSTRATIONS)
    results = []
    most_at_once: list[int] = []
    for name, limit in (("whole", 1 << 25), ("chunks", 3 * make().config.vocab_size)):
        for module in ("rlhf_gym.lm.parts", "rlhf_gym.training.language_modeling"):
            monkeypatch.setattr(f"{module}.LOGITS_AT_ONCE", limit)
        model = make()
        seen: list[int] = []
        model.lm_head.register_forward_hook(
            lambda module, args, out, seen=seen: seen.append(out.numel() // out.shape[-1])
        )
        parts = parts_for(model, rows, len(rows))
        seen.clear()  # the model's own check when it is taken apart
        loss = summed_loss(model, collate_rows(rows), slices_logits=True, parts=parts)
        most_at_once.append(max(seen))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        folder = tmp_path / name
        metrics = train_sft(model, tokenizer, DEMONSTRATIONS, heldout=HELDOUT, config=CONFIG, output_dir=folder)
        results.append((float(loss.detach()), gradient, metrics))
    (loss, gradient, metrics), (chunked, chunked_gradient, same) = results
    whole, chunk = most_at_once
    assert whole > 8 and chunk == 3
    assert chunked == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(chunked_gradient, gradient, rtol=1e-4, atol=1e-4)
    assert same.loss == pytest.approx(metrics.loss, abs=1e-3)
    assert (same.accuracy, same.tokens, same.n) == (metrics.accuracy, metrics.tokens, metrics.n)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("slices_logits", [False, True])
def test_the_loss_is_that_of_the_response_alone(make, slices_logits: bool) -> None:  # type: ignore[no-untyped-def]
    model = make()
    rows = [Row([3, 4, 5, 6, EOS], 3), Row([13, 7, 8, EOS], 2), Row([9, 10, 11, 12, 14, 15, EOS], 4)]
    logits = []
    model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output) or output.retain_grad())
    loss = summed_loss(model, collate_rows(rows), slices_logits=slices_logits)
    expected = torch.tensor(0.0)
    for row in rows:
        log_probs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)  # (L, V)
        expected -= sum(log_probs[t - 1, row.ids[t]] for t in range(row.start, len(row.ids)))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-4)

    loss.backward()
    touched = logits[0].grad.abs().sum(-1) > 0  # (B, K)
    offset = 7 - touched.shape[1]  # the first columns are not even computed when sliced
    assert offset == (1 if slices_logits else 0)
    for row, touched_places in zip(rows, touched, strict=True):
        places = (touched_places.nonzero()[:, 0] + offset).tolist()
        assert places == list(range(row.start - 1, len(row.ids) - 1))


def test_it_learns_to_answer_and_to_stop(tmp_path: Path) -> None:
    model, tokenizer = tiny_gpt2(), tiny_tokenizer(pad_is_eos=True)
    start = evaluate_sft(model, tokenizer, HELDOUT)
    assert start.loss > math.log(29) - 1
    config = replace(CONFIG, epochs=30)
    metrics = train_sft(
        model, tokenizer, DEMONSTRATIONS, heldout=DEMONSTRATIONS[:7], config=config, output_dir=tmp_path
    )
    # each prompt is followed by one to four words in order: only where to stop is not known, and that from i % 4
    assert metrics.loss < 0.7
    assert metrics.perplexity == pytest.approx(math.exp(metrics.loss))
    assert (metrics.n, metrics.tokens) == (7, sum(2 + i % 4 for i in range(7)))
    assert not model.training
    again = evaluate_sft(model, tokenizer, DEMONSTRATIONS[:7], batch_size=2)
    assert again.loss == pytest.approx(metrics.loss, abs=1e-5)
    assert again.accuracy == metrics.accuracy


def test_pretraining_predicts_every_token_but_the_first(tmp_path: Path) -> None:
    model, tokenizer = tiny_gpt2(), tiny_tokenizer()
    texts = ["the film was good", "the plot was bad", "it was fun"] * 10
    metrics = pretrain(
        model, tokenizer, texts, heldout=texts[:3], config=replace(CONFIG, epochs=20), output_dir=tmp_path
    )
    assert metrics.tokens == 4 + 4 + 3
    # the first token given, two bits are left: film or plot, and then nothing
    assert metrics.loss == pytest.approx(2 * math.log(2) / 11, abs=0.05)
    assert metrics.n == 3


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_cover_an_epoch_once_in_an_order_of_seed_and_epoch() -> None:
    lengths = [i % 13 + 1 for i in range(530)]
    first = epoch_batches(lengths, 8, seed=1, epoch=0)
    assert len(first) == 67
    assert sorted(i for batch in first for i in batch) == list(range(530))
    assert [len(batch) for batch in first] == [8] * 66 + [2]
    assert epoch_batches(lengths, 8, seed=1, epoch=0) == first
    assert epoch_batches(lengths, 8, seed=1, epoch=1) != first
    assert epoch_batches(lengths, 8, seed=2, epoch=0) != first
    padding = sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in first)
    assert padding < 0.1 * sum(lengths), "batches of like lengths need little padding"


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [0, 0.5, 1, 1, 1]), ("linear", [0, 0.5, 1, 0.5, 0]), ("cosine", [0, 0.5, 1, 0.5, 0])],
)
def test_the_learning_rate_rises_and_falls(schedule: str, factors: list[float]) -> None:
    config = replace(CONFIG, schedule=schedule, warmup_ratio=0.2)
    assert [schedule_factor(config, step, 10) for step in (0, 1, 2, 6, 10)] == pytest.approx(factors)


def test_micro_batches_train_as_the_whole_batch(tmp_path: Path) -> None:
    outcomes = []
    for micro in (None, 2):
        model = tiny_llama()  # no biases: a key's has gradient 0, and Adam makes steps of the rounding
        config = replace(CONFIG, epochs=1, learning_rate=1e-3, micro_batch_size=micro)
        train_sft(
            model,
            tiny_tokenizer(),
            DEMONSTRATIONS,
            heldout=HELDOUT,
            config=config,
            output_dir=tmp_path / str(micro),
        )
        outcomes.append(weights(model))
        history = json.loads((tmp_path / str(micro) / "history.json").read_text())
        assert history[-1]["step"] == 5  # ⌈35/8⌉: as many optimizer steps either way
    for name in outcomes[0]:
        torch.testing.assert_close(outcomes[0][name], outcomes[1][name], rtol=0, atol=1e-5)


# --- interruption ----------------------------------------------------------------------------------------------------


class Interruption(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize(("save_steps", "stop_at"), [(2, 4), (5, 7), (5, 10)])
def test_resumed_training_equals_uninterrupted_training(
    save_steps: int, stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, dropout and all; from the middle of an epoch (of 5 steps) and from its end."""
    config = replace(CONFIG, epochs=3, save_steps=save_steps, micro_batch_size=4)

    def run(folder: Path) -> tuple[SFTMetrics, dict[str, torch.Tensor]]:
        model = tiny_gpt2(resid_pdrop=0.1, embd_pdrop=0.1)
        metrics = train_sft(model, tiny_tokenizer(), DEMONSTRATIONS, heldout=HELDOUT, config=config, output_dir=folder)
        return metrics, weights(model)

    expected = run(tmp_path / "whole")
    calls = 0

    def interrupted(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls > 2 * stop_at:
            raise Interruption
        return summed_loss(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_gym.training.language_modeling.summed_loss", interrupted)
        with pytest.raises(Interruption):
            run(tmp_path / "cut")
    assert not is_finished(tmp_path / "cut")
    assert not (tmp_path / "cut" / "config.json").exists()
    with safe_open(tmp_path / "cut" / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == stop_at // save_steps * save_steps
    (tmp_path / "cut" / "checkpoint.safetensors.partial").write_bytes(b"half")

    torch.manual_seed(123)
    resumed = run(tmp_path / "cut")
    assert resumed[0] == expected[0]
    for name, tensor in expected[1].items():
        assert torch.equal(resumed[1][name], tensor), name
    whole, cut = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "cut"))
    assert whole == cut


def cut_short(folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch, config: SFTConfig) -> None:
    """Train for so many steps, as if the process had been killed then."""
    calls = iter(range(steps))

    def interrupted(*args, **kwargs):  # type: ignore[no-untyped-def]
        if next(calls, None) is None:
            raise Interruption
        return summed_loss(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_gym.training.language_modeling.summed_loss", interrupted)
        with pytest.raises(Interruption):
            trained(folder, config)


def trained(folder: Path, config: SFTConfig) -> dict[str, torch.Tensor]:
    model = tiny_gpt2()
    train_sft(model, tiny_tokenizer(), DEMONSTRATIONS, heldout=HELDOUT, config=config, output_dir=folder)
    return weights(model)


WEIGHT = "model.transformer.ln_f.weight"


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("optimizer.0.exp_avg", lambda t: t[:1, :1], r"expected exp_avg of parameter 0 .*, got \(1, 1\)"),
        (WEIGHT, lambda t: t[:1], r"expected the weight transformer.ln_f.weight .*got \(1,\)"),
        (WEIGHT, lambda t: t * float("nan"), "expected finite numbers in the weight"),
        (WEIGHT, None, r"missing \['transformer.ln_f.weight'\]"),
        (WEIGHT, "unsigned", "expected the contents that its SHA-256 is of"),
        ("", "flipped", "expected the contents that its SHA-256 is of"),
        ("", "cut", "could not load a checkpoint"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(key, change, message, monkeypatch, tmp_path, capsys):
    """Nothing of it is taken over: the model is that of an undisturbed training, and so where both are damaged."""
    config = replace(CONFIG, save_steps=1)
    whole = trained(tmp_path / "whole", config)
    cut_short(tmp_path / "cut", 4, monkeypatch, config)
    path = tmp_path / "cut" / "checkpoint.safetensors"
    if change == "flipped":
        flip(path)
    elif change == "cut":
        cut(path)
    else:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
            metadata = file.metadata()
        taken = tensors.pop(key)
        if change is not None:
            tensors[key] = (taken + 1 if change == "unsigned" else change(taken)).contiguous()
        if change != "unsigned":
            metadata["sha256"] = stage._digest(metadata["state"], tensors)
        save_file(tensors, path, metadata=metadata)
    resumed = trained(tmp_path / "cut", config)
    said = capsys.readouterr().out
    assert re.search(message, said) and "checkpoint.before.safetensors is gone on from" in said
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert list((tmp_path / "cut").glob("checkpoint*")) == []


def test_where_no_checkpoint_can_be_read_it_begins_anew(monkeypatch, tmp_path, capsys):
    config = replace(CONFIG, save_steps=1)
    whole = trained(tmp_path / "whole", config)
    cut_short(tmp_path / "cut", 4, monkeypatch, config)
    for path in (tmp_path / "cut").glob("checkpoint*"):
        flip(path)
    resumed = trained(tmp_path / "cut", config)
    said = capsys.readouterr().out
    assert said.count("is damaged") == 2 and "it begins anew" in said
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_damaged_model_is_not_loaded_again(tmp_path):
    config = replace(CONFIG, epochs=1)
    before = trained(tmp_path, config)
    assert all(torch.equal(trained(tmp_path, config)[name], tensor) for name, tensor in before.items())
    flip(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected what the .* left in .*model.safetensors has other contents"):
        trained(tmp_path, config)


def test_checkpoints_are_written_in_time_too(monkeypatch, tmp_path):
    monkeypatch.setattr(stage, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(stage, "SAVE_SHARE", 1e9)
    cut_short(tmp_path / "cut", 3, monkeypatch, replace(CONFIG, save_steps=500))
    with safe_open(tmp_path / "cut" / stage.CHECKPOINT, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 3


def test_a_finished_run_is_loaded_and_another_run_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()

    def run(model: PreTrainedModel, **changes: object) -> SFTMetrics:
        arguments: dict = {"demonstrations": DEMONSTRATIONS, "heldout": HELDOUT, "config": CONFIG} | changes
        return train_sft(model, tokenizer, output_dir=tmp_path, **arguments)

    model = tiny_gpt2()
    metrics = run(model)
    assert is_finished(tmp_path)
    fresh = tiny_gpt2()
    assert run(fresh) == metrics
    for name, tensor in weights(model).items():
        assert torch.equal(fresh.state_dict()[name], tensor), name

    with pytest.raises(ValueError, match=r"got another config .*resume=False"):
        run(tiny_gpt2(), config=replace(CONFIG, seed=1))
    with pytest.raises(ValueError, match="got another data"):
        run(tiny_gpt2(), demonstrations=DEMONSTRATIONS[1:])
    with pytest.raises(ValueError, match="got another model"):
        run(tiny_gpt2(n_layer=1))
    other = run(tiny_gpt2(), config=replace(CONFIG, seed=1), resume=False)
    assert other != metrics
    assert is_finished(tmp_path)


def test_a_folder_with_another_model_is_left_alone(tmp_path: Path) -> None:
    tiny_gpt2(n_layer=1).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    for resume in (True, False):
        with pytest.raises(FileExistsError, match="another model in"):
            train_sft(
                tiny_gpt2(), tiny_tokenizer(), DEMONSTRATIONS, heldout=HELDOUT, output_dir=tmp_path, resume=resume
            )
    assert (tmp_path / "model.safetensors").read_bytes() == before


# --- what it leaves and what it says ----------------------------------------------------------------------------------


def test_the_folder_holds_model_tokenizer_metrics_and_history(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_gpt2()
    metrics = train_sft(
        model,
        tiny_tokenizer(),
        DEMONSTRATIONS,
        heldout=HELDOUT,
        config=replace(CONFIG, save_steps=2, log_steps=3),
        output_dir=tmp_path,
    )
    output, errors = capfd.readouterr()
    assert (output.strip(), errors.strip()) == ("", "")
    assert SFTMetrics(**json.loads((tmp_path / "metrics.json").read_text())) == metrics
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 3, 6, 9]
    assert [(entry["epoch"], entry["step"]) for entry in history if "heldout_loss" in entry] == [(1.0, 5), (2.0, 10)]
    assert history[-1]["heldout_loss"] == metrics.loss
    assert {"checkpoint.safetensors", "unfinished"} & {path.name for path in tmp_path.iterdir()} == set()
    loaded = load_causal_lm(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert load_tokenizer(tmp_path).get_vocab() == tiny_tokenizer().get_vocab()


def test_without_evaluation_on_the_way_the_metrics_are_the_same(tmp_path: Path) -> None:
    outcomes = []
    for each in (True, False):
        config = replace(CONFIG, evaluate_each_epoch=each)
        folder = tmp_path / str(each)
        outcomes.append(
            train_sft(tiny_gpt2(), tiny_tokenizer(), DEMONSTRATIONS, heldout=HELDOUT, config=config, output_dir=folder)
        )
        history = json.loads((folder / "history.json").read_text())
        assert sum("heldout_loss" in entry for entry in history) == (2 if each else 1)
    assert outcomes[0] == outcomes[1]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="finite weights in the model at step 1 of the fine-tuning"):
        train_sft(model, tiny_tokenizer(), DEMONSTRATIONS, heldout=HELDOUT, config=CONFIG, output_dir=tmp_path / "run")
    assert not is_finished(tmp_path / "run")


def test_a_run_that_leaves_the_finite_numbers_keeps_its_last_good_checkpoint(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage, "schedule_factor", lambda config, step, steps: 1.0 if step < 3 else 1e30)
    config = replace(CONFIG, save_steps=1)
    with pytest.raises(FloatingPointError, match=r"at step [45] of the fine-tuning|after step 4"):
        train_sft(
            tiny_gpt2(), tiny_tokenizer(), DEMONSTRATIONS, heldout=HELDOUT, config=config, output_dir=tmp_path / "run"
        )
    assert not is_finished(tmp_path / "run")
    with safe_open(tmp_path / "run" / stage.CHECKPOINT, framework="pt") as file:
        assert all(torch.isfinite(file.get_tensor(name).float()).all() for name in file.keys())  # noqa: SIM118


LONG = Demonstration("good " * 40, "bad " * 40)


@pytest.mark.parametrize(
    ("demonstrations", "heldout", "message"),
    [
        ([], HELDOUT, "at least one demonstration, got none"),
        (DEMONSTRATIONS, [], "at least one held-out demonstration, got none"),
        ([*HELDOUT, LONG], HELDOUT, r"at most 64 tokens \(the model's context\), got 81 in demonstration 2"),
        (DEMONSTRATIONS, [LONG], "got 81 in held-out demonstration 0"),
        ([Demonstration("", "good")], HELDOUT, "prompt 0 has no tokens"),
    ],
)
def test_what_cannot_be_learned_from_is_named_before_any_work(
    demonstrations: list, heldout: list, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_sft(tiny_gpt2(), tiny_tokenizer(), demonstrations, heldout=heldout, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_models_tokenizer_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"below 20 .* got 24 in text 1: is this the model's tokenizer"):
        pretrain(tiny_gpt2(20), tiny_tokenizer(), ["good bad", "saw it"], heldout=["good"], output_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs >= 1, got 0"),
        ({"batch_size": 8, "micro_batch_size": 3}, "micro_batch_size to divide batch_size 8, got 3"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio in \[0, 1\], got 1.5"),
        ({"schedule": "step"}, "schedule to be one of .* got 'step'"),
        ({"save_steps": -1}, "save_steps >= 0, got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SFTConfig(**changes)
