"""Some iterations of `TokenPPO`, timed, in a process of their own: `python -m benchmarks.own_ppo ITERATION_AS_JSON`."""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks import models
from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared, keep_freed_memory, quiet_transformers
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import RewardModel


class Marks(BaseCallback):
    """When each rollout begins and ends, and what the first forward and backward pass takes. The warm-up's updates are
    of one epoch."""

    def __init__(self, given: models.Iteration) -> None:
        super().__init__()
        self.given = given
        self.started: list[float] = []
        self.collected: list[float] = []
        self.steps = 0
        self.peak = 0.0
        self.before = 0.0
        self.update_mb = 0.0
        self.held: list[int] = []  # bytes of weights, gradients and moments at the end of a rollout, and at each step
        self.waited: list[float] = []  # seconds in meetings of the ranks until each rollout began

    def _now(self) -> float:
        return models.now(self.given.device, wall=self.given.ranks > 0)

    def _on_training_start(self) -> None:
        self.model.policy.optimizer.register_step_pre_hook(self._count)

    def _count(self, *args: Any) -> None:
        if self.steps == 0:  # Adam has no moments yet
            self.update_mb = models.peak_memory_mb(self.given.device) - self.before
        self.steps += 1
        self.held.append(self.model.policy.held_bytes())  # type: ignore[operator]

    def _on_rollout_start(self) -> None:
        self.model.n_epochs = self.given.epochs if len(self.started) >= self.given.warm_ups else 1  # type: ignore[attr-defined]
        self.started.append(self._now())
        self.waited.append(ranks().waited)

    def _on_rollout_end(self) -> None:
        if not self.collected:
            self.peak = models.peak_memory_mb(self.given.device)
            self.before = models.begin_peak(self.given.device)
        self.collected.append(self._now())
        self.held.append(self.model.policy.held_bytes())  # type: ignore[operator]

    def _on_training_end(self) -> None:
        self.started.append(self._now())
        self.waited.append(ranks().waited)

    def _on_step(self) -> bool:
        return True


def make_agent(given: models.Iteration) -> TokenPPO:
    """A PPO whose π_ref, policy and r_φ all have the shape asked for. In bf16, r_φ is whole, and the policy's forward
    passes are, over weights in fp32; an environment has π_ref in fp32."""
    shape = given.shape
    bf16 = given.kind == "bf16"
    where = {"device": given.device, "dtype": torch.bfloat16 if bf16 else torch.float32}
    positions = models.PROMPT + given.response
    tokenizer = models.tokenizer_of(shape)
    env = TokenVectorEnv(
        -(-given.episodes // ranks().size),
        prompts=models.random_prompts(shape, 4 * given.episodes),
        tokenizer=tokenizer,
        reference=Shared(models.causal_lm(shape, positions, **where).requires_grad_(False)),
        reward=Shared(RewardModel(models.scalar_model(shape, positions, **where), tokenizer)),
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
            "critic": "separate" if given.kind == "separate" else "shared",
            "freeze_layers": shape.n_layer // 2 if given.kind == "half" else 0,
            "lora": models.ADAPTER if given.kind == "lora" else None,
            "bf16": bf16,
        },
        device=given.device,
        sharding="full" if given.kind == "sharded" else "none",
        seed=0,
    )


def measure(given: models.Iteration) -> dict[str, Any]:
    """Seconds of each timed iteration, the share of it that is rollout and scoring, and the peak of memory."""
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as `rlhf-gym` does
    libraries = models.peak_memory_mb(given.device)
    agent = make_agent(given)
    marks = Marks(given)
    agent.learn((given.warm_ups + given.iterations) * given.episodes * given.response, callback=marks)
    expected = (given.warm_ups + given.iterations * given.epochs) * given.minibatches
    if marks.steps != expected:
        raise RuntimeError(f"expected {expected} optimizer steps, got {marks.steps}")
    starts = marks.started[given.warm_ups :]
    seconds = [b - a for a, b in itertools.pairwise(starts)]
    rollouts = [b - a for a, b in zip(starts, marks.collected[given.warm_ups :], strict=False)]
    return {
        "seconds": seconds,
        "rollout_share": sum(rollouts) / sum(seconds),
        "meeting_share": (marks.waited[-1] - marks.waited[given.warm_ups]) / sum(seconds),
        "peak_mb": max(marks.peak, models.peak_memory_mb(given.device)),
        "update_mb": marks.update_mb,
        "held_mb": max(ranks().gather(max(marks.held) / 2**20, "what the ranks held")),
        "libraries_mb": libraries,
    }


if __name__ == "__main__":
    with quiet_transformers():
        measured = measure(models.iteration_from_json(sys.argv[1]))
        if ranks().leads:
            print(json.dumps(measured))
