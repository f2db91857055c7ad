"""The keyword arguments that every agent's constructor takes, and their checks before any work."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ForwardRef, Literal, TypedDict, Unpack, get_args, get_origin, get_type_hints

import gymnasium as gym
import torch

from rlhf_gym.agents.kl_control import KLController
from rlhf_gym.agents.regularisers import Regulariser
from rlhf_gym.agents.sharding import Sharding
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.ranges import Count, Positive, Seed, Whole

LearnsFrom = Literal["rewards", "preferences", "nothing"]


class Plumbing(TypedDict, total=False):
    """What every agent takes that is no setting of its algorithm, as in SB3."""

    n_envs: Count
    """The number of slots, of all ranks together, where `env` is an id (64)."""
    stats_window_size: Count
    """As in SB3."""
    tensorboard_log: str | None
    """As in SB3."""
    policy_kwargs: dict[str, Any] | None
    """Arguments of the policy; without `model` it starts as a copy of the environment's π_ref."""
    verbose: Whole
    """As in SB3."""
    seed: Seed | None
    """As in SB3."""
    device: torch.device | str
    """As in SB3."""
    sharding: Sharding
    """Of several ranks: `"none"`, each holds all weights; `"full"`, what an update needs is spread over them by FSDP:
    weights that are trained, gradients, the optimizer's state. No file holds it: say it again when loading ("none")."""
    _init_setup_model: bool


PLUMBING: Plumbing = {
    "n_envs": 64,
    "stats_window_size": 100,
    "tensorboard_log": None,
    "policy_kwargs": None,
    "verbose": 0,
    "seed": None,
    "device": "auto",
    "sharding": "none",
    "_init_setup_model": True,
}
"""The values of those that are not given."""


class LearnerArguments(Plumbing, total=False):
    """What every agent that learns takes, by keyword."""

    micro_batch_size: Count | None
    """Episodes in one forward; fewer take less memory and give the same update."""
    max_grad_norm: Positive
    """Gradients are scaled down to this norm (1)."""


class TokenArguments(LearnerArguments, total=False):
    """What every policy-gradient agent takes besides."""

    target_kl: Positive | None
    """The update ends when KL(π_old‖π) exceeds 1.5 times this (never)."""
    mask_truncated: bool
    """Learn nothing from responses that were cut off at the horizon (DAPO's "overlong filtering"); what the others are
    compared with still has them. Where long responses are the bad ones this favours length: it is biased (False)."""
    kl_controller: KLController | None
    """The owner of β; by default β stays the environment's `kl_coef`."""
    regularisers: Sequence[Regulariser]
    """What is added to the objective: `EntropyBonus`, `KLInLoss`, `PretrainingMix`, `MovingReference` (nothing)."""


def check_words(agent: str, arguments: Mapping[str, Any], known: type) -> None:
    """Check that the agent takes every argument: one that it does not use is refused, not ignored.

    Raises:
        TypeError: naming those that are not.
    """
    unknown = sorted(set(arguments) - set(known.__annotations__))
    if unknown:
        raise TypeError(f"{agent} takes no {', '.join(unknown)}")


def spell_out(constructor: Any, defaults: Mapping[str, Any]) -> None:
    """Let `help` and editors show each keyword of a constructor's `**arguments` by its own name.

    Args:
        constructor: its `**arguments` are those of a `TypedDict`; another one stays as it is.
        defaults: the values of those that are not given.
    """
    signature = inspect.signature(constructor)
    *own, last = signature.parameters.values()
    hint = get_type_hints(inspect.unwrap(constructor)).get(last.name) if last.kind is last.VAR_KEYWORD else None
    if get_origin(hint) is not Unpack:
        return
    known = get_args(hint)[0].__annotations__
    more = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults[name],
            annotation=kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind,
        )
        for name, kind in known.items()
        if not name.startswith("_")
    ]
    constructor.__signature__ = signature.replace(parameters=[*own, *more])


def check_regularisers(regularisers: Sequence[Regulariser]) -> None:
    """No two are of one class.

    Raises:
        TypeError: one is no regulariser. ValueError: naming those that are given twice.
    """
    if isinstance(regularisers, Regulariser):
        raise TypeError(
            f"expected a sequence of regularisers, got {type(regularisers).__name__} alone: put it in a list"
        )
    for regulariser in regularisers:
        if not isinstance(regulariser, Regulariser):
            raise TypeError(f"expected regularisers such as KLInLoss(), got {regulariser!r}")
    names = [type(regulariser).__name__ for regulariser in regularisers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected one regulariser of each class, got {', '.join(twice)} more than once")


def check_sharding(sharding: Sharding, regularisers: Sequence[Regulariser]) -> None:
    """Nothing that is added to the objective would read weights of which the rank has a part alone.

    Raises:
        ValueError: naming what would.
    """
    for regulariser in regularisers:
        kind = type(regulariser)
        own = kind.add_gradient is not Regulariser.add_gradient
        if sharding == "full" and own and not kind.takes_forward_pass:
            raise ValueError(
                f'expected regularisers whose add_gradient goes through policy.forward_pass with sharding="full", got '
                f"{kind.__name__}: say takes_forward_pass = True in the class if it does"
            )


def check_no_critic(agent: str, policy_kwargs: dict[str, Any]) -> None:
    """An agent without a critic is not given the trunk of one."""
    critic = policy_kwargs.get("critic", "shared")
    if critic != "shared":
        raise ValueError(f"expected no critic in the policy_kwargs of {agent}, which has none, got {critic!r}")


def make_env(name: str, *, n_envs: int, **settings: Any) -> TokenVectorEnv:
    """The environment of that id, with deferred rewards."""
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
