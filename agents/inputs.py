"""What a policy is given: observations, spaces, and the model to start from."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlhf_gym.envs.episode import Observation
from rlhf_gym.lm.loading import load_causal_lm
from rlhf_gym.lm.lora import LoRASettings, add_adapter, has_adapter, train_adapter_only
from rlhf_gym.lm.shared import Shared

ModelSource = str | Path | Shared[PreTrainedModel] | PretrainedConfig
"""A folder, a name, a model to copy, or a configuration (random weights)."""


def read(observation: PyTorchObs | Observation) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (N, L) and lengths (N,) of an observation, on the host."""
    ids, mask = observation["input_ids"], observation["attention_mask"]  # type: ignore[index]
    if isinstance(ids, Tensor):
        ids = ids.detach().cpu().numpy()
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().numpy()
    if ids.dtype.kind == "f" and (ids != np.rint(ids)).any():
        raise ValueError("expected token ids in the observation, got fractions: with VecNormalize say norm_obs=False")
    if ids.ndim == 1:
        ids, mask = ids[None], mask[None]
    return ids.astype(np.int64, copy=False), mask.sum(axis=-1, dtype=np.int64)


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """The spaces are those of a token environment.

    Raises:
        ValueError: saying what was expected and what came.
    """
    keys = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
    if not {"input_ids", "attention_mask"} <= keys or not isinstance(action_space, spaces.Discrete):
        raise ValueError(
            "expected observations Dict(input_ids, attention_mask) and Discrete actions, "
            f"got {observation_space} and {action_space}"
        )


def own_model(source: ModelSource, lora: LoRASettings | None = None) -> PreTrainedModel:
    """A model that belongs to the policy alone, in eval mode (no dropout).

    Every weight is trainable; with an adapter, the fresh one of `lora` or the model's own, that alone.
    """
    if isinstance(source, PretrainedConfig):
        model = AutoModelForCausalLM.from_config(source, dtype=torch.float32)
    elif isinstance(source, Shared):
        if not isinstance(source.value, PreTrainedModel):  # such as peft's wrapper, whose folder will do
            raise TypeError(f"expected Shared(model) of a PreTrainedModel, got {type(source.value).__name__}")
        model = copy.deepcopy(source.value).float()
    elif isinstance(source, str | Path):
        model = load_causal_lm(source, dtype=torch.float32)
    else:
        raise TypeError(
            f"expected model to be a folder, a name, Shared(model) or a configuration, got {type(source).__name__}; "
            "a bare module would be pickled whole by SB3's save"
        )
    if lora is not None:
        add_adapter(model, lora)
    if has_adapter(model):
        train_adapter_only(model)
    else:
        model.requires_grad_(True)
    return model.eval()
