"""From what a caller names to what an environment is made of, and checks of what it is given later."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.envs.prompts import PromptIds
from rlhf_gym.lm.chat import Prompt, as_prompt
from rlhf_gym.lm.loading import Shared, load_causal_lm, load_tokenizer
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.tokens import encode_prompts
from rlhf_gym.lm.tokens import stop_token_ids as default_stop_token_ids
from rlhf_gym.preferences.files import read_prompts
from rlhf_gym.rewards import LearnedReward, RewardFunction, load_reward


def resolve_tokenizer(tokenizer: Any, reference: Any) -> PreTrainedTokenizerBase:
    """The tokenizer given, or the one beside the reference."""
    if tokenizer is None:
        if not isinstance(reference, str | Path):
            raise ValueError("expected a tokenizer, or a reference given as a folder or name to take it from; got None")
        tokenizer = reference
    if isinstance(tokenizer, str | Path):
        return load_tokenizer(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"expected tokenizer to be a folder, a name or a tokenizer, got {type(tokenizer).__name__}")
    return tokenizer


def resolve_reference(reference: Any, *, device: str) -> LMParts | None:
    """The parts of π_ref, in eval mode: with dropout it would be another policy at every call.

    It is in fp32 whatever its checkpoint is in. The policy that starts from it is, for small steps would round away in
    less, and both must be the same function for the KL to begin at 0. A model given in another dtype is copied.
    """
    if reference is None:
        return None
    if isinstance(reference, str | Path):
        model = load_causal_lm(reference, dtype=torch.float32, device=device)
        return LMParts(model.requires_grad_(False))
    if isinstance(reference, Shared):
        model = reference.value
        if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
            model = copy.deepcopy(model).float().requires_grad_(False)
        return LMParts(model.eval())
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


def _bare(name: str, module: nn.Module) -> str:
    return (
        f"expected {name} to be a folder, a name or Shared({type(module).__name__}), got the bare module: Gymnasium "
        f"deep-copies an environment's arguments, and would its weights. Write {name}=rlhf_gym.lm.Shared(model)"
    )


def resolve_prompts(prompts: Any, tokenizer: PreTrainedTokenizerBase) -> list[PromptIds]:
    """Token ids of prompts given as texts or conversations, as token ids, or as a file of them.

    Raises:
        TypeError: texts and token ids mixed.
        ValueError: no prompts, something that is neither, or a conversation that the chat template refuses.
    """
    if isinstance(prompts, str | Path):
        prompts = read_prompts(prompts, tokenizer=tokenizer)
    if not isinstance(prompts, Sequence) or not len(prompts):
        raise ValueError(f"expected prompts: texts, token ids or a file, got {prompts!r}")
    given = [_as_given(prompt, index) for index, prompt in enumerate(prompts)]
    words = [prompt for prompt in given if not isinstance(prompt, PromptIds)]
    if len(words) == len(given):
        return [PromptIds(ids, prompt) for ids, prompt in zip(encode_prompts(tokenizer, words), words, strict=True)]
    if words:
        raise TypeError(f"expected prompts as texts or as token ids, got {len(words)} texts among {len(given)}")
    return [prompt for prompt in given if isinstance(prompt, PromptIds)]


def _as_given(prompt: Any, index: int) -> Prompt | PromptIds:
    """One of the prompts that a caller gave: what it says, or its token ids."""
    if isinstance(prompt, PromptIds):
        return prompt
    is_row = isinstance(prompt, Iterable) and not isinstance(prompt, str | Mapping)
    if is_row and all(isinstance(token, SupportsIndex) and not isinstance(token, bool) for token in prompt):
        return PromptIds(int(token) for token in prompt)
    try:
        return as_prompt(prompt)
    except ValueError as error:
        raise ValueError(f"prompt {index}: {error}") from error


def check_prompts(prompts: Sequence[Sequence[int]], *, max_prompt_length: int, vocab_size: int) -> None:
    """Raise where a prompt is too long or holds an unknown token.

    Raises:
        ValueError: naming the first such prompt.
    """
    for index, ids in enumerate(prompts):
        if len(ids) > max_prompt_length:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens, expected at most max_prompt_length={max_prompt_length}"
            )
        if not (min(ids) >= 0 and max(ids) < vocab_size):
            raise ValueError(f"prompt {index}: expected token ids in 0 … {vocab_size - 1}, got {list(ids)}")


def resolve_stops(
    stops: Sequence[int] | None, tokenizer: PreTrainedTokenizerBase, parts: LMParts | None, *, vocab_size: int
) -> tuple[int, ...]:
    """The tokens that end a response: those given, or the tokenizer's EOS and the reference's own."""
    if stops is None:
        found = default_stop_token_ids(tokenizer, None if parts is None else parts.model)
        return tuple(stop for stop in found if 0 <= stop < vocab_size)  # no model can say the others
    if not isinstance(stops, Iterable):
        raise TypeError(f"expected stop_token_ids as a sequence of token ids, got {stops!r}")
    if not all(isinstance(stop, Integral) and 0 <= stop < vocab_size for stop in stops):
        raise ValueError(f"expected stop_token_ids in 0 … {vocab_size - 1}, got {list(stops)}")
    return tuple(int(stop) for stop in stops)


def read_options(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, list[PromptIds]]:
    """How many episodes a reset's options ask for (None: no end), and the prompts they name, in their order."""
    if not isinstance(options, Mapping):
        raise TypeError(f"expected the options of a reset as a mapping, got {options!r}")
    unknown = sorted(set(options) - {"episodes", "prompts"})
    if unknown:
        raise ValueError(f"expected the options episodes or prompts, got {', '.join(unknown)}")
    if "prompts" in options and "episodes" in options:
        raise ValueError("expected either the option episodes or the option prompts, got both")
    if "prompts" in options:
        prompts = resolve_prompts(options["prompts"], tokenizer)
        return len(prompts), prompts
    episodes = options.get("episodes")
    if episodes is None:
        return None, []
    if isinstance(episodes, bool) or not (isinstance(episodes, int | np.integer) and episodes >= 1):
        raise ValueError(f"expected the option episodes to be an integer >= 1, got {episodes!r}")
    return int(episodes), []


def check_actions(
    actions: np.ndarray | Tensor, vocab_size: int, *, parked: np.ndarray, waiting: np.ndarray
) -> np.ndarray:
    """Actions as integers on the host, (N,) int64.

    Args:
        actions: (N,); tokens in the slots that act, anything in the others.
        vocab_size: V.
        parked: slots with nothing left to do, (N,) bool.
        waiting: slots that begin a new episode instead of acting, (N,) bool.

    Raises:
        ResetNeeded: every slot is parked.
        ValueError: another shape or type, or a number that is no token.
    """
    if isinstance(actions, Tensor):
        actions = actions.detach().cpu().numpy()
    actions = np.asarray(actions)
    if actions.shape != parked.shape:
        raise ValueError(f"expected actions of shape {parked.shape}, got {actions.shape}")
    if actions.dtype.kind not in "iu":
        raise ValueError(f"expected integer actions (token ids), got {actions.dtype}")
    if parked.all():
        raise ResetNeeded("every slot is parked, the episodes asked for have ended: call reset()")
    wrong = ~parked & ~waiting & ((actions < 0) | (actions >= vocab_size))
    if wrong.any():
        slot = int(wrong.argmax())
        raise ValueError(f"expected actions in 0 … {vocab_size - 1}, got {actions[slot]} in slot {slot}")
    return actions.astype(np.int64, copy=False)


ROUNDING = 1e-3
"""A log-probability may be this far above 0, as low precision rounds."""


def check_log_probs(said: np.ndarray | Tensor, real: np.ndarray, *, source: str) -> np.ndarray:
    """Log-probabilities of actions on the host, float32, of the shape of `real`, and 0 where that is False.

    Args:
        said: what a policy answered.
        real: where an action was taken, bool.
        source: who answered, for the error.

    Raises:
        ValueError: another shape, no floating-point numbers, or an amount that is not finite or above 0.
    """
    values = said.detach().float().cpu().numpy() if isinstance(said, Tensor) else np.asarray(said)
    if values.shape != real.shape:
        raise ValueError(f"expected log π(a|s) of shape {real.shape} from {source}, got shape {values.shape}")
    if values.dtype.kind != "f":
        raise ValueError(f"expected log π(a|s) as floating-point numbers from {source}, got {values.dtype}")
    wrong = real & ~(np.isfinite(values) & (values <= ROUNDING))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"expected log π(a|s) from {source}, finite and <= 0, got {values[place]} at {', '.join(map(str, place))}"
            f" ({int(wrong.sum())} of {int(real.sum())} are so)"
        )
    return np.where(real, values, 0).astype(np.float32)
