"""Reward models on trunks of every shape, and adapters as reward models."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CodeGenConfig,
    Gemma2Config,
    Llama4TextConfig,
    LlamaForSequenceClassification,
    MambaConfig,
    MistralConfig,
    ModernBertDecoderConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    XGLMConfig,
)
from transformers.utils import is_peft_available

from rlhf_gym.lm.tokens import pad_rows
from rlhf_gym.rewards import LearnedReward, RewardModel, load_reward
from tests.tiny import VOCAB_SIZE, tiny_llama, tiny_tokenizer

EOS = 1
ROWS = [[5, 9, 13, 4, EOS], [7, EOS, 8, 3], [11], [6, 6, 6, 6, 6, 6, 6, 6, EOS]]
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
GPT: dict[str, Any] = {name: SMALL[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}


def named(*names: str) -> dict[str, Any]:
    return {name: SMALL[name] for name in SMALL if name not in names}


FAMILIES: dict[str, tuple[PreTrainedConfig, bool]] = {
    # the configuration, and whether Transformers has a classifier that reads the last token
    "olmoe": (OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2), False),
    "mamba": (MambaConfig(**GPT, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3), False),
    "xglm": (
        XGLMConfig(**GPT, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=64),
        False,
    ),
    "codegen": (CodeGenConfig(**GPT, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64), False),
    "llama4_text": (
        Llama4TextConfig(**SMALL, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=64),
        False,
    ),
    "bert decoder": (BertConfig(**named("num_key_value_heads"), is_decoder=True), False),
    "modernbert decoder": (
        ModernBertDecoderConfig(
            **named("num_key_value_heads", "pad_token_id", "bos_token_id"), pad_token_id=0, bos_token_id=2
        ),
        True,
    ),
    "opt": (
        OPTConfig(**named("intermediate_size", "num_key_value_heads"), ffn_dim=48, word_embed_proj_dim=16),
        True,
    ),
}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 5,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 3.0, 2.0, 1.5],
}
THRESHOLDS: dict[str, PreTrainedConfig] = {
    # ROWS have 1, 4, 5 and 9 tokens: fewer than the threshold, as many, and more
    "windows": MistralConfig(**SMALL, sliding_window=4),
    "windows and capped logits": Gemma2Config(**SMALL, head_dim=8, sliding_window=4),
    "chunks": Llama4TextConfig(
        **SMALL, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=4
    ),
}


def batch(rows: list[list[int]], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = pad_rows(rows, length=length)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def alone(model: PreTrainedModel) -> torch.Tensor:
    """What the class itself gives for each row alone, (B,)."""
    with torch.no_grad():
        found = [model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0] for ids in map(row, ROWS)]
    return torch.cat(found)


def assert_scores(reward: LearnedReward, expected: torch.Tensor, length: int | None = None) -> None:
    torch.testing.assert_close(reward.score_tokens(*batch(ROWS, length)), expected, rtol=1e-5, atol=1e-5)


def begun(config: PreTrainedConfig) -> RewardModel:
    """A reward model begun from a random language model of this configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        language_model = AutoModelForCausalLM.from_config(config).eval()
    return RewardModel.from_language_model(language_model, tiny_tokenizer(pad_is_eos=True))


def row(ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_model_begins_on_any_trunk(family: str, tmp_path: Path) -> None:
    config, known = FAMILIES[family]
    reward = begun(config)
    assert reward.reads == "last_token"
    expected = alone(reward.model)
    assert expected.std() > 1e-2
    cut = reward.score_tokens(*batch([r[:-1] for r in ROWS if r[-1] == EOS]))
    assert (cut - expected[[0, 3]]).abs().min() > 1e-4, "the EOS is read"
    for length in (None, 20):
        assert_scores(reward, expected, length)
    reward(*batch(ROWS)).sum().backward()
    assert all(p.grad is not None for p in reward.trunk.get_input_embeddings().parameters())
    reward.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    assert_scores(again, expected)
    if known:
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(alone(theirs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_scores_are_those_of_each_row_alone_on_both_sides_of_a_threshold(name: str) -> None:
    reward = begun(THRESHOLDS[name])
    expected = alone(reward.model)
    for length in (None, 20):
        assert_scores(reward, expected, length)


def test_positions_that_switch_bound_what_is_scored_and_padding_switches_nothing() -> None:
    positions = {"original_max_position_embeddings": 5, "rope_parameters": LONGROPE}
    reward = begun(Phi3Config(**named("pad_token_id"), pad_token_id=0, **positions))
    expected = alone(reward.model)[:3]
    for length in (None, 20):
        torch.testing.assert_close(reward.score_tokens(*batch(ROWS[:3], length)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"rows of at most 5 tokens .*got 9 in row 3"):
        reward.score_tokens(*batch(ROWS))


def test_a_checkpoint_of_a_family_without_a_classifier_is_no_reward_model(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(FAMILIES["mamba"][0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"got a model of type 'mamba', .* no classifier; RewardModel.from_language"):
        load_reward(tmp_path)


def test_a_model_in_bf16_scores_a_row_alike_alone_and_in_a_batch(tmp_path: Path) -> None:
    reward = RewardModel.from_language_model(tiny_llama(), tiny_tokenizer(), dtype=torch.bfloat16)
    assert reward.model.dtype == torch.bfloat16
    expected = alone(reward.model).float()
    torch.testing.assert_close(reward.score_tokens(*batch(ROWS)), expected, rtol=0.02, atol=0.02)
    reward.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.model.dtype == torch.bfloat16
    torch.testing.assert_close(loaded.score_tokens(*batch(ROWS)), expected, rtol=0.02, atol=0.02)


# --- adapters ---------------------------------------------------------------------------------------------------------

needs_peft = pytest.mark.skipif(not is_peft_available(), reason="needs peft")


def adapter(base: PreTrainedModel, folder: Path, *, head: bool = True) -> torch.Tensor:
    """Write peft's adapter of a base, its weights drawn anew, and return what it gives for each row alone, (B,)."""
    from peft import LoraConfig, get_peft_model

    base.config.num_labels = 1
    config = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["score"] if head else None)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        torch.manual_seed(1)
        model = get_peft_model(base, config)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return alone(model.eval())


@needs_peft
@pytest.mark.parametrize("config_beside", [False, True])
@pytest.mark.parametrize("base_is", ["a language model", "a reward model"])
def test_an_adapter_with_its_head_is_a_reward_model(base_is: str, config_beside: bool, tmp_path: Path) -> None:
    """TRL keeps the pad token of an adapter's classifier in the tokenizer alone."""
    if base_is == "a language model":
        tiny_llama(pad_token_id=None).save_pretrained(tmp_path / "base")
    else:
        tiny_llama(model_class=LlamaForSequenceClassification, num_labels=1).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    base.config.pad_token_id = EOS
    expected = adapter(base, tmp_path / "adapter")
    tiny_tokenizer(pad_is_eos=True).save_pretrained(tmp_path / "adapter")
    if config_beside:
        base.config.save_pretrained(tmp_path / "adapter")
    reward = load_reward(tmp_path / "adapter")
    assert_scores(reward, expected)
    at_eos = reward.score_tokens(*batch([ROWS[0]])) - reward.score_tokens(*batch([ROWS[0][:-1]]))
    assert abs(at_eos) < 1e-5, "with pad = EOS the token before it is read"
    reward.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        load_reward(tmp_path / "merged").score_tokens(*batch(ROWS)), expected, rtol=1e-5, atol=1e-5
    )


@needs_peft
def test_an_adapter_beside_its_base_and_one_on_a_trained_head(tmp_path: Path) -> None:
    base = tiny_llama(model_class=LlamaForSequenceClassification, num_labels=1)
    base.save_pretrained(tmp_path / "both")
    base.save_pretrained(tmp_path / "base")
    expected = adapter(base, tmp_path / "both")
    settings = json.loads((tmp_path / "both/adapter_config.json").read_text())
    (tmp_path / "both/adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    torch.testing.assert_close(
        load_reward(tmp_path / "both").score_tokens(*batch(ROWS)), expected, rtol=1e-5, atol=1e-5
    )
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    expected = adapter(base, tmp_path / "lora", head=False)
    torch.testing.assert_close(
        load_reward(tmp_path / "lora").score_tokens(*batch(ROWS)), expected, rtol=1e-5, atol=1e-5
    )


@needs_peft
def test_an_adapter_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    adapter(base, tmp_path / "adapter", head=False)
    with pytest.raises(ValueError, match=r"expected an adapter with a trained head .* without score.weight"):
        load_reward(tmp_path / "adapter")
