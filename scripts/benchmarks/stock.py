"""Stable-Baselines3's own PPO: with our policy, and with one that runs the model over each observation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor
from transformers import AutoModel

from benchmarks.setups import make_env
from benchmarks.shapes import PROMPT, SHAPES, Settings, Shape, causal_lm, model_config
from benchmarks.tables import Detail, Row, Section
from benchmarks.timing import Comparison, Say, Variant, round_robin
from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv
from rlhf_gym.lm.loading import Shared

MINIBATCHES, EPOCHS = 4, 4
ROUNDS = 3
"""At most: the naive agent needs more than a minute an iteration."""
WARM_UPS = 5
"""Iterations of ours before the timed ones: by then its one-token steps are recorded."""


class NaiveExtractor(BaseFeaturesExtractor):
    """What one writes without thinking of caches: the model over the whole padded observation, for each transition."""

    def __init__(self, observation_space: spaces.Space, shape: Shape, positions: int) -> None:
        super().__init__(observation_space, features_dim=shape.width)
        self.model = AutoModel.from_config(model_config(shape, positions))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """The last real token's hidden state, (B, H)."""
        ids, mask = observations["input_ids"].long(), observations["attention_mask"].long()  # (B, L)
        hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, L, H)
        return hidden[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1]


def measure(settings: Settings, say: Say) -> Section:
    """Whole iterations of both, in turn, at the sizes asked for."""
    rows, lines, foreign = [], [], 0.0
    for name in settings.stock_sizes:
        shape = next((s for s in settings.shapes if s.name == name), None) or SHAPES[name]
        slots = slots_for(shape)
        say(f"{name}: stock PPO, {slots} slots × {settings.response} steps")
        found = compare(shape, slots, settings)
        ratio, minibatch = found.ratio("ours", "naive"), slots * settings.response // MINIBATCHES
        note = f"{slots} slots × {settings.response} steps, minibatch {minibatch}, {EPOCHS} epochs; same environment"
        what = f"stock SB3 PPO with our policy ({name})"
        rows.append(Row(what, "stock SB3 PPO, naive policy", ratio, 8, note=note))
        lines.append([name, f"{found.rate('naive'):,.0f}", f"{found.rate('ours'):,.0f}", f"{ratio:.1f}"])
        foreign = max(foreign, found.foreign)
    header = ["size", "naive, tokens/s", "ours, tokens/s", "ratio"]
    return Section("stock", rows, [Detail("Stock SB3 PPO, whole iterations", header, lines)], foreign)


def slots_for(shape: Shape) -> int:
    """64 where the naive policy's activations of a minibatch fit in a few GB, else 8."""
    return 64 if shape.n_layer * shape.width <= 512 else 8


def compare(shape: Shape, slots: int, settings: Settings) -> Comparison:
    """Round-robin over whole iterations."""
    variants = {
        "naive": Variant(naive_iteration(shape, slots, settings), 0),
        "ours": Variant(our_iteration(shape, slots, settings), min(WARM_UPS, settings.warm_ups)),
    }
    return round_robin(variants, rounds=min(settings.rounds, ROUNDS), min_seconds=0.0, device=settings.device)


def our_iteration(shape: Shape, slots: int, settings: Settings) -> Callable[[], float]:
    """Stock PPO with `LMActorCriticPolicy`, attached, so that every step's reward is complete."""
    model = Shared(causal_lm(shape, PROMPT + settings.response, device=settings.device))
    agent = PPO(LMActorCriticPolicy, policy_kwargs={"model": model}, **_agent(shape, slots, settings))

    def run() -> float:
        agent.learn(slots * settings.response, callback=AttachPolicy())
        return float(slots * settings.response)

    return run


def naive_iteration(shape: Shape, slots: int, settings: Settings) -> Callable[[], float]:
    """Stock PPO with a transformer as features extractor, in the same environment, unattached."""
    kwargs = {"shape": shape, "positions": PROMPT + settings.response}
    policy_kwargs = {
        "features_extractor_class": NaiveExtractor,
        "features_extractor_kwargs": kwargs,
        "net_arch": [],
    }
    agent = PPO("MultiInputPolicy", policy_kwargs=policy_kwargs, **_agent(shape, slots, settings))

    def run() -> float:
        agent.learn(slots * settings.response)
        return float(slots * settings.response)

    return run


def _agent(shape: Shape, slots: int, settings: Settings) -> dict[str, Any]:
    model = causal_lm(shape, PROMPT + settings.response, device=settings.device)
    return {
        "env": SB3VecEnv(make_env(model, shape, num_envs=slots, response=settings.response, timing="step")),
        "n_steps": settings.response,
        "batch_size": slots * settings.response // MINIBATCHES,
        "n_epochs": EPOCHS,
        "gamma": 1.0,
        "learning_rate": 1e-5,
        "seed": 0,
        "device": settings.device,
    }
