"""`rlhf_gym/Guess-v0`: the embedded number-guessing game, an episode of several turns of one token each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from rlhf_gym.envs.text_env import TextEnvRespondent
from rlhf_gym.envs.token_env import TokenEnv
from rlhf_gym.envs.turns import Turns
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.lm.loading import Shared
from rlhf_gym.ranges import Count, check_arguments
from rlhf_gym.tasks.guessing import PROMPT_LENGTH, GuessingGame, guessing_policy, guessing_tokenizer, rules


def guess_env(render_mode: str | None = None, **arguments: Any) -> TokenEnv:
    """`rlhf_gym/Guess-v0`, one game at a time; the arguments are those of `guess_vector_env`."""
    return TokenEnv(render_mode=render_mode, **_with_game(**arguments))


def guess_vector_env(num_envs: int = 1, **arguments: Any) -> TokenVectorEnv:
    """`rlhf_gym/Guess-v0`, `num_envs` games at a time.

    The policy's turn is one token, a number; the game answers "higher", "lower" or "invalid", or ends. Each turn earns
    −1. A game is lost after n turns.

    Args:
        num_envs: N.
        arguments: `n` (8 by default), the secret being uniform on 1 … n, and any argument of `TokenVectorEnv`. Without
            a `reference` π_ref is the SFT policy, made in some seconds.
    """
    return TokenVectorEnv(num_envs, **_with_game(**arguments))


@check_arguments
def _with_game(*, n: Count = 8, **overrides: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "prompts": [rules(n)],
        "tokenizer": guessing_tokenizer(n),
        "reward": _no_score,
        "turns": Turns(TextEnvRespondent(partial(GuessingGame, n)), max_turns=n, max_turn_tokens=1, max_reply_tokens=1),
        "max_prompt_length": PROMPT_LENGTH,
        "max_new_tokens": n,
        "kl_coef": 0.01,
        "stop_token_ids": (),
    }
    if "reference" not in overrides:
        settings["reference"] = Shared(guessing_policy(n))
    return settings | overrides


def _no_score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The game pays by the turn, so that the response earns nothing more, (B,)."""
    return np.zeros(len(prompts))
