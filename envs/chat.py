"""`rlhf_gym/Chat-v0`: conversations of several turns, by default with the embedded customer.

Where a reference is given but no respondent, π_ref itself is the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_gym.envs.language_respondent import LMRespondent
from rlhf_gym.envs.respondents import Respondent, Turn
from rlhf_gym.envs.token_env import TokenEnv
from rlhf_gym.envs.turns import Turns
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.tasks.customer import (
    MAX_REPLY_TOKENS,
    MAX_TURN_TOKENS,
    MAX_TURNS,
    MODELS,
    customer_reply,
    customer_task,
)

AROUND = 16
"""Room for what a chat template writes around a reply, in tokens, where the other side is π_ref."""


def chat_env(render_mode: str | None = None, **arguments: Any) -> TokenEnv:
    """`rlhf_gym/Chat-v0`, one conversation at a time; the arguments are those of `chat_vector_env`."""
    return TokenEnv(render_mode=render_mode, **_with_turns(**arguments))


def chat_vector_env(num_envs: int = 1, **arguments: Any) -> TokenVectorEnv:
    """`rlhf_gym/Chat-v0`, `num_envs` conversations at a time.

    With neither a `reference` nor a `respondent` they are those with the embedded customer
    (`rlhf_gym.tasks.customer_task`), and any other argument replaces one of that task.

    Args:
        num_envs: N.
        arguments: `respondent` is the other side, by default π_ref with the roles swapped (`LMRespondent`);
            `max_turns`, `max_turn_tokens` and `max_reply_tokens` are those of `Turns`. All others are those of
            `TokenVectorEnv`, with `prompts` as conversations.
    """
    return TokenVectorEnv(num_envs, **_with_turns(**arguments))


def customer(turn: Turn) -> str | None:
    """The customer of the embedded task as a respondent."""
    return customer_reply(turn.messages, turn.rng)


def _with_turns(**arguments: Any) -> dict[str, Any]:
    embedded = not {"reference", "respondent"} & set(arguments)
    return _with_respondent(**(_customer_arguments() | arguments if embedded else arguments))


def _customer_arguments() -> dict[str, Any]:
    task = customer_task()
    if task.sft is None:
        raise FileNotFoundError(
            f"expected the weights of the dialogues in {MODELS}; scripts/models/build_customer.py makes them"
        )
    return {
        "prompts": task.prompts,
        "tokenizer": task.tokenizer,
        "reference": task.sft,
        "reward": task.reward_model,
        "respondent": customer,
        "max_turns": MAX_TURNS,
        "max_turn_tokens": MAX_TURN_TOKENS,
        "max_reply_tokens": MAX_REPLY_TOKENS,
        "max_prompt_length": task.max_prompt_length,
        "max_new_tokens": task.max_new_tokens,
    }


def _with_respondent(
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
    missing = [name for name in ("reference", "reward") if name not in arguments]
    if missing:
        raise ValueError(
            "expected prompts, a reference (None for no KL term) and a reward beside the respondent, got no "
            f"{' and no '.join(missing)}"
        )
    return arguments | {"turns": Turns(respondent, max_turns, max_turn_tokens, max_reply_tokens)}
