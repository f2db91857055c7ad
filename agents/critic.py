"""Where the critic's trunk comes from, where it has one of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhf_gym.lm.lora import has_adapter, unwrap
from rlhf_gym.lm.parts import LMParts, Trunk
from rlhf_gym.lm.shared import Shared
from rlhf_gym.rewards import RewardModel

Critic = Literal["shared", "separate", "reward_model"]


def critic_trunk(
    critic: Critic, source: str | Path | Shared[RewardModel] | PretrainedConfig | None, actor: LMParts
) -> Trunk:
    """A trunk for the value head alone, every weight trainable: a copy of the actor's (`"separate"`), or of the reward
    model's that `source` says; of a configuration, one with random weights.

    Raises:
        ValueError: the reward model knows later tokens, or speaks another vocabulary than the actor.
    """
    trunk: Any
    if critic == "separate":
        trunk = copy.deepcopy(actor.module)
        trunk = unwrap(trunk, merge=True) if has_adapter(actor.model) else trunk  # trained whole
    elif isinstance(source, PretrainedConfig):
        trunk = AutoModelForCausalLM.from_config(source, dtype=torch.float32).get_decoder()
    else:
        reward = source.value if isinstance(source, Shared) else RewardModel.from_pretrained(source)  # type: ignore[arg-type]
        if reward.reads != "last_token":
            raise ValueError(
                "expected a critic_model that reads from left to right, got an encoder: its state of a token "
                "knows the tokens after it"
            )
        trunk = copy.deepcopy(reward.model.base_model).float()
    trunk.requires_grad_(True)
    parts = Trunk(trunk.eval())
    if parts.vocab_size != actor.vocab_size:
        raise ValueError(
            f"expected a critic with the actor's vocabulary of {actor.vocab_size} tokens, "
            f"got {parts.vocab_size}: use critic='shared' or 'separate'"
        )
    return parts
