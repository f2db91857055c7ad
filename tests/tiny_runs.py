"""A task and settings so small that a whole run takes seconds."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlhf_gym.preferences import Demonstration
from rlhf_gym.settings import CollectConfig, EvaluateConfig, PPOSettings, RewardConfig, RunConfig
from rlhf_gym.tasks import Task
from rlhf_gym.training import RewardModelingConfig, SFTConfig
from tests.tiny import WORDS, tiny_gpt2, tiny_tokenizer

PROMPTS = [f"{a} {b} {c}" for a, b, c in product(("the", "a"), ("film", "plot", "cast", "scene"), ("is", "was", "not"))]


def count_good(prompts: list[str], responses: list[str]) -> np.ndarray:
    """Gold: kind words less unkind ones."""
    return (
        np.array([r.split().count("good") + r.split().count("fine") - r.split().count("bad") for r in responses]) * 1.0
    )


def save_model(folder: Path, **overrides: Any) -> Path:
    """A tiny language model with its tokenizer, as a folder."""
    tiny_gpt2(**({"n_layer": 1, "n_embd": 16} | overrides)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_task(pretrained: Path | None = None, **overrides: Any) -> Task:
    """18 prompts to train on, 6 held out; the model is made anew where none is given."""
    rng = np.random.default_rng(0)
    shown = [Demonstration(p, " ".join(rng.choice(WORDS, rng.integers(1, 5)))) for p in PROMPTS * 2]
    settings: dict[str, Any] = {
        "name": "tiny",
        "prompts": PROMPTS[6:],
        "heldout_prompts": PROMPTS[:6],
        "demonstrations": [d for d in shown if d.prompt in PROMPTS[6:]],
        "heldout_demonstrations": [d for d in shown if d.prompt in PROMPTS[:6]],
        "tokenizer": tiny_tokenizer(),
        "gold": count_good,
        "max_prompt_length": 4,
        "max_new_tokens": 6,
        "pretraining_texts": [f"{d.prompt} {d.response}" for d in shown],
        "model_config": tiny_gpt2(n_layer=1, n_embd=16).config,
        "pretrained": pretrained,
    }
    return Task(**(settings | overrides))


def tiny_config(run_dir: Path, **overrides: Any) -> RunConfig:
    """One seed, a handful of steps of everything."""
    sft = SFTConfig(epochs=1, learning_rate=1e-3, batch_size=16)
    config = RunConfig(
        run_dir=run_dir,
        seeds=1,
        without_kl=False,
        device="cpu",
        threads=1,
        pretraining=sft,
        sft=sft,
        collect=CollectConfig(num_prompts=14, samples_per_prompt=4, heldout_fraction=0.25),
        reward=RewardConfig(
            training=RewardModelingConfig(epochs=1, learning_rate=1e-3, batch_size=16),
            reference_samples=24,
            probe_samples=24,
        ),
        agent=PPOSettings(
            total_tokens=240,
            n_episodes=16,
            batch_size=8,
            n_epochs=1,
            num_envs=8,
            learning_rate=1e-3,
            checkpoint_every=1,
        ),
        evaluate=EvaluateConfig(num_prompts=6, best_of=2, best_of_samples=8, shown=2),
    )
    return replace(config, **overrides)


def quiet() -> Console:
    """A console whose output one can read: `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=120)


def said(console: Console) -> str:
    """What was printed."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
