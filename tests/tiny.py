"""Tiny models and tokenizers, built on the spot, that the tests share.

Every model is fp32, in eval mode, with dropout off, and a function of its arguments alone: the global random state is
neither read nor moved. Weights are drawn wide (`initializer_range`), so that logits differ by more than rounding and a
wrong position, mask or cache shows. Token 0 is the padding, 1 the end of sequence, as in `tiny_tokenizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if TYPE_CHECKING:
    from rlhf_gym.rewards import RewardModel, RewardNormalizer

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
_WORDS = """
    good bad fine poor fun dull film plot cast scene the a is was not very of and with it i saw we they liked hated
"""
WORDS = tuple(_WORDS.split())
"""The default words; with the three special tokens the vocabulary has 29 entries."""

VOCAB_SIZE = len(WORDS) + 3


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model of that class with weights drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()


def tiny_gpt2(
    vocab_size: int = VOCAB_SIZE,
    *,
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 2,
    n_positions: int = 64,
    seed: int = 0,
    model_class: type[PreTrainedModel] = GPT2LMHeadModel,
    **overrides: Any,
) -> PreTrainedModel:
    """Learned positions, tied embeddings. `overrides` go into the config, e.g. `resid_pdrop=0.1`."""
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2}
    config = GPT2Config(
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_positions=n_positions,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        **(settings | overrides),
    )
    return build(model_class, config, seed)


def _rotary(vocab_size: int, n_layer: int, n_embd: int, n_head: int, n_positions: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "num_hidden_layers": n_layer,
        "hidden_size": n_embd,
        "intermediate_size": 2 * n_embd,
        "num_attention_heads": n_head,
        "num_key_value_heads": max(1, n_head // 2),
        "max_position_embeddings": n_positions,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "initializer_range": 0.2,
    }


def tiny_llama(
    vocab_size: int = VOCAB_SIZE,
    *,
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 2,
    n_positions: int = 64,
    seed: int = 0,
    model_class: type[PreTrainedModel] = LlamaForCausalLM,
    **overrides: Any,
) -> PreTrainedModel:
    """Rotary positions, grouped key-value heads, untied embeddings."""
    config = LlamaConfig(**(_rotary(vocab_size, n_layer, n_embd, n_head, n_positions) | overrides))
    return build(model_class, config, seed)


def tiny_qwen2(
    vocab_size: int = VOCAB_SIZE,
    *,
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 2,
    n_positions: int = 64,
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """Rotary positions with biases in the attention."""
    config = Qwen2Config(**(_rotary(vocab_size, n_layer, n_embd, n_head, n_positions) | overrides))
    return build(Qwen2ForCausalLM, config, seed)


def tiny_mistral(
    vocab_size: int = VOCAB_SIZE,
    *,
    sliding_window: int | None = 4,
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 2,
    n_positions: int = 64,
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """Every layer attends within a sliding window."""
    settings = _rotary(vocab_size, n_layer, n_embd, n_head, n_positions) | {"sliding_window": sliding_window}
    return build(MistralForCausalLM, MistralConfig(**(settings | overrides)), seed)


def tiny_gemma3(
    vocab_size: int = VOCAB_SIZE,
    *,
    sliding_window: int = 4,
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 2,
    n_positions: int = 64,
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """Sliding-window layers and full-attention layers in turn (the last one is full)."""
    layer_types = ["full_attention" if i % 2 == (n_layer - 1) % 2 else "sliding_attention" for i in range(n_layer)]
    settings = _rotary(vocab_size, n_layer, n_embd, n_head, n_positions) | {
        "sliding_window": sliding_window,
        "head_dim": n_embd // n_head,
        "query_pre_attn_scalar": n_embd // n_head,
        "layer_types": layer_types,
    }
    return build(Gemma3ForCausalLM, Gemma3TextConfig(**(settings | overrides)), seed)


def tiny_bert_classifier(vocab_size: int = VOCAB_SIZE, *, n_positions: int = 64, seed: int = 0) -> PreTrainedModel:
    """An encoder with a scalar head: attention goes both ways, and the head reads the first token."""
    config = BertConfig(
        vocab_size=vocab_size,
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=n_positions,
        initializer_range=0.2,
        num_labels=1,
    )
    return build(BertForSequenceClassification, config, seed)


def tiny_tokenizer(words: Sequence[str] = WORDS, *, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """One token a word, split at spaces: ids 0 `<pad>`, 1 `<eos>`, 2 `<unk>`, then the words in order.

    With `pad_is_eos` the pad token is `<eos>` itself, as GPT-2's users set it (id 0 then stands unused).
    """
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, UNK, *words])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=EOS if pad_is_eos else PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
    )


def tiny_reward_model(
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    vocab_size: int | None = None,
    architecture: str = "gpt2",
    seed: int = 0,
    normalizer: RewardNormalizer | None = None,
    **overrides: Any,
) -> RewardModel:
    """A random scorer over the tokenizer's vocabulary (`tiny_tokenizer()` by default); "gpt2" or "llama".

    `overrides` go to `tiny_gpt2` or `tiny_llama`. The head is drawn wide too, so that scores differ.
    """
    from rlhf_gym.rewards import RewardModel, RewardNormalizer  # the tests of the floors below do without

    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    vocab_size = len(tokenizer) if vocab_size is None else vocab_size
    settings: dict[str, Any] = {"num_labels": 1} | overrides
    if architecture == "gpt2":
        model = tiny_gpt2(vocab_size, seed=seed, model_class=GPT2ForSequenceClassification, **settings)
    elif architecture == "llama":
        model = tiny_llama(vocab_size, seed=seed, model_class=LlamaForSequenceClassification, **settings)
    else:
        raise ValueError(f"expected the architecture 'gpt2' or 'llama', got {architecture!r}")
    return RewardModel(model, tokenizer, normalizers=[normalizer or RewardNormalizer()])
