"""What the monitor measures: a rollout's episodes, of a token agent or a stock one, and one number a quantity.

Each name is defined in docs/metrics.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from transformers import PreTrainedTokenizerBase

from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.envs import Episode, SB3VecEnv, TokenEnv, TokenVectorEnv
from rlhf_gym.envs.episode import at_actions, stack_rows
from rlhf_gym.functional.text_statistics import (
    TokenShare,
    distinct_n,
    longest_repeat,
    repetition,
    spearman,
    token_shares,
)
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.tokens import encode_prompts, encode_responses, pad_responses
from rlhf_gym.preferences import Demonstration
from rlhf_gym.rewards import EpisodeScorer, LearnedReward

# -- the episodes ------------------------------------------------------------------------------------------------------


class ScoredEpisodes(NamedTuple):
    """A rollout's episodes, E of them, and what is known of each."""

    episodes: Sequence[Episode]
    """The episodes, in the order they were started."""
    scores: np.ndarray
    """The shaped scores of r_φ, with the sums of what they got at tokens, (E,)."""
    log_probs: Sequence[np.ndarray] | None
    """log π of each one's actions, (T_e,) each; None where the policy was not attached."""
    ref_log_probs: Sequence[np.ndarray] | None
    """log π_ref of the same actions, by the π_ref that learning began with; None without a reference."""
    member_scores: np.ndarray | None
    """The scores that each of k members gives them, (k, E); None where they were not asked."""
    explained_variance: float | None
    """Share of the variance of returns that the critic explains; None without a critic."""


def engines_of(env: VecEnv) -> list[TokenVectorEnv]:
    """The token environments that an agent steps.

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


def last_rollout(agent: TokenAlgorithm) -> ScoredEpisodes | None:
    """The rollout that a token agent has just played and scored; None if it plays none (DPO).

    π_ref is the one that learning began with, also where the agent's own follows the policy. The reward model was
    trained on texts near that one, and a policy may leave them together with its reference.
    """
    rollout = agent.rollout
    if rollout is None or agent.buffer is None:
        return None
    ref = rollout.first_ref_log_probs
    if ref is None and agent.engine.token_reward.reference is not None:
        padded = zip(rollout.rewards.ref_log_probs, rollout.episodes, strict=True)
        ref = [row[: episode.response_length] for row, episode in padded]
    return ScoredEpisodes(
        rollout.episodes,
        rollout.rewards.totals,
        rollout.log_probs,
        ref,
        rollout.rewards.member_scores,
        agent.buffer.explained_variance() if agent.uses_critic else None,
    )


class EpisodeCollector:
    """Collects the episodes that end in a stock agent's environments.

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
        """Add the episodes that the last step of each environment has ended."""
        for engine in engines:
            last = engine.last_step
            self._episodes += last.episodes
            dense = 0.0 if last.dense is None else last.dense.sum(axis=1, dtype=np.float64)
            self._scores += (last.scores + dense).tolist()
            self._log_ratios += last.episode_log_ratios
            self._members += [] if last.member_scores is None else list(last.member_scores.T)
            self._attached = self._attached and engine.attached is not None

    def add_rollout(self, agent: BaseAlgorithm) -> None:
        """Add the variance of a rollout's returns that the critic explains, where there is one."""
        if isinstance(agent, OnPolicyAlgorithm):
            buffer = agent.rollout_buffer
            self._explained.append(float(explained_variance(buffer.values.flatten(), buffer.returns.flatten())))

    def scored_episodes(self, engine: TokenVectorEnv) -> ScoredEpisodes:
        """All that were collected. π_ref reads the whole episodes once, in batches."""
        reference = engine.token_reward.reference
        ref: list[np.ndarray] | None = None
        own: list[np.ndarray] | None = None
        if reference is not None:
            rows = stack_rows(self._episodes)
            table = token_log_probs(reference, rows.input_ids, rows.lengths, mask=rows.action_mask)  # (E, L)
            ref = at_actions(table, self._episodes)
            if self._attached:
                own = [log_ratio + r for log_ratio, r in zip(self._log_ratios, ref, strict=True)]
        every_member = len(self._members) == len(self._episodes)
        known = [value for value in self._explained if np.isfinite(value)]
        return ScoredEpisodes(
            self._episodes,
            np.array(self._scores, dtype=np.float64),
            own,
            ref,
            np.stack(self._members, axis=1) if every_member else None,
            float(np.mean(known)) if known else None,
        )


def member_scores(reward: LearnedReward, engine: TokenVectorEnv, episodes: Sequence[Episode]) -> np.ndarray:
    """The score that each of a reward's k members gives an environment's episodes, (k, E)."""
    scorer = EpisodeScorer(reward, engine.tokenizer, vocab_size=engine.vocab_size, stop_ids=engine.stop_token_ids)
    return scorer(*stack_rows(episodes), prompts=[episode.asked for episode in episodes]).member_totals.cpu().numpy()


# -- the quantities ----------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A measured quantity."""

    value: float
    """The measured value."""
    error: float = 0.0
    """Its standard error over episodes; 0 where it is no mean over them."""


def measure(
    seen: ScoredEpisodes, responses: Sequence[str], patterns: Mapping[str, re.Pattern[str]]
) -> dict[str, Figure]:
    """All that can be said of a rollout; what is not defined there (a correlation with a constant) is left out.

    Args:
        seen: the rollout.
        responses: the episodes' responses as texts, special tokens left out, E of them.
        patterns: regular expressions by name; the share of responses in which each is found is measured.
    """
    lengths = np.array([e.response_length for e in seen.episodes])  # (E,)
    rows = [e.response_ids.tolist() for e in seen.episodes]
    found = {
        "score": mean(seen.scores),
        "score_std": Figure(float(seen.scores.std())),
        "response_length": mean(lengths),
        "missing_eos": share([e.finish_reason == "length" for e in seen.episodes]),
        "score_length_correlation": _correlation(seen.scores, lengths),
        "distinct_1": Figure(distinct_n(rows, 1)),
        "distinct_2": Figure(distinct_n(rows, 2)),
        "distinct_responses": Figure(len({tuple(row) for row in rows}) / len(rows)),
        "repetition": mean([repetition(row, 2) for row in rows]),
        "longest_repeat": mean([longest_repeat(row) for row in rows]),
        **{f"pattern/{name}": share([bool(p.search(text)) for text in responses]) for name, p in patterns.items()},
    }
    if seen.log_probs is not None:
        found["entropy"] = ratio(-_sums(seen.log_probs), lengths)
    if seen.ref_log_probs is not None:
        surprise = ratio(-_sums(seen.ref_log_probs), lengths)
        value = perplexity(surprise.value)
        found["ref_perplexity"] = Figure(value, value * surprise.error)
    if seen.log_probs is not None and seen.ref_log_probs is not None:
        kl = _sums(seen.log_probs) - _sums(seen.ref_log_probs)  # (E,)
        found["kl"] = mean(kl)
        found["kl_per_token"] = ratio(kl, lengths)
    if seen.member_scores is not None and len(seen.member_scores) > 1:
        found["disagreement"] = mean(seen.member_scores.std(axis=0))
    if seen.explained_variance is not None:
        found["explained_variance"] = Figure(seen.explained_variance)
    return {name: figure for name, figure in found.items() if math.isfinite(figure.value)}


def kl_tokens(seen: ScoredEpisodes) -> list[TokenShare]:
    """Each token's part of the rollout's Σ log π − log π_ref, the largest part first; empty without a KL."""
    if seen.log_probs is None or seen.ref_log_probs is None:
        return []
    ratios = [own - ref for own, ref in zip(seen.log_probs, seen.ref_log_probs, strict=True)]
    return token_shares(np.concatenate([e.response_ids for e in seen.episodes]), np.concatenate(ratios))


class HeldOutTexts:
    """Texts that the policy is not trained on, as tokens: their perplexity shows what the policy forgets.

    Args:
        texts: whole texts, read from their second token on, or demonstrations, whose responses are read, end included.
        tokenizer: the policy's.
        max_length: tokens that a model has room for; longer texts are cut. None for no limit.

    Raises:
        ValueError: no text has two tokens.
    """

    def __init__(
        self, texts: Sequence[str] | Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> None:
        prompts: list[list[int]] = []
        continuations: list[list[int]] = []
        for text in texts:
            asked, said = (text.prompt, [text.response]) if isinstance(text, Demonstration) else (text, [])
            prompt = encode_prompts(tokenizer, [asked])[0]
            tail = encode_responses(tokenizer, said, prompts=[asked])[0] if said else []
            start = len(prompt) if tail else 1
            row = [*prompt, *tail][:max_length]
            if len(row) > start:  # else nothing is left to be read
                prompts.append(row[:start])
                continuations.append(row[start:])
        if not prompts:
            raise ValueError(f"expected held-out texts of at least two tokens, got {len(texts)} texts without")
        self._rows = pad_responses(prompts, continuations)
        self.num_tokens = int(self._rows.action_mask.sum())

    def perplexity(self, model: LMParts) -> float:
        """exp of the mean of −log p over all tokens, under the model's own distribution; inf beyond 709 nats."""
        read = self._rows.action_mask
        total = token_log_probs(model, self._rows.input_ids, self._rows.lengths, mask=read).double().sum()
        return perplexity(-float(total) / self.num_tokens)


# -- means and their errors --------------------------------------------------------------------------------------------


def perplexity(surprise: float) -> float:
    """exp of the mean −log p of a token, in nats; inf where that is more than a float holds (beyond 709 nats)."""
    try:
        return math.exp(surprise)
    except OverflowError:
        return math.inf


def mean(values: np.ndarray | Sequence[float]) -> Figure:
    """The mean of (E,) values."""
    x = np.asarray(values, dtype=np.float64)  # (E,)
    return Figure(float(x.mean()), float(x.std() / math.sqrt(len(x))))


def share(hits: Sequence[bool]) -> Figure:
    """The share of hits. Its error is that of the share with two hits and two misses more (Agresti and Coull 1998), so
    that a share of 0 is not taken for certain."""
    n = len(hits)
    middle = (sum(hits) + 2) / (n + 4)
    return Figure(sum(hits) / n, math.sqrt(middle * (1 - middle) / (n + 4)))


def ratio(sums: np.ndarray, counts: np.ndarray) -> Figure:
    """Σ sums / Σ counts over episodes, (E,) each: a mean over tokens. Its error takes episodes as the sample (the
    linearised variance of a ratio), since the tokens of one response are not independent."""
    value = float(sums.sum() / counts.sum())
    return Figure(value, float(np.sqrt(((sums - value * counts) ** 2).sum()) / counts.sum()))


def _correlation(scores: np.ndarray, lengths: np.ndarray) -> Figure:
    """Spearman's, with the error of a correlation of normals, (1 − r²)/√(E − 1)."""
    r = spearman(scores, lengths)
    return Figure(r, (1 - r * r) / math.sqrt(max(1, len(scores) - 1)))


def _sums(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of each row, (E,)."""
    return np.array([row.sum(dtype=np.float64) for row in rows])
