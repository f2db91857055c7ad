"""`rlhf_gym/Chat-v0`: conversations of several turns, with π_ref itself as the other side where none is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_gym.envs.language_respondent import LMRespondent
from rlhf_gym.envs.respondents import Respondent, Turn
from rlhf_gym.envs.token_env import TokenEnv
from rlhf_gym.envs.turns import Turns
from rlhf_gym.envs.vector_env import TokenVectorEnv

AROUND = 16
"""Room for what a chat template writes around a reply, in tokens, where the other side is π_ref."""


def chat_env(render_mode: str | None = None, **arguments: Any) -> TokenEnv:
    """`rlhf_gym/Chat-v0`, one conversation at a time; the arguments are those of `chat_vector_env`."""
    return TokenEnv(render_mode=render_mode, **_with_turns(**arguments))


def chat_vector_env(num_envs: int = 1, **arguments: Any) -> TokenVectorEnv:
    """`rlhf_gym/Chat-v0`, `num_envs` conversations at a time.

    Args:
        num_envs: N.
        arguments: `respondent` is the other side, by default π_ref with the roles swapped (`LMRespondent`);
            `max_turns`, `max_turn_tokens` and `max_reply_tokens` are those of `Turns`. All others are those of
            `TokenVectorEnv`, with `prompts` as conversations.
    """
    return TokenVectorEnv(num_envs, **_with_turns(**arguments))


def _with_turns(
    *,
    respondent: Respondent | Callable[[Turn], Any] | None = None,
    max_turns: int = 4,
    max_turn_tokens: int | None = None,
    max_reply_tokens: int = 48,
    **arguments: Any,
) -> dict[str, Any]:
    if respondent is None:
        reference = arguments.get("reference")
        if reference is None:
            raise ValueError("expected a respondent, or a reference that can be one, got neither")
        respondent = LMRespondent(
            reference, tokenizer=arguments.get("tokenizer"), max_new_tokens=max(1, max_reply_tokens - AROUND)
        )
    return arguments | {"turns": Turns(respondent, max_turns, max_turn_tokens, max_reply_tokens)}
