"""What an environment is made of, from what its caller names: folders, hub names, files, shared models, callables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.lm.loading import load_causal_lm, load_tokenizer
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.shared import Shared
from rlhf_gym.lm.tokens import encode_prompts
from rlhf_gym.preferences.files import read_prompts
from rlhf_gym.rewards import LearnedReward, RewardFunction, load_reward


def resolve_tokenizer(tokenizer: Any, reference: Any) -> PreTrainedTokenizerBase:
    """The tokenizer given, or the one beside the reference."""
    if tokenizer is None:
        if not isinstance(reference, str | Path):
            raise ValueError("expected a tokenizer, or a reference given as a folder or name to take it from; got None")
        tokenizer = reference
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def resolve_reference(reference: Any, *, device: str) -> LMParts | None:
    """π_ref's parts, in eval mode (dropout would make it another policy at every call); no gradients if loaded here."""
    if reference is None:
        return None
    if isinstance(reference, str | Path):
        model = load_causal_lm(reference, device=device).requires_grad_(False)
        return LMParts(model)
    if isinstance(reference, Shared):
        return LMParts(reference.value.eval())
    if isinstance(reference, PreTrainedModel):
        raise TypeError(_bare("reference", reference))
    raise TypeError(f"expected reference to be a folder, a name, Shared(model) or None, got {type(reference).__name__}")


def resolve_reward(reward: Any, *, device: str) -> LearnedReward | RewardFunction:
    """The reward model, ensemble or callable that scores."""
    if isinstance(reward, str | Path):
        return load_reward(reward, device=device)
    if isinstance(reward, Shared):
        return reward.value
    if isinstance(reward, nn.Module):
        raise TypeError(_bare("reward", reward))
    return reward


def resolve_prompts(prompts: Any, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of prompts given as texts, as token ids, or as a file of texts.

    Raises:
        ValueError: no prompts, or something that is neither.
    """
    if isinstance(prompts, str | Path):
        prompts = read_prompts(prompts)
    if not isinstance(prompts, Sequence) or not len(prompts):
        raise ValueError(f"expected prompts: texts, token ids or a file, got {prompts!r}")
    if all(isinstance(prompt, str) for prompt in prompts):
        return encode_prompts(tokenizer, prompts)
    return [[int(token) for token in prompt] for prompt in prompts]


def _bare(name: str, module: nn.Module) -> str:
    return (
        f"expected {name} to be a folder, a name or Shared({type(module).__name__}), got the bare module: Gymnasium "
        f"deep-copies an environment's arguments, and would its weights. Write {name}=rlhf_gym.lm.Shared(model)"
    )
