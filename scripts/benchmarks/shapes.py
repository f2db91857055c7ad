"""Model shapes with random weights, and what a measurement is told. Imports nothing of the package: the peer's process
has no `rlhf_gym`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD, STOP, UNKNOWN, FIRST_WORD = 0, 1, 2, 3
PROMPT = 8
"""Tokens of each prompt."""


@dataclass(frozen=True)
class Shape:
    """A language model's size. GPT-2's architecture, or Llama's where the key-value heads are counted."""

    name: str
    n_layer: int
    width: int
    n_head: int
    vocab_size: int
    kv_heads: int = 0
    """Key-value heads of a Llama; 0 for a GPT-2."""
    intermediate: int = 0
    """Width of a Llama's feed-forward layers; a GPT-2's is 4 × its own."""
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the weights."""
        return getattr(torch, self.dtype)

    @property
    def layer_weights(self) -> int:
        """Weights of the layers' matrix products, biases and norms left out."""
        if not self.kv_heads:
            return self.n_layer * 12 * self.width**2
        attention = 2 * self.width**2 + 2 * self.width * self.kv_heads * (self.width // self.n_head)
        return self.n_layer * (attention + 3 * self.width * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the product that gives the logits."""
        return self.width * self.vocab_size


TINY = Shape("tiny", 4, 128, 4, 1_000)
SMALL = Shape("small", 6, 384, 6, 5_000)
BASE = Shape("base", 12, 768, 12, 50_257)
LLAMA_1B = Shape("1b", 16, 2048, 32, 128_256, kv_heads=8, intermediate=8192, dtype="bfloat16")
SHAPES = {shape.name: shape for shape in (TINY, SMALL, BASE, LLAMA_1B)}


@dataclass(frozen=True)
class Settings:
    """What every measurement of one run shares."""

    shapes: tuple[Shape, ...] = (TINY, SMALL)
    device: str = "cpu"
    threads: int = 2
    rounds: int = 5
    """Timed repeats of each variant, in turn with the others."""
    min_seconds: float = 0.3
    """A repeat goes on for at least so long."""
    warm_ups: int = 5
    """Untimed calls of each variant: after so many the decoder has recorded its one-token steps."""
    batches: tuple[int, ...] = (1, 16, 64)
    response: int = 48
    """Tokens of each response."""
    long_response: int = 512
    short_response: int = 64
    episodes: int = 256
    """Of unequal lengths."""
    stock_sizes: tuple[str, ...] = ("tiny",)
    """Shapes at which stock agents are compared: a naive one needs minutes at `small`."""


@dataclass(frozen=True)
class Iteration:
    """One PPO setting, the same for ours and the peer's; travels as JSON."""

    shape: Shape
    device: str
    threads: int
    iterations: int
    """Timed, after a warm-up."""
    warm_ups: int
    response: int
    episodes: int = 64
    epochs: int = 4
    minibatches: int = 4
    critic: str = "shared"
    """Ours alone: `shared` or `separate`."""
    freeze_layers: int = 0
    """Ours alone: so many lower layers stay as they are."""


def model_config(shape: Shape, positions: int, **more: Any) -> PretrainedConfig:
    """A Transformers configuration of this shape, without dropout."""
    more |= {"bos_token_id": STOP, "eos_token_id": STOP, "pad_token_id": PAD}
    if shape.kv_heads:
        return LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.n_layer,
            num_attention_heads=shape.n_head,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=positions,
            **more,
        )
    return GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=positions,
        n_embd=shape.width,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **more,
    )


def causal_lm(shape: Shape, positions: int, *, device: str = "cpu") -> PreTrainedModel:
    """A causal LM with random weights (the same at every call), which never stops by itself."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(model_config(shape, positions), dtype=shape.torch_dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def scalar_model(shape: Shape, positions: int, *, device: str = "cpu") -> PreTrainedModel:
    """The same trunk under a scalar head: a reward model, or the peer's value model."""
    torch.manual_seed(1)
    config = model_config(shape, positions, num_labels=1)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=shape.torch_dtype)
    return model.eval()


def word_tokenizer(vocab_size: int, *, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer with as many words as the model: `<pad>`, `<eos>`, `<unk>`, w3, w4, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(FIRST_WORD, vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side=padding_side,
    )


def random_prompts(shape: Shape, count: int) -> list[list[int]]:
    """So many prompts of `PROMPT` random tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(FIRST_WORD, shape.vocab_size, (count, PROMPT), generator=generator).tolist()


def iteration_from_json(text: str) -> Iteration:
    """What `json.dumps(asdict(iteration))` wrote."""
    fields = json.loads(text)
    return Iteration(**{**fields, "shape": Shape(**fields["shape"])})
