"""A task and settings so small that a whole run takes seconds."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlhf_gym.envs import Reply
from rlhf_gym.lm import Message
from rlhf_gym.lm.chat import Conversation
from rlhf_gym.preferences import Demonstration
from rlhf_gym.settings import CollectConfig, EvaluateConfig, PPOSettings, RewardConfig, RunConfig
from rlhf_gym.tasks import Others, Task
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


TURNS_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end] {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def ask_on(messages: Conversation, rng: np.random.Generator) -> Reply | None:
    """Leaves where the answer says "bad"; else pays .5 for it and asks on with a word of its own."""
    said = f"the {rng.choice(['cast', 'plot'])}"
    return None if "bad" in messages[-1].content.split() else Reply(said, reward=0.5)


def tiny_dialogues(folder: Path) -> Task:
    """Conversations of two turns of three tokens, and a model to write them, made where it is not there."""
    tokenizer = tiny_tokenizer([*WORDS, "[system]", "[user]", "[assistant]", "[end]"])
    tokenizer.chat_template = TURNS_TEMPLATE
    if not folder.exists():
        tiny_gpt2(len(tokenizer), n_layer=1, n_embd=16, initializer_range=0.02).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    asked = [(Message("user", text),) for text in PROMPTS]
    return tiny_task(
        folder,
        prompts=asked[6:],
        heldout_prompts=asked[:6],
        demonstrations=(),
        heldout_demonstrations=(),
        tokenizer=tokenizer,
        max_prompt_length=8,
        pretraining_texts=(),
        model_config=None,
        others=Others(ask_on, max_turns=2, max_turn_tokens=3, max_reply_tokens=8),
    )


def quiet() -> Console:
    """A console whose output one can read: `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=120)


def said(console: Console) -> str:
    """What was printed."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
