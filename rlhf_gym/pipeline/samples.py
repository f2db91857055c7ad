"""Responses: drawn, scored, compared, kept as JSONL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.functional import distinct_n
from rlhf_gym.lm.chat import Prompt
from rlhf_gym.lm.generation import Generation, generate, token_log_probs
from rlhf_gym.lm.sampling import SamplingParams
from rlhf_gym.lm.tokens import ActionRows, decode, encode_prompts, pad_responses, stop_token_ids
from rlhf_gym.progress import Progress
from rlhf_gym.rewards import EpisodeScorer, LearnedReward, RewardFunction, Scores, function_scores
from rlhf_gym.tasks import Task

SLOTS = 128
"""Responses that are drawn at once, where there is memory for so many."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Responses to prompts, B of them."""

    prompts: list[Prompt]
    """The prompts."""
    responses: list[str]
    """The responses as texts, special tokens left out."""
    generations: list[Generation]
    """The responses as tokens."""

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, indices: Sequence[int]) -> Samples:
        """The samples at these places."""
        return Samples(
            [self.prompts[i] for i in indices],
            [self.responses[i] for i in indices],
            [self.generations[i] for i in indices],
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, its end included, (B,)."""
        return np.array([len(g.response_ids) for g in self.generations])

    @property
    def stopped(self) -> np.ndarray:
        """Whether each came to its end by itself, (B,)."""
        return np.array([g.finish_reason == "stop" for g in self.generations])

    def rows(self) -> ActionRows:
        """Prompts and responses as padded rows of tokens."""
        return pad_responses([g.prompt_ids for g in self.generations], [g.response_ids for g in self.generations])


def draw(
    model: PreTrainedModel,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> Samples:
    """One response to each prompt; the same seed draws the same ones."""
    generations = generate(
        model,
        encode_prompts(task.tokenizer, prompts),
        max_new_tokens=task.max_new_tokens,
        stop_token_ids=stop_token_ids(task.tokenizer, model),
        params=SamplingParams(temperature=temperature),
        generator=torch.Generator(model.device).manual_seed(seed),
        num_slots=SLOTS,
        progress=progress,
    )
    return Samples(list(prompts), decode(task.tokenizer, [g.response_ids for g in generations]), generations)


def proxy_scores(
    reward: LearnedReward,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    progress: Progress | None = None,
    at_once: int | None = None,
) -> np.ndarray:
    """The normalised score of each response by r_φ, (B,). Arguments as `score_samples`."""
    found = score_samples(reward, tokenizer, samples, progress=progress, at_once=at_once)
    return found.totals.cpu().numpy().astype(np.float64)


def score_samples(
    reward: LearnedReward,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    progress: Progress | None = None,
    at_once: int | None = None,
) -> Scores:
    """The scores of r_φ and of its members, with all that they give at tokens.

    Args:
        reward: r_φ.
        tokenizer: the policy's.
        samples: B responses.
        progress: shows how many have been scored.
        at_once: responses that are scored between two steps of the progress; all by default.
    """
    score = EpisodeScorer(reward, tokenizer)
    step = at_once or max(1, len(samples))
    found = []
    with (progress or Progress(None)).over(len(samples)) as shown:
        for i in range(0, len(samples), step):
            part = samples.take(range(i, min(i + step, len(samples))))
            rows = part.rows()
            ids = rows.input_ids.to(reward.device)  # (b, L)
            found.append(score(ids, rows.action_mask, rows.lengths, prompts=part.prompts))
            shown.advance(len(part))
    totals = torch.cat([part.totals for part in found])  # (B,)
    return Scores(totals, torch.cat([part.member_totals for part in found], dim=1))


def gold_scores(gold: RewardFunction, samples: Samples) -> np.ndarray:
    """The gold score of each response, (B,)."""
    return function_scores(gold, samples.prompts, samples.responses, source="the gold reward").astype(np.float64)


def log_probs(
    model: PreTrainedModel, samples: Samples, *, progress: Progress | None = None, at_once: int | None = None
) -> list[np.ndarray]:
    """log π of each response's tokens under the model's own distribution, (T_b,) each.

    Args:
        model: the policy π.
        samples: B responses.
        progress: shows how many have been read.
        at_once: responses that are read between two steps of the progress; all by default.
    """
    step = at_once or max(1, len(samples))
    found: list[np.ndarray] = []
    with (progress or Progress(None)).over(len(samples)) as shown:
        for i in range(0, len(samples), step):
            part = samples.take(range(i, min(i + step, len(samples))))
            rows = part.rows()
            table = token_log_probs(model, rows.input_ids, rows.lengths, mask=rows.action_mask)  # (b, L)
            found += [row[acted].numpy() for row, acted in zip(table, rows.action_mask, strict=True)]
            shown.advance(len(part))
    return found


def distinct_2(responses: Sequence[str]) -> float:
    """Distinct pairs of neighbouring words over all pairs, among all the responses (Li et al. 2016, arXiv 1510.03055).

    It falls with the number of responses: compare sets of one size.
    """
    return distinct_n([response.split() for response in responses], 2)
