"""Some iterations of `TokenPPO`, timed, in a process of their own: `python -m benchmarks.own_ppo ITERATION_AS_JSON`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.common import (
    PROMPT,
    ForeignLoad,
    Iteration,
    causal_lm,
    iteration_from_json,
    now,
    peak_memory_mb,
    random_prompts,
    scalar_model,
    word_tokenizer,
)
from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared, quiet_transformers
from rlhf_gym.rewards import RewardModel


class Marks(BaseCallback):
    """When each rollout begins and ends. The warm-up's updates are of one epoch."""

    def __init__(self, given: Iteration) -> None:
        super().__init__()
        self.given = given
        self.started: list[float] = []
        self.collected: list[float] = []
        self.finished = 0.0
        self.load: ForeignLoad | None = None

    def _on_rollout_start(self) -> None:
        timed = len(self.started) >= self.given.warm_ups
        self.model.n_epochs = self.given.epochs if timed else 1  # type: ignore[attr-defined]
        if timed and self.load is None:
            self.load = ForeignLoad()
        self.started.append(now(self.given.device))

    def _on_rollout_end(self) -> None:
        self.collected.append(now(self.given.device))

    def _on_training_end(self) -> None:
        self.finished = now(self.given.device)

    def _on_step(self) -> bool:
        return True


def make_agent(given: Iteration) -> TokenPPO:
    """A PPO whose π_ref, policy and r_φ all have the shape asked for. Weights that are trained are in fp32; where the
    shape's dtype is bf16, forward passes are in it."""
    shape = given.shape
    positions = PROMPT + given.response
    tokenizer = word_tokenizer(shape.vocab_size)
    reference = causal_lm(shape, positions, device=given.device)
    reward = RewardModel(scalar_model(shape, positions, device=given.device), tokenizer)
    env = TokenVectorEnv(
        given.episodes,
        prompts=random_prompts(shape, 4 * given.episodes),
        tokenizer=tokenizer,
        reference=Shared(reference),
        reward=Shared(reward),
        max_new_tokens=given.response,
        stop_token_ids=(),
        reward_timing="deferred",
    )
    return TokenPPO(
        "LMPolicy",
        env,
        learning_rate=1e-5,
        n_episodes=given.episodes,
        batch_size=given.episodes // given.minibatches,
        n_epochs=given.epochs,
        policy_kwargs={
            "critic": given.critic,
            "freeze_layers": given.freeze_layers,
            "bf16": shape.torch_dtype == torch.bfloat16,
        },
        device=given.device,
        seed=0,
    )


def measure(given: Iteration) -> dict[str, Any]:
    """Seconds of each timed iteration and of its phases, the peak of memory, and the rates of matrix products."""
    torch.set_num_threads(given.threads)
    libraries = peak_memory_mb(given.device)
    agent = make_agent(given)
    scoring: list[float] = []
    agent.engine.score_episodes = timed(agent.engine.score_episodes, scoring, given.device)  # type: ignore[method-assign]
    marks = Marks(given)
    count = given.warm_ups + given.iterations
    agent.learn(count * given.episodes * given.response, callback=marks)
    if agent._n_updates != (given.warm_ups + given.iterations * given.epochs) * given.minibatches:
        raise RuntimeError(f"expected {given.minibatches} optimizer steps an epoch, got {agent._n_updates} in all")
    first = given.warm_ups
    ends = [*marks.started[1:], marks.finished]
    assert marks.load is not None
    foreign = marks.load()
    peak = peak_memory_mb(given.device)
    return {
        "seconds": [b - a for a, b in list(zip(marks.started, ends, strict=True))[first:]],
        "rollout": [b - a - s for a, b, s in list(zip(marks.started, marks.collected, scoring, strict=True))[first:]],
        "scoring": scoring[first:],
        "update": [b - a for a, b in list(zip(marks.collected, ends, strict=True))[first:]],
        "foreign": foreign,
        "peak_mb": peak,
        "libraries_mb": libraries,
        "trained": sum(p.numel() for p in agent.policy.parameters() if p.requires_grad),
    }


def timed(function: Callable[..., Any], seconds: list[float], device: str) -> Callable[..., Any]:
    """`function`, whose calls' times are appended to `seconds`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = now(device)
        result = function(*args, **kwargs)
        seconds.append(now(device) - started)
        return result

    return call


if __name__ == "__main__":
    with quiet_transformers():
        print(json.dumps(measure(iteration_from_json(sys.argv[1]))))
