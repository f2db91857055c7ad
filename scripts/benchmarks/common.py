"""Model shapes with random weights, clocks, and how variants are compared: in turn, round by round.

Nothing of the package is imported here: the peer's process has no `rlhf_gym`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD = 0
STOP = 1
UNKNOWN = 2
FIRST_WORD = 3
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
        """The data type of the weights."""
        return getattr(torch, self.dtype)


TINY = Shape("tiny", 4, 128, 4, 1_000)
SMALL = Shape("small", 6, 384, 6, 5_000)
BASE = Shape("base", 12, 768, 12, 50_257)
LLAMA_1B = Shape("1b", 16, 2048, 32, 128_256, kv_heads=8, intermediate=8192, dtype="bfloat16")
SHAPES = {shape.name: shape for shape in (TINY, SMALL, BASE, LLAMA_1B)}


@dataclass(frozen=True)
class Settings:
    """The settings that all measurements of a run share."""

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
    """How many episodes of unequal lengths there are."""
    stock_sizes: tuple[str, ...] = ("tiny",)
    """Shapes at which stock agents are compared: a naive one needs minutes at `small`."""


@dataclass(frozen=True)
class Iteration:
    """One PPO setting, the same for ours and the peer's; travels as JSON."""

    shape: Shape
    device: str
    threads: int
    iterations: int
    """How many iterations are timed, after a warm-up."""
    warm_ups: int
    response: int
    episodes: int = 64
    epochs: int = 4
    minibatches: int = 4
    critic: str = "shared"
    """For ours only: the critic is `shared` or `separate`."""
    freeze_layers: int = 0
    """For ours only: how many lower layers are frozen."""


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


# -- timing ---------------------------------------------------------------------------------------------------------

Say = Callable[[str], None]
"""A function that is told what is being measured."""

BUSY = 0.05
"""Share of the machine that other processes may use before a measurement is doubted."""


def now(device: str) -> float:
    """Seconds; on CUDA everything asked for before has been done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class ForeignLoad:
    """What other processes use of the CPU: /proc/stat less this process's own time.

    Read from the start of the object to each call; NaN where there is no /proc/stat.
    """

    def __init__(self) -> None:
        self._start = self._read()

    def __call__(self) -> float:
        """The share of all cores that other processes used, 0 … 1."""
        wall, busy, own = (b - a for a, b in zip(self._start, self._read(), strict=True))
        return max(0.0, busy - own) / max(wall * (os.cpu_count() or 1), 1e-9)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = os.times()
        own = times.user + times.system
        stat = Path("/proc/stat")
        if not stat.is_file():
            return time.perf_counter(), float("nan"), own
        user, nice, system, _, _, irq, soft_irq, steal = (int(x) for x in stat.read_text().split()[1:9])
        ticks = user + nice + system + irq + soft_irq + steal
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own


class Variant(NamedTuple):
    """One of the variants that are compared."""

    run: Callable[[], float]
    """Does the work once; returns how many tokens it counts for."""
    warm_ups: int = 1


class Comparison(NamedTuple):
    """The results of a round-robin."""

    rates: dict[str, list[float]]
    """Tokens a second of each variant, a number a round."""
    foreign: float
    """Share of the CPU that other processes used meanwhile."""

    def rate(self, name: str) -> float:
        """The variant's median rate over the rounds."""
        return statistics.median(self.rates[name])

    def ratio(self, ours: str, theirs: str) -> float:
        """Median over the rounds of the ratio within a round."""
        return statistics.median(a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True))

    def ratios(self, ours: str, theirs: str) -> tuple[float, float]:
        """The lowest and the highest round's ratio."""
        each = [a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True)]
        return min(each), max(each)


def round_robin(variants: Mapping[str, Variant], *, rounds: int, min_seconds: float, device: str) -> Comparison:
    """Time every variant once a round, beginning each round with another one.

    A variant is run again and again until `min_seconds` have passed.
    """
    for variant in variants.values():
        for _ in range(variant.warm_ups):
            variant.run()
    names = list(variants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    load = ForeignLoad()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = now(device)
            count = 0.0
            while True:
                count += variants[name].run()
                seconds = now(device) - started
                if seconds >= min_seconds:
                    break
            rates[name].append(count / seconds)
    return Comparison(rates, load())


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
