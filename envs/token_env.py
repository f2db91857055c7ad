"""`TokenEnv`: the token MDP as a plain `gymnasium.Env`. Here the embedded reviews task is made, too."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, SupportsInt

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from rlhf_gym.envs.episode import ActionLogProb, Episode, EpisodeRewards, Observation
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.envs.view import EpisodeView
from rlhf_gym.tasks.reviews import DATA, reviews_task


class TokenEnv(gym.Env):
    """One episode at a time: the engine of `TokenVectorEnv` with one slot. The arguments are its arguments.

    `reset(options={"prompt": text or token ids})` chooses the prompt. After the end the environment must be reset.
    A policy attached to it is asked with a batch of one.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's convention)
        "render_modes": TokenVectorEnv.metadata["render_modes"],
        "render_fps": 10,
    }

    def __init__(self, render_mode: str | None = None, **kwargs: Any) -> None:
        if "autoreset_mode" in kwargs or "num_envs" in kwargs:
            raise TypeError("TokenEnv has one slot and no autoreset: expected neither num_envs nor autoreset_mode")
        self.engine = TokenVectorEnv(1, autoreset_mode=AutoresetMode.NEXT_STEP, render_mode=render_mode, **kwargs)
        self.observation_space = self.engine.single_observation_space
        self.action_space = self.engine.single_action_space
        self.render_mode = render_mode
        self._over = True

    __signature__ = inspect.Signature(  # what `help` and editors show
        [
            each.replace(kind=each.KEYWORD_ONLY)
            for name, each in inspect.signature(TokenVectorEnv).parameters.items()
            if name not in ("num_envs", "autoreset_mode")
        ]
    )

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of observations and actions."""
        return self.engine.tokenizer

    @property
    def kl_coef(self) -> float:
        """β; may be set between steps while no agent's controller owns it."""
        return self.engine.kl_coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        self.engine.kl_coef = value

    def attach(self, policy: ActionLogProb | None) -> None:
        """See `TokenVectorEnv.attach`."""
        self.engine.attach(policy)

    def follow(self, device: torch.device | str) -> None:
        """See `TokenVectorEnv.follow`."""
        self.engine.follow(device)

    def action_masks(self) -> np.ndarray:
        """Allowed tokens, (V,) bool: see `TokenVectorEnv.action_masks`."""
        return self.engine.action_masks()[0]

    @property
    def pending_episodes(self) -> list[Episode]:
        """See `TokenVectorEnv.pending_episodes`."""
        return self.engine.pending_episodes

    def score_episodes(
        self, episodes: Sequence[Episode], log_probs: Sequence[np.ndarray] | np.ndarray | None = None
    ) -> EpisodeRewards:
        """See `TokenVectorEnv.score_episodes`."""
        return self.engine.score_episodes(episodes, log_probs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; with a seed, the prompts' order as well."""
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - {"prompt"})
        if unknown:
            raise ValueError(f"expected the option prompt, got {', '.join(unknown)}")
        chosen = {"prompts": [options["prompt"]]} if "prompt" in options else None
        observation, info = self.engine.reset(seed=seed, options=chosen)
        self._over = False
        return _first(observation), _single(info)

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token to the response."""
        if self._over:
            raise ResetNeeded("expected reset() before step(): no episode is in progress")
        observation, rewards, terminated, truncated, infos = self.engine.step(np.asarray(action).reshape(1))
        self._over = bool(terminated[0])
        return _first(observation), float(rewards[0]), self._over, bool(truncated[0]), _single(infos)

    def render(self) -> Any:
        """The response so far as coloured tokens: see `TokenVectorEnv.render`."""
        frames = self.engine.render()
        return None if frames is None else frames[0]

    def view(self) -> EpisodeView:
        """The response so far, taken apart: see `TokenVectorEnv.view`."""
        return self.engine.view(0)


def _first(observation: Observation) -> Observation:
    return {key: value[0] for key, value in observation.items()}


def _single(infos: dict[str, np.ndarray]) -> dict[str, Any]:
    """The information of the one slot, as Python's own numbers and texts."""
    return {key: value.tolist()[0] for key, value in infos.items() if not key.startswith("_")}


def reviews_env(render_mode: str | None = None, **overrides: Any) -> TokenEnv:
    """`rlhf_gym/Reviews-v0`, one episode at a time. `overrides`: any argument of `TokenVectorEnv`."""
    return TokenEnv(render_mode=render_mode, **(_reviews_arguments() | overrides))


def reviews_vector_env(num_envs: int = 1, **overrides: Any) -> TokenVectorEnv:
    """`rlhf_gym/Reviews-v0`, `num_envs` episodes at a time. `overrides`: any argument of `TokenVectorEnv`."""
    return TokenVectorEnv(num_envs, **(_reviews_arguments() | overrides))


def _reviews_arguments() -> dict[str, Any]:
    task = reviews_task()
    if task.sft is None or task.reward_model is None:
        raise FileNotFoundError(
            f"expected the weights of the reviews task in {DATA}; scripts/models/build_reviews.py makes them"
        )
    return {
        "prompts": task.prompts,
        "tokenizer": task.tokenizer,
        "reference": task.sft,
        "reward": task.reward_model,
        "max_prompt_length": task.max_prompt_length,
        "max_new_tokens": task.max_new_tokens,
    }
