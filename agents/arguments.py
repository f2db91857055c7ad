"""The words every learner's constructor knows, and their checks before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args

import gymnasium as gym
import torch

from rlhf_gym.agents.kl_control import KLController
from rlhf_gym.agents.pretraining_mix import PretrainingMix
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv

KLLoss = Literal["full", "k2", "k3"]
LearnsFrom = Literal["rewards", "preferences", "nothing"]

LEARNER = ("n_episodes", "batch_size", "n_epochs", "micro_batch_size", "max_grad_norm", "seed", "verbose",
           "tensorboard_log")  # fmt: skip
"""What every learner's file holds of its constructor's arguments, the learning rate aside."""
SAVED = (*LEARNER, "ent_coef", "target_kl", "kl_loss", "kl_controller", "ema_reference")
"""The same of a policy-gradient agent."""


class LearnerArguments(TypedDict, total=False):
    """What every learner takes, by keyword."""

    micro_batch_size: int | None
    """Episodes in one forward; fewer take less memory and give the same update."""
    max_grad_norm: float
    """Gradients are scaled down to this norm (1)."""
    n_envs: int
    """Slots, where `env` is an id (64)."""
    stats_window_size: int
    """As in SB3."""
    tensorboard_log: str | None
    """As in SB3."""
    policy_kwargs: dict[str, Any] | None
    """For the policy; without `model` it starts as a copy of the environment's π_ref."""
    verbose: int
    """As in SB3."""
    seed: int | None
    """As in SB3."""
    device: torch.device | str
    """As in SB3."""
    _init_setup_model: bool


class TokenArguments(LearnerArguments, total=False):
    """What every policy-gradient agent takes besides."""

    ent_coef: float
    """Weight of an entropy bonus (0)."""
    target_kl: float | None
    """The update ends when KL(π_old‖π) exceeds 1.5 times this (never)."""
    kl_controller: KLController | None
    """Who sets β; by default β stays the environment's `kl_coef`."""
    kl_loss: KLLoss
    """With the environment's `kl_in="loss"`, which KL the loss has: `"full"` over the vocabulary (default), `"k2"`,
    whose gradient is the KL's on the policy's own samples, or `"k3"`, which GRPO's paper takes and whose gradient is
    that of KL(π_ref‖π): another penalty, with another optimum."""
    ptx: PretrainingMix | None
    """Texts whose likelihood is part of every minibatch's loss (none). Not in the file that `save` writes: give it
    again to `load`."""
    ema_reference: float
    """μ of a π_ref that follows the policy, θ_ref ← (1 − μ)·θ_ref + μ·θ after each iteration; 0 (default) for one that
    stays. See `MovingReference`."""


def check_words(agent: str, arguments: Mapping[str, Any], known: type) -> None:
    """Every argument is one that the agent takes: a word that means nothing to it is refused, not ignored.

    Raises:
        TypeError: naming those that are not.
    """
    unknown = sorted(set(arguments) - set(known.__annotations__))
    if unknown:
        raise TypeError(f"{agent} takes no {', '.join(unknown)}")


def check_counts(**counts: int | None) -> None:
    """Each is at least 1, or None.

    Raises:
        ValueError: naming the one that is not.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")


def check_kl_loss(kl_loss: str) -> None:
    """It is one of those there are."""
    if kl_loss not in get_args(KLLoss):
        raise ValueError(f"expected kl_loss to be one of {get_args(KLLoss)}, got {kl_loss!r}")


def check_no_critic(agent: str, policy_kwargs: dict[str, Any]) -> None:
    """An agent without a critic is not given the trunk of one."""
    critic = policy_kwargs.get("critic", "shared")
    if critic != "shared":
        raise ValueError(f"expected no critic in the policy_kwargs of {agent}, which has none, got {critic!r}")


def check_groups(
    agent: str, env: TokenVectorEnv, *, n_episodes: int, samples_per_prompt: int | None, default: int
) -> None:
    """The environment plays every prompt k times in a row, and a rollout holds whole groups of k.

    Args:
        agent: its name, for the message.
        env: whose `samples_per_prompt` is k.
        n_episodes: episodes a rollout.
        samples_per_prompt: what the agent was told; None to take the environment's.
        default: the k that the message proposes.

    Raises:
        ValueError: k < 2, k is not what the agent was told, or n_episodes is no multiple of it.
    """
    k = env.samples_per_prompt
    if k < 2:
        raise ValueError(
            f"expected an environment with samples_per_prompt >= 2, got {k}: {agent} compares the responses to one "
            f"prompt; make it with samples_per_prompt={samples_per_prompt or default}"
        )
    if samples_per_prompt is not None and samples_per_prompt != k:
        raise ValueError(f"expected an environment with samples_per_prompt={samples_per_prompt}, got {k}")
    if n_episodes % k:
        raise ValueError(f"expected n_episodes to be a multiple of samples_per_prompt={k}, got {n_episodes}")


def make_env(name: str, *, n_envs: int, samples_per_prompt: int | None = None) -> TokenVectorEnv:
    """The environment of that id, with deferred rewards."""
    settings: dict[str, Any] = {} if samples_per_prompt is None else {"samples_per_prompt": samples_per_prompt}
    return gym.make_vec(name, num_envs=n_envs, reward_timing="deferred", **settings)  # type: ignore[return-value]


def unwrap_env(env: object) -> TokenVectorEnv:
    """The environment itself.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(env, SB3VecEnv):
        return env.engine
    if isinstance(env, TokenVectorEnv):
        return env
    raise TypeError(
        f"expected a TokenVectorEnv or the id of one, got {type(env).__name__}; make it by "
        "gym.make_vec('rlhf_gym/…', num_envs=…). SB3's own agents take SB3VecEnv(env) and gym.make's environments"
    )
