"""What a minibatch's loss is made of: its records, and the KL term."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_gym.agents.arguments import KLLoss
from rlhf_gym.agents.buffer import EpisodeBatch
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.functional.kl import k2, k3
from rlhf_gym.lm.parts import LMParts


class MinibatchSize(NamedTuple):
    """What the means of a minibatch are taken over; its micro-batches share it, so that their losses add up."""

    tokens: int
    """Real actions in the whole minibatch."""
    episodes: int
    """Episodes in the whole minibatch."""


class MinibatchLoss(NamedTuple):
    """A micro-batch's share of the loss, and its share of what is logged."""

    loss: Tensor
    """Scalar, differentiable; the shares of a minibatch add up to its loss."""
    metrics: dict[str, Tensor]
    """Detached scalars under their names in the log; the shares add up too."""


def token_kl(
    kind: KLLoss,
    batch: EpisodeBatch,
    evaluation: EpisodeEvaluation,
    policy: LMActorCriticPolicy,
    reference: LMParts,
) -> Tensor:
    """KL(π‖π_ref) at each real action, row by row, (n,), differentiable: over the vocabulary (`full`), or k2 or k3 of
    the action taken."""
    if kind != "full":
        estimate = k2 if kind == "k2" else k3
        return estimate(evaluation.log_probs[batch.mask], batch.ref_log_probs[batch.mask])
    with torch.no_grad():
        hidden = reference.hidden_states(batch.input_ids.to(reference.device))  # (B, L, H)
        acted_from = batch.action_mask[:, 1:].to(hidden.device)  # (B, L - 1)
        ref_states = hidden[:, :-1][acted_from]  # (n, H')
    return policy.vocabulary_kl(evaluation.states, reference, ref_states)
