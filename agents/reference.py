"""Responses of π_ref, drawn by stepping the environment: its prompts, its stop tokens, its horizon, its reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from rlhf_gym.envs import Episode, EpisodeRewards, TokenVectorEnv
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.sampling import sample


class ReferenceEpisodes(NamedTuple):
    """What π_ref wrote."""

    episodes: list[Episode]
    """One to each prompt, in the prompts' order."""
    earned: EpisodeRewards
    """Their scores and log π_ref of their actions; the rewards are those of an agent read as deterministic."""


@torch.no_grad()
def draw_from_reference(
    env: TokenVectorEnv, prompts: Sequence[Sequence[int]] | Sequence[str], generator: torch.Generator | None = None
) -> ReferenceEpisodes:
    """One response of π_ref to each prompt; repeat a prompt to have several. The environment ends up parked.

    Args:
        env: with a reference.
        prompts: texts, or token ids.
        generator: source of randomness, on π_ref's device; torch's own by default.
    """
    env.attach(None)
    env.reset(options={"prompts": prompts})
    episodes: list[Episode] = []
    while not env.parked.all():
        actions, _ = sample(env.reference_logits(), generator=generator)  # (N,)
        env.step(actions)
        episodes += env.last_step.episodes
    episodes.sort(key=lambda episode: episode.number)
    return ReferenceEpisodes(episodes, env.score_episodes(episodes))


def check_reference(agent: str, env: TokenVectorEnv) -> None:
    """The environment has a π_ref."""
    if env.token_reward.reference is None:
        raise ValueError(f"expected an environment with a reference, got one without: {agent} begins from π_ref")


def start_of(env: TokenVectorEnv) -> Shared[PreTrainedModel]:
    """The environment's π_ref, for a policy to start as a copy of.

    Raises:
        ValueError: it has none.
    """
    reference = env.token_reward.reference
    if reference is None:
        raise ValueError(
            "expected policy_kwargs={'model': folder, name or Shared(model)}: the environment has no reference to "
            "start the policy from"
        )
    return Shared(reference.model)
