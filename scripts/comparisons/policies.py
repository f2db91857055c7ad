"""What an agent leaves: a language model, a choice among π_ref's responses, or a greedy agent on a shortlist."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from transformers import PreTrainedModel

from rlhf_gym.agents import BestOfN
from rlhf_gym.envs import Episode, ShortlistVectorActions, TokenVectorEnv


@dataclass(frozen=True)
class Sampler:
    """It samples from a language model."""

    model: PreTrainedModel
    """π."""


@dataclass(frozen=True)
class Chooser:
    """It takes the best of n responses of π_ref."""

    agent: BestOfN
    """Who chooses."""


@dataclass(frozen=True)
class Greedy:
    """It takes the action of the highest value, out of π_ref's k likeliest tokens."""

    agent: BaseAlgorithm
    """A value-based agent."""
    k: int
    """Size of the shortlist."""

    def respond(self, env: TokenVectorEnv, prompts: list[list[int]]) -> list[Episode]:
        """Its response to each prompt, in their order; `env` has deferred rewards."""
        short = ShortlistVectorActions(env, self.k)
        observation, _ = short.reset(options={"prompts": prompts})
        while not env.parked.all():
            places, _ = self.agent.predict(observation, deterministic=True)  # type: ignore[arg-type]
            observation, *_ = short.step(np.asarray(places))
        episodes = env.pending_episodes
        env.discard_episodes()
        return episodes


Policy = Sampler | Chooser | Greedy
