"""What replaying the recorded one-token step gains over running the model's own code, as a table in Markdown.

    python scripts/decoding_tricks.py --model path/to/a/135M/model

Without `--model` two models with random weights are measured: tiny (1M weights) and small (13M). Both ways of decoding
run in turn, round by round, on one thread. What counts is the median over the rounds of the ratio of CPU time within a
round. Prompts have 8 tokens and are fed before the clock starts.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from benchmarks.shapes import PROMPT, SMALL, TINY, causal_lm
from transformers import PreTrainedModel

from rlhf_gym.lm import Decoder, load_causal_lm

WARM_UPS = 5
"""Untimed responses of 48 tokens, after which the steps have been recorded."""


@dataclass(frozen=True)
class Options:
    """The settings of the measurement."""

    model: Path | None = None
    """A folder with a further causal language model."""
    batches: tuple[int, ...] = (1, 16, 64)
    """Slots that are stepped at once."""
    tokens: int = 48
    """Tokens of a response."""
    rounds: int = 7
    """Timed responses of each kind."""


@torch.no_grad()
def seconds(decoder: Decoder, batch: int, tokens: int) -> float:
    """CPU seconds of one step, over a response of `tokens` tokens drawn in each of `batch` slots."""
    vocab_size = decoder.parts.vocab_size
    ids = np.zeros((batch, PROMPT + tokens), dtype=np.int64)  # (N, L)
    ids[:, :PROMPT] = np.random.default_rng(0).integers(3, vocab_size, size=(batch, PROMPT))
    decoder.invalidate()
    decoder(ids, np.full(batch, PROMPT))
    begin = time.process_time()
    for length in range(PROMPT, PROMPT + tokens):
        probabilities = decoder.logits(ids, np.full(batch, length)).softmax(dim=-1)  # (N, V)
        ids[:, length] = torch.multinomial(probabilities, 1)[:, 0].numpy()
    return (time.process_time() - begin) / tokens


def measure(model: PreTrainedModel, batch: int, options: Options) -> tuple[float, float]:
    """Milliseconds of a plain step, and how many times faster a replayed one is."""
    plain = Decoder(model)
    plain.why_no_replay = "measured without"
    replayed = Decoder(model)
    for _ in range(WARM_UPS):
        seconds(replayed, batch, options.tokens)
    seconds(plain, batch, options.tokens)
    of_plain = []
    ratios = []
    for round in range(options.rounds):
        found = {decoder: seconds(decoder, batch, options.tokens) for decoder in (plain, replayed)[:: (-1) ** round]}
        of_plain.append(found[plain])
        ratios.append(found[plain] / found[replayed])
    return 1000 * statistics.median(of_plain), statistics.median(ratios)


def main() -> None:
    """Print the table."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    models = {shape.name: causal_lm(shape, PROMPT + options.tokens) for shape in (TINY, SMALL)}
    if options.model is not None:
        models[options.model.name] = load_causal_lm(options.model)
    print("| model | batch | ms a plain step | replay |\n|---|---:|---:|---:|")
    every = []
    for name, model in models.items():
        for batch in options.batches:
            milliseconds, ratio = measure(model, batch, options)
            every.append(ratio)
            print(f"| {name} | {batch} | {milliseconds:.1f} | × {ratio:.2f} |", flush=True)
    print(f"\nGeometric mean: × {statistics.geometric_mean(every):.2f}")


if __name__ == "__main__":
    main()
