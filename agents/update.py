"""What an agent does with a rollout: epochs over its minibatches, each one optimizer step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.agents.buffer import EpisodeBatch
from rlhf_gym.agents.logs import explained_variance
from rlhf_gym.agents.losses import MinibatchSize, token_kl
from rlhf_gym.agents.policy import EpisodeEvaluation
from rlhf_gym.functional.whitening import masked_mean

if TYPE_CHECKING:
    from rlhf_gym.agents.base import TokenAlgorithm


def update(agent: TokenAlgorithm) -> None:
    """`n_epochs` over the rollout's minibatches, or fewer if `target_kl` ends them; its figures go to the logger."""
    started = time.perf_counter()
    policy = agent.policy
    totals: dict[str, list[float]] = {}
    stopped = False
    for _ in range(agent.n_epochs):
        for rows in agent.minibatches():
            metrics = minibatch_gradient(agent, rows)
            for name, value in metrics.items():
                totals.setdefault(name, []).append(value)
            # SB3's rule: stop before the step that would go too far
            if agent.target_kl is not None and metrics["train/approx_kl"] > 1.5 * agent.target_kl:
                stopped = True
                break
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), agent.max_grad_norm)
            totals.setdefault("train/grad_norm", []).append(float(norm))
            policy.optimizer.step()
            agent._n_updates += 1
        if stopped:
            break
    policy.optimizer.zero_grad(set_to_none=True)
    record = agent.logger.record
    for name, values in totals.items():
        record(name, float(np.mean(values)))
    if agent.uses_critic:
        assert agent.buffer is not None
        record("train/explained_variance", explained_variance(agent.buffer))
    record("train/n_updates", agent._n_updates, exclude="tensorboard")
    record("train/stopped_early", float(stopped))
    record("time/update_seconds", time.perf_counter() - started)


def minibatch_gradient(agent: TokenAlgorithm, rows: np.ndarray) -> dict[str, float]:
    """Gradient of one minibatch, accumulated over micro-batches weighted by their tokens; what is logged of it."""
    buffer, policy = agent.buffer, agent.policy
    assert buffer is not None
    policy.optimizer.zero_grad(set_to_none=True)
    size = MinibatchSize(int(buffer.response_lengths[torch.from_numpy(rows)].sum()), len(rows))
    totals: dict[str, Tensor] = {}
    for part in agent.micro_batches(rows):
        batch = buffer.batch(part, agent.device)
        evaluation = policy.evaluate_episodes(
            batch.input_ids,
            batch.action_mask,
            with_entropy=agent.ent_coef != 0,
            lower_states=batch.lower_states,
        )
        result = agent.minibatch_loss(batch, evaluation, size)
        loss = result.loss
        metrics = dict(result.metrics)
        mean_entropy = masked_mean(evaluation.entropy, batch.mask, size.tokens)
        metrics["rlhf/entropy"] = mean_entropy.detach()
        if agent.ent_coef != 0:
            loss = loss - agent.ent_coef * mean_entropy
        if agent.kl_in_loss:
            kl = _kl_term(agent, batch, evaluation, size)
            metrics["train/kl_loss"] = kl.detach()
            loss = loss + agent.kl_controller.kl_coef * kl
        loss.backward()
        metrics["train/loss"] = loss.detach()
        _add(totals, metrics)
    if agent.ptx is not None and agent.ptx.coef > 0:
        ptx = agent.ptx.add_gradient(policy, micro_batch_size=agent.micro_batch_size)
        _add(totals, {"train/ptx_loss": ptx, "train/loss": agent.ptx.coef * ptx})
    return {name: float(value) for name, value in totals.items()}


def _kl_term(agent: TokenAlgorithm, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> Tensor:
    """Mean over tokens of KL(π‖π_ref)."""
    reference = agent.engine.token_reward.reference
    assert reference is not None
    kl = token_kl(agent.kl_loss, batch, evaluation, agent.policy, reference)  # (n,)
    return (kl * agent.token_weights(batch, size).expand_as(batch.mask)[batch.mask]).sum() / size.tokens


def _add(totals: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Sums of what micro-batches contribute."""
    for name, value in more.items():
        totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value
