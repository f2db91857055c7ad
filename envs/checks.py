"""What an environment is asked for, checked before anything is computed: arguments, options of a reset, actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.envs.episode import ActionLogProb
from rlhf_gym.envs.sources import resolve_prompts
from rlhf_gym.lm.tokens import stop_token_ids as default_stop_token_ids


def token_spaces(vocab_size: int, length: int) -> tuple[spaces.Dict, spaces.Discrete]:
    """Observation and action space of one slot whose row holds `length` tokens."""
    observation_space = spaces.Dict(
        input_ids=spaces.Box(0, vocab_size - 1, (length,), np.int64),
        attention_mask=spaces.Box(0, 1, (length,), np.int8),
    )
    return observation_space, spaces.Discrete(vocab_size)


def resolve_stops(
    stops: Sequence[int] | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None, *, vocab_size: int
) -> tuple[int, ...]:
    """What ends a response: the tokens given, or the tokenizer's EOS and the reference's own."""
    if stops is None:
        return default_stop_token_ids(tokenizer, model)
    if not all(0 <= stop < vocab_size for stop in stops):
        raise ValueError(f"expected stop_token_ids in 0 … {vocab_size - 1}, got {list(stops)}")
    return tuple(stops)


def read_options(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, list[list[int]]]:
    """How many episodes a reset's options ask for (None: no end), and the prompts they name, in their order."""
    unknown = sorted(set(options) - {"episodes", "prompts"})
    if unknown:
        raise ValueError(f"expected the options episodes or prompts, got {', '.join(unknown)}")
    if "prompts" in options and "episodes" in options:
        raise ValueError("expected either the option episodes or the option prompts, got both")
    if "prompts" in options:
        queue = resolve_prompts(options["prompts"], tokenizer)
        return len(queue), queue
    episodes = options.get("episodes")
    if episodes is None:
        return None, []
    if not (isinstance(episodes, int | np.integer) and episodes >= 1):
        raise ValueError(f"expected the option episodes to be an integer >= 1, got {episodes!r}")
    return int(episodes), []


def read_actions(actions: np.ndarray | Tensor, num_envs: int) -> np.ndarray:
    """Actions as integers on the host, (N,) int64; whether they are tokens is not looked at."""
    if isinstance(actions, Tensor):
        actions = actions.detach().cpu().numpy()
    actions = np.asarray(actions)
    if actions.shape != (num_envs,):
        raise ValueError(f"expected actions of shape ({num_envs},), got {actions.shape}")
    if actions.dtype.kind not in "iu":
        raise ValueError(f"expected integer actions (token ids), got {actions.dtype}")
    return actions.astype(np.int64, copy=False)


def check_actions(
    actions: np.ndarray | Tensor, vocab_size: int, *, parked: np.ndarray, waiting: np.ndarray
) -> np.ndarray:
    """Actions as integers on the host, (N,) int64: tokens in every slot that acts, which some slot does.

    Args:
        actions: (N,); what stands where nothing acts is not looked at.
        vocab_size: V.
        parked: slots with nothing left to do, (N,) bool.
        waiting: slots that begin a new episode instead of acting, (N,) bool.

    Raises:
        ResetNeeded: every slot is parked.
        ValueError: another shape or type, or a number that is no token.
    """
    actions = read_actions(actions, len(parked))
    if parked.all():
        raise ResetNeeded("every slot is parked, the episodes asked for have ended: call reset()")
    wrong = ~parked & ~waiting & ((actions < 0) | (actions >= vocab_size))
    if wrong.any():
        slot = int(wrong.argmax())
        raise ValueError(f"expected actions in 0 … {vocab_size - 1}, got {actions[slot]} in slot {slot}")
    return actions


def check_policy(policy: ActionLogProb) -> ActionLogProb:
    """The policy, if it can be asked."""
    if not isinstance(policy, ActionLogProb):
        raise TypeError(
            f"expected a policy with action_log_prob(observation, action) -> (N,), got {type(policy).__name__}; "
            "unattached, the agent is read as deterministic (log π = 0)"
        )
    return policy
