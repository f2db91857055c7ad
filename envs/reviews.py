"""`rlhf_gym/Reviews-v0`: the embedded task, complete by itself and offline."""

from __future__ import annotations

from typing import Any

from rlhf_gym.envs.token_env import TokenEnv
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.tasks.reviews import DATA, reviews_task


def reviews_env(render_mode: str | None = None, **overrides: Any) -> TokenEnv:
    """Reviews, one episode at a time. `overrides`: any argument of `TokenVectorEnv`."""
    return TokenEnv(render_mode=render_mode, **(_defaults() | overrides))


def reviews_vector_env(num_envs: int = 1, **overrides: Any) -> TokenVectorEnv:
    """Reviews, `num_envs` episodes at a time. `overrides`: any argument of `TokenVectorEnv`."""
    return TokenVectorEnv(num_envs, **(_defaults() | overrides))


def _defaults() -> dict[str, Any]:
    task = reviews_task()
    if task.sft is None or task.reward_model is None:
        raise FileNotFoundError(f"expected the weights of the reviews task in {DATA}; scripts/build_reviews makes them")
    return {
        "prompts": task.prompts,
        "tokenizer": task.tokenizer,
        "reference": task.sft,
        "reward": task.reward_model,
        "max_prompt_length": task.max_prompt_length,
        "max_new_tokens": task.max_new_tokens,
    }
