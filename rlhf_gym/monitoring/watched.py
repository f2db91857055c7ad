"""Where the monitor's episodes come from: the rollout of a token agent, or the environments a stock agent steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance as stock_explained_variance
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.logs import explained_variance
from rlhf_gym.envs import Episode, SB3VecEnv, TokenEnv, TokenVectorEnv
from rlhf_gym.envs.episode import at_actions, stack_rows
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.monitoring.measures import Watched
from rlhf_gym.rewards import EpisodeScorer, LearnedReward


def engines_of(env: VecEnv) -> list[TokenVectorEnv]:
    """The token environments an agent steps.

    Raises:
        TypeError: it steps none, or in other processes.
    """
    inner = env.unwrapped
    if isinstance(inner, SB3VecEnv):
        return [inner.engine]
    if isinstance(inner, DummyVecEnv):
        singles = [single.unwrapped for single in inner.envs]
        if all(isinstance(single, TokenEnv) for single in singles):
            return [single.engine for single in singles if isinstance(single, TokenEnv)]
    raise TypeError(f"expected an SB3VecEnv, or a DummyVecEnv of token environments, got {type(inner).__name__}")


def rollout_of(agent: TokenAlgorithm) -> Watched | None:
    """The rollout that one of our agents has just played and scored; None if it plays none (DPO).

    π_ref is the one that learning began with, also where the agent's own follows the policy: r_φ knows texts of the
    former, and a policy that runs away together with its reference has left them all the same.
    """
    buffer, earned = agent.buffer, agent.earned
    if buffer is None or earned is None:
        return None
    lengths = buffer.response_lengths.tolist()
    ref_log_probs: Sequence[np.ndarray] | None = None
    if agent.moving_reference is not None:
        ref_log_probs = agent.moving_reference.start_log_probs
    elif agent.engine.token_reward.reference is not None:
        ref_log_probs = cut(buffer.ref_log_probs, lengths)
    return Watched(
        buffer.episodes,
        earned.scores,
        cut(buffer.log_probs, lengths),
        ref_log_probs,
        earned.member_scores,
        explained_variance(buffer) if agent.uses_critic else None,
    )


class Finished:
    """The episodes that a stock agent's environments have ended, kept until there are enough to speak of.

    The reward must be known at the end of an episode (`reward_timing="step"`), as stock agents need it anyway.
    """

    def __init__(self) -> None:
        self._episodes: list[Episode] = []
        self._scores: list[float] = []
        self._log_ratios: list[np.ndarray] = []  # (T_e,) each
        self._members: list[np.ndarray] = []  # (members,) each
        self._explained: list[float] = []
        self._attached = True

    def __len__(self) -> int:
        return len(self._episodes)

    def add(self, engines: Sequence[TokenVectorEnv]) -> None:
        """What the last step of each has ended."""
        for engine in engines:
            last = engine.last_step
            self._episodes += last.episodes
            self._scores += last.scores.tolist()
            self._log_ratios += last.episode_log_ratios
            self._members += [] if last.member_scores is None else list(last.member_scores.T)
            self._attached = self._attached and engine.attached is not None

    def add_rollout(self, agent: BaseAlgorithm) -> None:
        """How well the critic foresaw a rollout's returns, where there is one."""
        if isinstance(agent, OnPolicyAlgorithm):
            buffer = agent.rollout_buffer
            self._explained.append(float(stock_explained_variance(buffer.values.flatten(), buffer.returns.flatten())))

    def watched(self, engine: TokenVectorEnv) -> Watched:
        """All of them. π_ref reads the whole episodes once, in batches."""
        ref = self._ref_log_probs(engine)
        own = None
        if self._attached and ref is not None:
            own = [ratio + r for ratio, r in zip(self._log_ratios, ref, strict=True)]
        whole = len(self._members) == len(self._episodes)
        known = [value for value in self._explained if np.isfinite(value)]
        return Watched(
            self._episodes,
            np.array(self._scores, dtype=np.float64),
            own,
            ref,
            np.stack(self._members, axis=1) if whole else None,
            float(np.mean(known)) if known else None,
        )

    def _ref_log_probs(self, engine: TokenVectorEnv) -> list[np.ndarray] | None:
        reference = engine.token_reward.reference
        if reference is None:
            return None
        rows = stack_rows(self._episodes)
        table = token_log_probs(reference, rows.input_ids, rows.lengths, mask=rows.action_mask)  # (E, L)
        return at_actions(table, self._episodes)


def cut(table: Tensor, lengths: Sequence[int]) -> list[np.ndarray]:
    """The real part of each row of (E, T)."""
    return [row[:n] for row, n in zip(table.numpy(), lengths, strict=True)]


def member_scores(reward: LearnedReward, engine: TokenVectorEnv, episodes: Sequence[Episode]) -> np.ndarray:
    """The score that each of a reward's k members gives an environment's episodes, (k, E)."""
    scorer = EpisodeScorer(reward, engine.tokenizer, vocab_size=engine.vocab_size, stop_ids=engine.stop_token_ids)
    return scorer(*stack_rows(episodes)).members.cpu().numpy()
