"""Plausible wrong answers to the gates of lesson 7, and what is said of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from rlhf_gym.envs import EnumerableTask, tabular_task
from rlhf_gym.functional import gae
from rlhf_gym.lm.tabular import tabular_lm

TASK = tabular_task(seed=0)


def rewards(penalty: Any = lambda p, q, b: -b * (p - q), last: Any = lambda r, s: r + s) -> Any:
    def token_rewards(p, q, score, beta):
        made = penalty(p, q, beta)
        return torch.cat([made[:, :-1], last(made[:, -1], score)[:, None]], dim=1)

    return token_rewards


def advantages(gamma: float = 1.0, lam: float = 0.95, swap: bool = False, critic: float = 1.0) -> Any:
    def advantages_and_targets(r, v):
        first, second = (v, r) if swap else (r, v)
        return gae(first, critic * second, torch.ones_like(r), gamma=gamma, gae_lambda=lam)

    return advantages_and_targets


def policy_loss(p, q, a, choose=torch.minimum):
    ratio = (p - q).exp()
    return -choose(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()


def loss(policy: Any = policy_loss, value: Any = lambda v, t: ((v - t) ** 2).mean()) -> Any:
    return lambda p, q, a, v, t: policy(p, q, a) + 0.5 * value(v, t)


def step(*order: str, given: Any = lambda p, q, a, v, t: (p, q, a, v, t), sign: float = 1.0) -> Any:
    def minibatch_step(policy, optimizer, ids, old_log_prob, advantage, target):
        log_prob, value = policy(ids)
        made = sign * loss()(*given(log_prob, old_log_prob, advantage, value, target))
        lines = {"clear": optimizer.zero_grad, "backward": made.backward, "step": optimizer.step}
        for line in order:
            lines[line]()
        return made.item()

    return minibatch_step


ORDER = ("clear", "backward", "step")


def maximum_where_negative(u, c):
    return torch.where(u > 0, torch.minimum(u, c), torch.maximum(u, c))


def policy(tempered: float, task: EnumerableTask = TASK) -> Any:
    """As far from π_ref towards π* as `tempered` says: 0 for π_ref, 1 for π*."""
    log_prior = np.log(task.probabilities(task.reference))
    weight = np.exp(log_prior + tempered * (np.log(task.optimum) - log_prior))
    return SimpleNamespace(model=tabular_lm(weight / weight.sum(), 4, 3))


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "7a": [
        ({"token_rewards": rewards(penalty=lambda p, q, b: b * (p - q))}, "it has a minus"),
        ({"token_rewards": rewards(penalty=lambda p, q, b: q - p)}, "β is missing"),
        ({"token_rewards": lambda p, q, s, b: s[:, None] - b * (p - q)}, "falls on every token"),
        ({"token_rewards": rewards(last=lambda r, s: s)}, "a penalty of its own"),
        ({"token_rewards": rewards(last=lambda r, s: r)}, "The score is missing"),
        ({"token_rewards": rewards(penalty=lambda p, q, b: -b * p)}, "π_ref plays no part"),
        ({"token_rewards": lambda p, q, s, b: s - b * (p - q).sum(1)}, "the shape \\(N, T\\)"),
        ({"token_rewards": rewards(penalty=lambda p, q, b: -b * (p - q).exp())}, "Your rewards are not"),
    ],
    "7b": [
        ({"advantages_and_targets": advantages(gamma=0.99)}, "γ = 0.99 in yours"),
        ({"advantages_and_targets": advantages(gamma=0.0)}, "γ = 0 in yours"),
        ({"advantages_and_targets": advantages(swap=True)}, "have changed places"),
        ({"advantages_and_targets": advantages(critic=0.0)}, "its values are 0"),
        ({"advantages_and_targets": lambda r, v: advantages()(r, v)[::-1]}, "the targets first"),
        ({"advantages_and_targets": lambda r, v: advantages()(r, v)[0]}, "two tables"),
        ({"advantages_and_targets": lambda r, v: (advantages()(r, v)[0], v)}, "the targets are not"),
        ({"advantages_and_targets": advantages(lam=0.5)}, "λ = .95"),
    ],
    "7c": [
        ({"ppo_loss": loss(policy=lambda *a: -policy_loss(*a))}, "wrong way round"),
        ({"ppo_loss": loss(policy=lambda *a: policy_loss(*a, maximum_where_negative))}, "Where Â < 0 you take the max"),
        ({"ppo_loss": loss(policy=lambda *a: policy_loss(*a, torch.maximum))}, "the larger of both"),
        ({"ppo_loss": loss(policy=lambda p, q, a: -((p - q).exp() * a).mean())}, "Nothing is clipped"),
        ({"ppo_loss": loss(policy=lambda *a: policy_loss(*a, lambda u, c: c))}, "the clipped term alone"),
        ({"ppo_loss": loss(policy=lambda p, q, a: -(p * a).mean())}, "where is the ratio"),
        ({"ppo_loss": loss(policy=lambda p, q, a: policy_loss(q, p, a))}, "upside down"),
        ({"ppo_loss": loss(value=lambda v, t: (t - v).mean())}, "Check each part"),
        ({"ppo_loss": loss(value=lambda v, t: (v - t).mean())}, "lacks the square"),
        ({"ppo_loss": loss(value=lambda v, t: 0.5 * ((v - t) ** 2).mean())}, "½ twice"),
        ({"ppo_loss": loss(value=lambda v, t: ((v.detach() - t) ** 2).mean())}, "No gradient flows to the critic"),
        ({"ppo_loss": loss(value=lambda v, t: ((v - t) ** 2).sum())}, "a sum over tokens"),
        ({"ppo_loss": lambda p, q, a, v, t: loss()(p, q, a, v, t).item()}, "as a tensor"),
    ],
    "7d": [
        ({"minibatch_step": step("backward", "step")}, "minibatch before are still in the step"),
        ({"minibatch_step": step("clear", "backward")}, "No weight moves"),
        ({"minibatch_step": step("backward", "clear", "step")}, "No weight moves"),
        ({"minibatch_step": step("step", "clear", "backward")}, "old gradients alone"),
        ({"minibatch_step": step(*ORDER, sign=-1.0)}, "uphill"),
        ({"minibatch_step": step(*ORDER, given=lambda p, q, a, v, t: (q, q, a, v, t))}, "policy does not. Is the new"),
        ({"minibatch_step": step(*ORDER, given=lambda p, q, a, v, t: (q, p, a, v, t))}, "as it should, and the policy"),
        ({"minibatch_step": step(*ORDER, given=lambda p, q, a, v, t: (p, q, t, v, a))}, "Neither the policy nor"),
        ({"minibatch_step": step(*ORDER, given=lambda p, q, a, v, t: (p, q, a, v, a))}, "and the critic does not"),
        ({"minibatch_step": lambda *a: None}, "returns None"),
    ],
    "7e": [
        ({"policy": policy(0.0), "task": TASK}, "still π_ref"),
        ({"policy": policy(0.5), "task": TASK}, "stopped too early"),
        ({"policy": policy(2.0), "task": TASK}, "gone too far"),
        ({"policy": policy(-0.5), "task": TASK}, "worse than π_ref"),
        ({"policy": (policy(1.0), []), "task": TASK}, "is a pair"),
        ({"policy": 3, "task": TASK}, "that `train` returns"),
    ],
}
