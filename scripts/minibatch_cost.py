"""python scripts/minibatch_cost.py: what one update of stock Stable-Baselines3 PPO costs, by minibatch size.

Stock PPO shuffles single steps. A minibatch of few steps touches almost as many episodes as it has steps, and the
policy runs each episode it touches once, however many of its steps are in the minibatch: small minibatches pay for the
same prefixes again and again, the whole rollout pays once. The embedded reviews task, 32 slots, 48 steps, one epoch;
the rollout is collected once. About a minute on one core. It leaves out the rollout, which costs the same at any size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO

import rlhf_gym  # noqa: F401  (registers the environments)
from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy
from rlhf_gym.agents.observations import pack_prefixes, read
from rlhf_gym.envs import SB3VecEnv
from rlhf_gym.tasks import reviews_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--n-steps", type=int, default=48)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96, 384, 768, 0], help="0: the whole rollout")
    parser.add_argument("--repeats", type=int, default=2, help="of which the quickest counts")
    arguments = parser.parse_args()
    agent = collected(arguments.num_envs, arguments.n_steps)
    steps = arguments.num_envs * arguments.n_steps
    print(f"{steps} steps, {agent.policy.model.num_parameters():,} parameters, {torch.get_num_threads()} threads")
    print("| minibatch | minibatches | tokens run, unpacked | tokens run | saved | seconds an update |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        agent.batch_size = size or steps
        unpacked, packed = (sum(tokens) for tokens in zip(*forward_tokens(agent), strict=True))
        seconds = min(update_seconds(agent) for _ in range(arguments.repeats))
        name = f"{agent.batch_size}" + ("" if size else " (the rollout)")
        count = -(-steps // agent.batch_size)
        print(
            f"| {name} | {count} | {unpacked:,} | {packed:,} | {unpacked / packed:.1f}× | {seconds:.1f} |", flush=True
        )


def collected(num_envs: int, n_steps: int) -> PPO:
    """Stock PPO with a rollout in its buffer."""
    env = SB3VecEnv(gym.make_vec("rlhf_gym/Reviews-v0", num_envs=num_envs))  # type: ignore[arg-type]
    agent = PPO(
        LMActorCriticPolicy,
        env,
        policy_kwargs={"model": str(reviews_task().sft)},
        n_steps=n_steps,
        batch_size=num_envs * n_steps,
        n_epochs=1,
        gamma=1.0,
        learning_rate=1e-5,
        seed=0,
        device="cpu",
    )
    _, callback = agent._setup_learn(num_envs * n_steps, AttachPolicy())
    callback.on_training_start({}, {})
    agent.collect_rollouts(env, callback, agent.rollout_buffer, n_steps)
    return agent


def forward_tokens(agent: PPO) -> Iterator[tuple[int, int]]:
    """Tokens of each minibatch's forward: a row per step, and a row per family of prefixes, as the policy runs it."""
    np.random.seed(0)  # noqa: NPY002 (SB3's buffer shuffles by it)
    for data in agent.rollout_buffer.get(agent.batch_size):
        ids, lengths = read(data.observations)
        leaders = pack_prefixes(ids, lengths).leaders
        yield len(ids) * int(lengths.max()), len(leaders) * int(lengths.max())


def update_seconds(agent: PPO) -> float:
    """Wall clock of one epoch over the rollout."""
    np.random.seed(0)  # noqa: NPY002
    started = time.perf_counter()
    agent.train()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
