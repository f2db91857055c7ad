"""What the ranks that train one model exchange: rollouts, gradients, a checksum of the weights (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.agents.rollout import Rollout
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm.split import LowerStates
from rlhf_gym.ranks import ranks


def whole_rollout(own: Rollout | None, env: TokenVectorEnv) -> Rollout | None:
    """The episodes that all ranks have played, on each of them, in the order in which one process would have them.

    The scores that a `NormalizeScore` has seen go with them, so that its statistics stay those of all ranks.

    Args:
        own: what this rank has played; None where a callback stopped it.
        env: the environment it was played in.

    Returns:
        The whole rollout; None where a callback stopped any of the ranks.
    """
    running = env.token_reward.shaping.running
    sent: Any = None
    if own is not None:
        states = None if own.lower is None else own.lower.states.cpu()
        sent = own._replace(lower=None), states, [term.seen for term in running]
    parts = ranks().gather(sent, "the end of a rollout")
    if own is None or any(part is None for part in parts):
        return None
    for place, term in enumerate(running):
        seen = sorted(
            (number, rank, score) for rank, part in enumerate(parts) for number, score in part[2][place].items()
        )
        term.seen = {i: score for i, (_, _, score) in enumerate(seen)}
    rollouts: list[Rollout] = []
    for rollout, states, _ in parts:
        lower = None if own.lower is None else LowerStates(own.lower.split, states.to(own.lower.states.device))
        rollouts.append(rollout._replace(lower=lower))
    whole = rollouts[0]
    for other in rollouts[1:]:
        whole = whole.joined(other)
    return whole.take(sorted(range(len(whole.episodes)), key=lambda row: whole.episodes[row].number))


def sum_gradients(parameters: Iterable[nn.Parameter], metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the sum over the ranks in place of every gradient; returns that of the metrics.

    All travel at once. A parameter that has a gradient on no rank keeps none. The denominators of the loss
    are those of the whole minibatch, so that nothing is divided here.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    device = next(iter(metrics.values())).device
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    has = torch.tensor([float(p.grad is not None) for p in trained], device=device)  # (parameters,)
    values = torch.stack([metrics[name].to(device, torch.float32) for name in metrics])  # (metrics,)
    ranks().add_up([*gradients, has, values], "the gradients of a minibatch")
    for parameter, gradient, known in zip(trained, gradients, has.tolist(), strict=True):
        parameter.grad = gradient if known else None
    return dict(zip(metrics, values, strict=True))


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """A number made of the bits of all tensors. Other bits give another number, but for a rare chance."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [t.detach().contiguous().view(kinds[t.element_size()]).sum(dtype=torch.int64) for t in tensors]
    return sum(place * int(value) for place, value in enumerate(sums, 1)) % (2**61 - 1)


def check_equal_weights(model: nn.Module, when: str) -> None:
    """Every rank has the same weights that learn.

    Raises:
        RuntimeError: one has others. The message names it.
    """
    group = ranks()
    if group.size == 1:
        return
    found = group.gather(checksum(p for p in model.parameters() if p.requires_grad), f"the weights {when}")
    odd = [rank for rank, value in enumerate(found) if value != found[0]]
    if odd:
        raise RuntimeError(
            f"expected the same weights on all {group.size} ranks {when}, got others on rank {odd[0]} than on rank 0: "
            "something changes them on one rank alone, such as a callback, or the machines round differently"
        )


def begin_equal(policy: LMActorCriticPolicy, env: TokenVectorEnv, settings: dict[str, Any]) -> None:
    """Let every rank begin with the weights of rank 0, and check that it learns the same.

    Args:
        policy: what is to learn.
        env: what it learns in.
        settings: what must be the same on all ranks, by name.

    Raises:
        ValueError: a rank has other settings, or another π_ref.
    """
    group = ranks()
    reference = env.token_reward.reference
    given = settings | {"π_ref": None if reference is None else checksum(reference.model.parameters())}
    for rank, others in enumerate(group.gather(given, "the start of learning")):
        for name, value in others.items():
            if value != given[name]:
                raise ValueError(
                    f"expected one {name} on all ranks, got {value!r} on rank {rank} and {given[name]!r} on rank "
                    f"{group.rank}"
                )
    whole = [*policy.parameters(), *policy.buffers()]
    if len(set(group.gather(checksum(whole), "the weights at the start"))) > 1:
        policy.own_frozen()
        group.copy_from_first(whole, "the weights of rank 0")
        policy.invalidate()
    check_equal_weights(policy, "at the start")
