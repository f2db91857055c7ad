"""Gates of lesson 7: the whole loop of PPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_gym.functional import gae
from rlhf_gym.lessons.answers import ask, fail, one_number, require

_LOG_PROB = torch.tensor([[-1.0, -0.5, -2.0], [-0.3, -1.2, -0.7]])
_REF_LOG_PROB = torch.tensor([[-1.4, -0.6, -1.1], [-0.9, -1.0, -0.2]])
_OLD_LOG_PROB = _LOG_PROB - torch.tensor([[1.5, 0.5, 1.5], [0.5, 1.0, 1.1]]).log()  # the ratios
_ADVANTAGE = torch.tensor([[1.0, 2.0, -1.0], [-1.5, 0.7, 0.4]])
_VALUE = torch.tensor([[0.2, -0.1, 0.5], [0.3, 0.8, -0.4]])
_TARGET = torch.tensor([[1.0, 0.5, -0.5], [0.1, 0.9, 0.6]])


def rewards_of_tokens(token_rewards: Any) -> None:
    """The penalty is charged at every token, and the score falls on the last one."""
    score = torch.tensor([2.0, -1.0])
    beta = 0.4
    found = _table("token_rewards(…)", ask("token_rewards", token_rewards, _LOG_PROB, _REF_LOG_PROB, score, beta))
    penalty = beta * (_LOG_PROB - _REF_LOG_PROB)  # (N, T)
    at_end = torch.tensor([0.0, 0.0, 1.0]) * score[:, None]  # (N, T)
    _known(
        found,
        at_end - penalty,
        {
            "Leaving π_ref raises the reward in yours. The log-ratio is a cost: it has a minus.": at_end + penalty,
            "β is missing.": at_end - penalty / beta,
            "The score falls on every token. It is of the whole response, and falls on the last one.": (
                score[:, None] - penalty
            ),
            "The score is missing.": -penalty,
            "The penalty is missing.": at_end,
            "The last token has a penalty of its own, besides the score.": torch.cat(
                [-penalty[:, :-1], score[:, None]], dim=1
            ),
            "The score is multiplied by β too.": beta * at_end - penalty,
            "The score is subtracted. A good response must have a higher reward.": -at_end - penalty,
            "π_ref plays no part in yours.": at_end - beta * _LOG_PROB,
        },
        "Your rewards are not −β·(log π_old − log π_ref) at each token, plus the score at the last one.",
    )


def advantages_of_a_rollout(advantages_and_targets: Any) -> None:
    """You call GAE with the rewards, the critic's values and γ = 1."""
    rewards = torch.tensor([[0.1, -0.2, 1.5], [0.0, 0.3, -0.4]])
    result = ask("advantages_and_targets", advantages_and_targets, rewards, _VALUE)
    require(
        isinstance(result, tuple) and len(result) == 2,
        "`advantages_and_targets` must return two tables, the advantages and the targets.",
    )
    found = _table("advantages", result[0])
    target = _table("targets", result[1])
    everywhere = torch.ones_like(rewards)
    right, right_target = gae(rewards, _VALUE, everywhere, gamma=1.0, gae_lambda=0.95)
    require(
        not (torch.allclose(found, right_target, atol=1e-5) and torch.allclose(target, right, atol=1e-5)),
        "You return the targets first. The advantages come first.",
    )
    mistakes = {
        "Rewards and values have changed places.": gae(_VALUE, rewards, everywhere, gamma=1.0, gae_lambda=0.95)[0],
        "The critic plays no part in yours: its values are 0.": (
            gae(rewards, 0 * _VALUE, everywhere, gamma=1.0, gae_lambda=0.95)[0]
        ),
        "The rewards play no part in yours.": gae(0 * rewards, _VALUE, everywhere, gamma=1.0, gae_lambda=0.95)[0],
    }
    for gamma in (0.0, 0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999):
        message = (
            f"γ = {gamma:g} in yours. Then the rewards of tokens do not add up to the score minus β·KL (lesson 0)."
        )
        mistakes[message] = gae(rewards, _VALUE, everywhere, gamma=gamma, gae_lambda=0.95)[0]
    otherwise = "Your advantages are not those of GAE with γ = 1 and λ = .95. Give it rewards, values and the mask."
    _known(found, right, mistakes, otherwise)
    require(
        torch.allclose(target, right_target, atol=1e-5),
        "The advantages are right, and the targets are not. `F.gae` returns them as the second table.",
    )


def loss_of_actor_and_critic(ppo_loss: Any) -> None:
    """Your loss has the clipped objective of the policy and the squared error of the critic."""

    def of(loss: Callable[..., Any]) -> Tensor:
        """The loss, and its gradients with respect to log π and V, (1 + N·T + N·T,)."""
        log_prob = _LOG_PROB.clone().requires_grad_(True)
        value = _VALUE.clone().requires_grad_(True)
        result = ask("ppo_loss", loss, log_prob, _OLD_LOG_PROB, _ADVANTAGE, value, _TARGET)
        result = one_number("ppo_loss", result)
        require(result.requires_grad, "No gradient flows from your loss to log π or V.")
        slopes = torch.autograd.grad(result, (log_prob, value), allow_unused=True)
        parts = [torch.zeros(_VALUE.numel()) if slope is None else slope.reshape(-1) for slope in slopes]
        return torch.cat([result.detach()[None], *parts])

    def with_parts(policy: Any = _policy_loss, value: Any = _value_loss, weight: float = 0.5) -> Any:
        return lambda p, q, a, v, t: policy(p, q, a) + weight * value(v, t)

    wrong = {
        "The policy's objective is maximised and a loss minimised: its sign is the wrong way round.": with_parts(
            policy=lambda p, q, a: -_policy_loss(p, q, a)
        ),
        "Where Â < 0 you take the maximum. A bad token that became likelier then has no gradient.": with_parts(
            policy=lambda p, q, a: _policy_loss(
                p, q, a, lambda u, c: torch.where(u > 0, torch.minimum(u, c), torch.maximum(u, c))
            )
        ),
        "You take the larger of both terms of the objective (lesson 6).": with_parts(
            policy=lambda p, q, a: _policy_loss(p, q, a, torch.maximum)
        ),
        "Nothing is clipped in the policy's loss.": with_parts(policy=lambda p, q, a: -((p - q).exp() * a).mean()),
        "The policy's loss is the clipped term alone. Tokens that went the wrong way cannot come back.": with_parts(
            policy=lambda p, q, a: _policy_loss(p, q, a, lambda u, c: c)
        ),
        "The policy's loss is that of REINFORCE. After the first step π is not π_old: where is the ratio?": with_parts(
            policy=lambda p, q, a: -(p * a).mean()
        ),
        "The ratio is upside down: it is π over π_old.": with_parts(policy=lambda p, q, a: _policy_loss(q, p, a)),
        "The value loss has the wrong sign. The critic would run away from its target.": with_parts(
            value=lambda v, t: -_value_loss(v, t)
        ),
        "The value loss lacks the square.": with_parts(value=lambda v, t: (v - t).mean()),
        "The value loss is of size, |V − target|. It is squared.": with_parts(value=lambda v, t: (v - t).abs().mean()),
        "The value loss has a factor ½ twice.": with_parts(weight=0.25),
        "The factor ½ of the value loss is missing.": with_parts(weight=1.0),
        "No gradient flows to the critic.": with_parts(value=lambda v, t: _value_loss(v.detach(), t)),
        "The critic is missing from the loss.": with_parts(weight=0.0),
        "The value loss is a sum over tokens. It is their mean.": with_parts(value=lambda v, t: ((v - t) ** 2).sum()),
        "The policy's loss is a sum over tokens. It is their mean.": with_parts(
            policy=lambda p, q, a: _policy_loss(p, q, a) * a.numel()
        ),
    }
    otherwise = "Your loss is not that of lesson 6, ε = .2, plus half the mean of (V − target)². Check each part alone."
    _known(of(ppo_loss), of(with_parts()), {message: of(loss) for message, loss in wrong.items()}, otherwise)


def step_of_a_minibatch(minibatch_step: Any) -> None:
    """You can take an optimizer step on a minibatch, without the gradients of the one before."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_probs = nn.Parameter(_LOG_PROB.clone())
            self.values = nn.Parameter(_VALUE.clone())

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            return self.log_probs * 1.0, self.values * 1.0

    def changes(step: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """By how much one step changes the actor and the critic, (N·T,) each; gradients of 1 are left from before."""
        policy = Table()
        for parameter in policy.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        ids = torch.zeros(2, 4, dtype=torch.int64)
        ask("minibatch_step", step, policy, optimizer, ids, _OLD_LOG_PROB, _ADVANTAGE, _TARGET)
        return (policy.log_probs - _LOG_PROB).detach().reshape(-1), (policy.values - _VALUE).detach().reshape(-1)

    def right(policy: Any, optimizer: Any, ids: Tensor, old: Tensor, advantage: Tensor, target: Tensor) -> float:
        log_prob, value = policy(ids)
        loss = _policy_loss(log_prob, old, advantage) + 0.5 * _value_loss(value, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    actor, critic = changes(minibatch_step)
    right_actor, right_critic = changes(right)
    otherwise = "Neither the policy nor the critic moves as it should."
    if torch.allclose(critic, right_critic, atol=1e-5):
        otherwise = "The critic moves as it should, and the policy does not."
        if torch.allclose(actor, torch.zeros(()), atol=1e-6):
            otherwise = "The critic moves and the policy does not. Is the new log π in the ratio, as a tensor?"
    elif torch.allclose(actor, right_actor, atol=1e-5):
        otherwise = "The policy moves as it should, and the critic does not."
    wanted = torch.cat([right_actor, right_critic])
    _known(
        torch.cat([actor, critic]),
        wanted,
        {
            "No weight moves. Is the order: clear the gradients, go backward, let the optimizer step?": 0 * wanted,
            "The gradients of the minibatch before are still in the step. Clear them before you go backward.": wanted
            - 1,
            "The step uses old gradients alone. Does `loss.backward()` come before `optimizer.step()`?": 0 * wanted - 1,
            "The step goes uphill. The optimizer makes small what you go backward from.": -wanted,
            "The step is taken twice.": 2 * wanted,
        },
        f"{otherwise} Are the arguments of `ppo_loss` in their places?",
    )


def optimum_reached(policy: Any, task: Any) -> None:
    """Your PPO finds the optimum: J* − J < .01. A wrong sign or index would miss it."""
    require(not isinstance(policy, tuple), "`policy` is a pair. `train` returns the policy and its history.")
    try:
        j = task.objective(policy.model)
        kl = task.kl(policy.model)
    except (AttributeError, TypeError, RuntimeError):
        fail("`policy` must be the policy that `train` returns.")
    gap = task.best - j
    if gap < 0.01:
        return
    before = task.objective(task.reference)
    farthest = task.kl(task.optimum)
    measured = f"J* − J is {gap:.3f}, and KL(π‖π_ref) is {kl:.3f}."
    require(kl > 1e-4, f"{measured} The policy is still π_ref: it has not learned anything.")
    if kl > 1.2 * farthest:
        fail(
            f"{measured} The best policy's KL is {farthest:.3f}, so yours has gone too far. Is the learning rate too "
            "large, or have you taken the penalty away?"
        )
    require(j > before, f"{measured} The policy is worse than π_ref, where it began. Is a sign the wrong way round?")
    fail(f"{measured} The policy is on its way, and has stopped too early. Give it more updates, or longer steps.")


def _table(name: str, answer: Any) -> Tensor:
    """The answer as a table of the rollout, (N, T).

    Raises:
        LessonError: it is no tensor of this shape, or not finite.
    """
    require(isinstance(answer, Tensor), f"`{name}` must be a tensor, but it is a {type(answer).__name__}.")
    shape = tuple(answer.shape)
    require(shape == (2, 3), f"`{name}` must have the shape (N, T) = (2, 3), but it is {shape}.")
    require(torch.isfinite(answer).all(), f"`{name}` has a number that is not finite.")
    return answer.detach().float()


def _known(found: Tensor, right: Tensor, mistakes: dict[str, Tensor], otherwise: str) -> None:
    """Say which known mistake gives these numbers, or `otherwise`, unless they are right."""
    if torch.allclose(found, right, atol=1e-5):
        return
    for message, wrong in mistakes.items():
        require(not torch.allclose(found, wrong, atol=1e-5), message)
    fail(otherwise)


def _policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, choose: Any = torch.minimum) -> Tensor:
    ratio = (log_prob - old_log_prob).exp()
    loss: Tensor = -choose(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    return loss


def _value_loss(value: Tensor, target: Tensor) -> Tensor:
    return ((value - target) ** 2).mean()


GATES: dict[str, Callable[..., None]] = {
    "7a": rewards_of_tokens,
    "7b": advantages_of_a_rollout,
    "7c": loss_of_actor_and_critic,
    "7d": step_of_a_minibatch,
    "7e": optimum_reached,
}
