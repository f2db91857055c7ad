"""Views of episodes: log π, log π_ref, value, reward, return and advantage of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlhf_gym.agents.arguments import unwrap_env
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.agents.rollout import evaluated
from rlhf_gym.envs import Episode, EpisodeRewards, EpisodeView, SB3VecEnv, TokenEnv, TokenVectorEnv
from rlhf_gym.envs.arguments import check_prompts, resolve_prompts
from rlhf_gym.envs.prompts import PromptIds, Prompts
from rlhf_gym.envs.view import said_between
from rlhf_gym.lm.generation import check_room, generate
from rlhf_gym.lm.tokens import decode_prompts, encode_responses, token_texts

Responses = Sequence[str] | Sequence[Sequence[int]]
"""Texts, or token ids."""


def inspect_episodes(
    agent: OnPolicyAlgorithm | LMActorCriticPolicy,
    env: TokenVectorEnv | TokenEnv | SB3VecEnv | None = None,
    *,
    episodes: Sequence[Episode] | None = None,
    prompts: Prompts | None = None,
    responses: Responses | None = None,
    critic: bool | None = None,
    gamma: float | None = None,
    gae_lambda: float | None = None,
    seed: int = 0,
) -> list[EpisodeView]:
    """Views of finished episodes, of responses given, or of fresh responses of the policy.

        views = inspect_episodes(agent, prompts=["the film was"])

    The environment's episodes, prompts and running statistics stay as they were, and so does the global random state.
    Advantages are those of `functional.gae`, not whitened.

    Args:
        agent: a token agent, a stock SB3 agent with an `LMActorCriticPolicy`, or such a policy.
        env: the environment whose π_ref, r_φ and β are used; by default the agent's own.
        episodes: finished ones, such as `agent.buffer.episodes`.
        prompts: prompts to respond to, in place of episodes. In an environment with turns of others the policy writes
            the first turn.
        responses: one to each prompt; a text is closed by the EOS token, ids are taken as they are. By default the
            policy writes them, as it would in training.
        critic: whether values are those of a trained critic; by default as the agent says, and True for a policy.
        gamma, gae_lambda: γ and λ; by default the agent's, and for a policy alone 1 and .95.
        seed: the seed of the policy's own responses.

    Raises:
        ValueError, TypeError: what is given does not go together; the message says what was expected.
    """
    if isinstance(prompts, str) or isinstance(responses, str):
        raise TypeError(f"expected lists of prompts and responses, got one text: {prompts!r:.60}, {responses!r:.60}")
    policy = agent.policy if isinstance(agent, OnPolicyAlgorithm) else agent
    if not isinstance(policy, LMActorCriticPolicy):
        raise TypeError(f"expected an LMActorCriticPolicy, or an agent with one, got {type(policy).__name__}")
    engine = _engine(agent, env)
    if (episodes is None) == (prompts is None):
        raise ValueError("expected either episodes or prompts, got " + ("neither" if prompts is None else "both"))
    if responses is not None and prompts is None:
        raise ValueError("expected prompts for the responses, got episodes")
    if prompts is not None:
        episodes = make_episodes(policy, engine, prompts, responses, seed=seed)
    assert episodes is not None
    if not episodes:
        return []
    learner = agent if isinstance(agent, OnPolicyAlgorithm) else None
    if critic is None:
        critic = agent.uses_critic if isinstance(agent, TokenAlgorithm) else True
    gamma = (1.0 if learner is None else learner.gamma) if gamma is None else gamma
    gae_lambda = (0.95 if learner is None else learner.gae_lambda) if gae_lambda is None else gae_lambda
    said = evaluated(policy, episodes)
    earned = _score(engine, episodes, said.log_probs)
    views = []
    for row, episode in enumerate(episodes):
        taken = slice(0, episode.response_length)
        rewards = earned.rewards[row, taken]
        values = said.values[row] if critic else None
        begun = decode_prompts(engine.tokenizer, [episode.prompt_ids.tolist()])[0]
        views.append(
            EpisodeView(
                prompt=begun if episode.prompt is None else episode.prompt,
                tokens=tuple(token_texts(engine.tokenizer, episode.response_ids.tolist())),
                others=said_between(engine.tokenizer, episode.input_ids, episode.action_mask),
                log_probs=said.log_probs[row],
                ref_log_probs=None if engine.token_reward.reference is None else earned.ref_log_probs[row, taken],
                values=values,
                rewards=rewards,
                entropy=said.entropy[row],
                dense=None if earned.dense is None else earned.dense[row, taken],
                score=float(earned.scores[row]),
                finish_reason=episode.finish_reason,
                gamma=gamma,
                gae_lambda=gae_lambda,
            ).with_returns()
        )
    return views


def make_episodes(
    policy: LMActorCriticPolicy, env: TokenVectorEnv, prompts: Prompts, responses: Responses | None, *, seed: int = 0
) -> list[Episode]:
    """Whole episodes of these prompts and responses, or of the policy's own responses.

    Raises:
        ValueError: a response is missing, empty or too long, goes on after its end, or a prompt is too long.
    """
    prompt_rows = resolve_prompts(prompts, env.tokenizer)
    check_room(prompt_rows, env.max_new_tokens, policy.parts.context_length)
    check_prompts(prompt_rows, max_prompt_length=env.max_prompt_length, vocab_size=env.vocab_size)
    if responses is None:
        written = generate(
            policy.model,
            prompt_rows,
            max_new_tokens=env.max_new_tokens,
            stop_token_ids=env.stop_token_ids,
            params=policy.sampling,
            generator=torch.Generator(policy.parts.device).manual_seed(seed),
        )
        rows = [generation.response_ids for generation in written]
    else:
        if len(responses) != len(prompt_rows):
            raise ValueError(f"expected a response to each of {len(prompt_rows)} prompts, got {len(responses)}")
        rows = _response_rows(env, prompt_rows, responses)
    stops = set(env.stop_token_ids)
    for number, row in enumerate(rows):
        _check_response(row, number, stops, env)
    return [
        Episode.of_response(prompt, row, "stop" if row[-1] in stops else "length", number=number, prompt=prompt.prompt)
        for number, (prompt, row) in enumerate(zip(prompt_rows, rows, strict=True))
    ]


def _score(env: TokenVectorEnv, episodes: Sequence[Episode], log_probs: list[np.ndarray]) -> EpisodeRewards:
    """The episodes' rewards; the running statistics of the score's shaping stay as they were."""
    shaping = env.token_reward.shaping
    before = shaping.state_dict()
    try:
        return env.token_reward(episodes, log_probs)
    finally:
        shaping.load_state_dict(before)


def _engine(agent: Any, env: TokenVectorEnv | TokenEnv | SB3VecEnv | None) -> TokenVectorEnv:
    if isinstance(env, TokenEnv):
        return env.engine
    if env is not None:
        return unwrap_env(env)
    own = agent.get_env() if isinstance(agent, OnPolicyAlgorithm) else None
    if own is None:
        raise ValueError("expected an environment to score the episodes, got none: give env=…")
    if isinstance(own.unwrapped, SB3VecEnv):
        return own.unwrapped.engine
    raise TypeError(
        f"expected an agent on an SB3VecEnv, got one on {type(own.unwrapped).__name__}: give the token environment "
        "itself as env=…"
    )


def _response_rows(env: TokenVectorEnv, prompts: Sequence[PromptIds], responses: Responses) -> list[list[int]]:
    """Token ids of responses: those given, or a text's with what closes it, unless it fills the longest length."""
    given: list[Any] = list(responses)
    texts = sum(isinstance(row, str) for row in given)
    if not texts:
        return [[int(token) for token in row] for row in given]
    if texts < len(given):
        raise TypeError(f"expected responses as texts or as token ids, got {texts} texts among {len(given)}")
    asked = ["" if prompt.prompt is None else prompt.prompt for prompt in prompts]
    encoded = encode_responses(env.tokenizer, given, prompts=asked)
    return [row[:-1] if len(row) == env.max_new_tokens + 1 else row for row in encoded]


def _check_response(row: Sequence[int], number: int, stops: set[int], env: TokenVectorEnv) -> None:
    if not 0 < len(row) <= env.max_new_tokens:
        raise ValueError(f"expected 1 to {env.max_new_tokens} tokens in response {number}, got {len(row)}")
    if any(not 0 <= token < env.vocab_size for token in row):
        raise ValueError(f"expected tokens in 0 … {env.vocab_size - 1} in response {number}, got {max(row)}")
    if any(token in stops for token in row[:-1]):
        raise ValueError(f"expected response {number} to end at its first stop token, got more after it")
