"""The enumerable environment's test names, the bandit, and an environment with ragged prompts and responses."""

from __future__ import annotations

import numpy as np
import torch

from rlhf_gym.agents import LMActorCriticPolicy, TokenAlgorithm, base
from rlhf_gym.envs.enumerable import EnumerableTask as Toy
from rlhf_gym.envs.enumerable import gpt2_task as make_toy
from rlhf_gym.envs.enumerable import letter_tokenizer
from rlhf_gym.envs.enumerable import tabular_task as make_tabular_toy
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.tabular import TabularConfig, TabularLM
from rlhf_gym.lm.tabular import tabular_lm as tabular_model
from tests.tiny import tiny_gpt2, tiny_tokenizer

__all__ = [
    "PROMPTS",
    "STOPS",
    "TabularConfig",
    "TabularLM",
    "Toy",
    "bandit",
    "letter_tokenizer",
    "make_tabular_toy",
    "make_toy",
    "minibatch_gradient",
    "tabular_model",
    "word_policy",
    "word_reward",
    "word_settings",
]


def minibatch_gradient(agent: TokenAlgorithm, rows: np.ndarray) -> dict[str, float]:
    """Leave the gradient of one minibatch of the agent's rollout in its policy; returns what is logged of it."""
    assert agent.buffer is not None
    own = agent.minibatch_loss, agent._active, agent.update_settings
    return base.minibatch_gradient(agent.policy, agent.buffer, rows, *own)


def bandit(beta: float) -> Toy:
    """One step, π_ref = (.5, .3, .2), r = (0, 1, 2)."""
    reference = tabular_model(np.array([0.5, 0.3, 0.2]), 3, 1)
    return Toy(reference, torch.arange(3)[:, None], np.array([0.0, 1.0, 2.0]), beta)


PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11, 12], [13]]
STOPS = (1, 5, 9, 13, 17)
"""Several, so that random policies end some responses early and others at the horizon."""


def word_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """Some function of the words: letters a word, and a bonus for each "good"."""
    pairs = zip(prompts, responses, strict=True)
    return [0.2 * len(r) / (1 + r.count(" ")) + r.count("good") - 0.1 * len(p) for p, r in pairs]


def word_settings(**overrides) -> dict:
    """Arguments of a token environment over `tiny_tokenizer`'s words, with ragged prompts and ragged responses."""
    settings = {
        "prompts": PROMPTS,
        "tokenizer": tiny_tokenizer(),
        "reference": Shared(tiny_gpt2(seed=1)),
        "reward": word_reward,
        "max_new_tokens": 8,
        "kl_coef": 0.1,
        "stop_token_ids": STOPS,
    }
    return settings | overrides


def word_policy(env, *, seed: int = 2, **policy_kwargs) -> LMActorCriticPolicy:
    """A policy for `env` that is not its π_ref, ready to act."""
    observation_space = getattr(env, "single_observation_space", None) or env.observation_space
    action_space = getattr(env, "single_action_space", None) or env.action_space
    settings = {"model": Shared(tiny_gpt2(seed=seed))} | policy_kwargs
    policy = LMActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, **settings)
    policy.set_training_mode(False)
    return policy


def kwise_loss(scores: torch.Tensor, ranking: torch.Tensor) -> torch.Tensor:
    """1/C(K,2) · Σ over pairs i ranked above j of −log σ(r_i − r_j), written out; equal ranks make no pair."""
    count = range(len(ranking))
    pairs = [scores[i] - scores[j] for i in count for j in count if ranking[i] < ranking[j]]
    return -torch.nn.functional.logsigmoid(torch.stack(pairs)).mean()
