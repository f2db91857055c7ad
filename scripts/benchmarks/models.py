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
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
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
    """A GPT-2's size, or a checkpoint's."""

    name: str
    n_layer: int
    width: int
    vocab_size: int
    n_head: int = 0
    folder: str = ""
    """The checkpoint to load; empty for random weights."""


TINY = Shape("tiny", 4, 128, 1_000, 4)
SMALL = Shape("small", 6, 384, 5_000, 6)


def of_folder(folder: Path) -> Shape:
    """The checkpoint in a folder."""
    config = AutoConfig.from_pretrained(folder).get_text_config()
    return Shape(folder.name, config.num_hidden_layers, config.hidden_size, config.vocab_size, folder=str(folder))


def _made(kind: Any, shape: Shape, positions: int, *, seed: int, device: str, dtype: torch.dtype, **more: Any) -> Any:
    """A model of one of Transformers' Auto classes: the checkpoint, or random weights without dropout."""
    torch.manual_seed(seed)
    if shape.folder:
        return kind.from_pretrained(shape.folder, dtype=dtype, **more).to(device).eval()
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=positions,
        n_embd=shape.width,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        bos_token_id=STOP,
        eos_token_id=STOP,
        pad_token_id=PAD,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **more,
    )
    with torch.device(device):
        return kind.from_config(config, dtype=dtype).eval()


def causal_lm(
    shape: Shape, positions: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A causal LM that never stops by itself; random weights are the same at every call."""
    model = _made(AutoModelForCausalLM, shape, positions, seed=0, device=device, dtype=dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def scalar_model(
    shape: Shape, positions: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The same trunk under a scalar head: a reward model, or the peer's value model."""
    kind = AutoModelForSequenceClassification
    return _made(kind, shape, positions, seed=1, device=device, dtype=dtype, num_labels=1)


def tokenizer_of(shape: Shape, *, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, or one with as many words as the model: `<pad>`, `<eos>`, `<unk>`, w3, w4, …"""
    if shape.folder:
        return AutoTokenizer.from_pretrained(shape.folder, padding_side=padding_side)
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(FIRST_WORD, shape.vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": words[0], "eos_token": words[1], "unk_token": words[2]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=padding_side, **special)


def random_prompts(shape: Shape, count: int, length: int = PROMPT) -> list[list[int]]:
    """So many prompts of `length` random tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(FIRST_WORD, shape.vocab_size, (count, length), generator=generator).tolist()


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
    kind: str = "full"
    """full or lora; for ours also separate (critic), half (of the layers frozen), bf16, sharded (over the ranks)."""
    ranks: int = 0
    """Processes that torchrun starts, for ours, timed by the clock on the wall; 0 for one process without torchrun."""


def iteration_from_json(text: str) -> Iteration:
    """What `json.dumps(asdict(iteration))` wrote."""
    fields = json.loads(text)
    return Iteration(**{**fields, "shape": Shape(**fields["shape"])})


def now(device: str, *, wall: bool = False) -> float:
    """Seconds; on CUDA everything asked for before has been done.

    On one CPU thread it is the CPU time of the process, which other work on the machine does not stretch; not if
    `wall`.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    elif not wall and torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def peak_memory_mb(device: str) -> float:
    """Peak of this process, MB: of its device memory on CUDA, else resident (of Linux's VmHWM, which a parent's peak
    does not leak into as it does into `ru_maxrss`)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def begin_peak(device: str) -> float:
    """Let the peak begin anew; the memory in use now, MB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_mb(device)
