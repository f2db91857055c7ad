"""What our process and the peer's both need: models, prompts, clocks. The peer's has no `rlhf_gym`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD = 0
STOP = 1
FIRST_WORD = 3
PROMPT = 8
"""Tokens of each prompt."""
ADAPTER = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
"""Arguments of `peft.LoraConfig`, on both sides."""


@dataclass(frozen=True)
class Shape:
    """A language model's size (GPT-2's architecture, or Llama's where the key-value heads are counted), or a folder."""

    name: str
    n_layer: int = 0
    width: int = 0
    n_head: int = 0
    vocab_size: int = 0
    kv_heads: int = 0
    """Key-value heads of a Llama; 0 for a GPT-2."""
    intermediate: int = 0
    """Width of a Llama's feed-forward layers; a GPT-2's is 4 × its own."""
    dtype: str = "float32"
    folder: str = ""
    """A checkpoint to load instead; then the other numbers are its own."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return getattr(torch, self.dtype)


TINY = Shape("tiny", 4, 128, 4, 1_000)
SMALL = Shape("small", 6, 384, 6, 5_000)
BASE = Shape("base", 12, 768, 12, 50_257)
LLAMA_1B = Shape("1b", 16, 2048, 32, 128_256, kv_heads=8, intermediate=8192, dtype="bfloat16")
SHAPES = {shape.name: shape for shape in (TINY, SMALL, BASE, LLAMA_1B)}


def of_folder(folder: Path) -> Shape:
    """The checkpoint in a folder."""
    config = json.loads((folder / "config.json").read_text())
    return Shape(
        folder.name, config["num_hidden_layers"], config["hidden_size"], vocab_size=config["vocab_size"],
        folder=str(folder),
    )  # fmt: skip


def model_config(shape: Shape, positions: int, **more: Any) -> PretrainedConfig:
    """A Transformers configuration of this shape, without dropout."""
    more |= {"bos_token_id": STOP, "eos_token_id": STOP, "pad_token_id": PAD, "vocab_size": shape.vocab_size}
    if not shape.kv_heads:
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        size = {"n_embd": shape.width, "n_layer": shape.n_layer, "n_head": shape.n_head, "n_positions": positions}
        return GPT2Config(**size, **dropout, **more)
    return LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=positions,
        **more,
    )


def causal_lm(shape: Shape, positions: int, *, device: str = "cpu") -> PreTrainedModel:
    """A causal LM that never stops by itself: the checkpoint, or random weights (the same at every call)."""
    torch.manual_seed(0)
    if shape.folder:
        model = AutoModelForCausalLM.from_pretrained(shape.folder, dtype=shape.torch_dtype).to(device)
    else:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(model_config(shape, positions), dtype=shape.torch_dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def scalar_model(shape: Shape, positions: int, *, device: str = "cpu") -> PreTrainedModel:
    """The same trunk under a scalar head: a reward model, or the peer's value model."""
    torch.manual_seed(1)
    if shape.folder:
        load = AutoModelForSequenceClassification.from_pretrained
        return load(shape.folder, num_labels=1, dtype=shape.torch_dtype).to(device).eval()
    with torch.device(device):
        config = model_config(shape, positions, num_labels=1)
        return AutoModelForSequenceClassification.from_config(config, dtype=shape.torch_dtype).eval()


def tokenizer_of(shape: Shape, *, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, or one with as many words as the model: `<pad>`, `<eos>`, `<unk>`, w3, w4, …"""
    if shape.folder:
        return AutoTokenizer.from_pretrained(shape.folder, padding_side=padding_side)
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(FIRST_WORD, shape.vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=padding_side, **named)


def random_prompts(shape: Shape, count: int) -> list[list[int]]:
    """So many prompts of `PROMPT` random tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(FIRST_WORD, shape.vocab_size, (count, PROMPT), generator=generator).tolist()


@dataclass(frozen=True)
class Iteration:
    """One PPO setting, the same for ours and the peer's; travels as JSON."""

    shape: Shape
    device: str
    threads: int
    iterations: int
    """How many iterations are timed, after the warm-up."""
    warm_ups: int
    response: int
    episodes: int = 64
    epochs: int = 4
    minibatches: int = 4
    micro_batches: int = 1
    """For ours only: parts that a minibatch is worked through in."""
    kind: str = "full"
    """full or lora; for ours also separate (critic), half (of the layers frozen), bf16."""


def iteration_from_json(text: str) -> Iteration:
    """What `json.dumps(asdict(iteration))` wrote."""
    fields = json.loads(text)
    return Iteration(**{**fields, "shape": Shape(**fields["shape"])})


def now(device: str) -> float:
    """Seconds; on CUDA everything asked for before has been done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_mb(device: str) -> float:
    """Peak of this process, MB: of its device memory on CUDA, else resident (Linux: VmHWM, which a parent's peak does
    not leak into as it does into `ru_maxrss`)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def begin_peak(device: str) -> float:
    """Let the peak begin anew where that can be; the memory in use now, MB, or the peak so far."""
    clear = Path("/proc/self/clear_refs")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif clear.exists():
        clear.write_text("5")
    return peak_memory_mb(device)
