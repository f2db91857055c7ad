"""Responses: drawn, scored, compared, kept as JSONL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.functional import distinct_n
from rlhf_gym.lm.chat import Prompt
from rlhf_gym.lm.generation import Generation, generate, token_log_probs
from rlhf_gym.lm.sampling import SamplingParams
from rlhf_gym.lm.tokens import ActionRows, decode, encode_prompts, pad_responses, stop_token_ids
from rlhf_gym.progress import Progress
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import EpisodeScorer, LearnedReward, RewardFunction, Scores, function_scores
from rlhf_gym.tasks import Task

Result = TypeVar("Result")
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
    """One response to each prompt; the same seed draws the same ones on as many ranks, each of which draws a share."""
    generations = ranks().spread(
        encode_prompts(task.tokenizer, prompts),
        partial(
            generate,
            model,
            max_new_tokens=task.max_new_tokens,
            stop_token_ids=stop_token_ids(task.tokenizer, model),
            params=SamplingParams(temperature=temperature),
            generator=torch.Generator(model.device).manual_seed(ranks().own_seed(seed)),
            num_slots=SLOTS,
            progress=progress,
        ),
        "responses",
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
    """The scores of r_φ and of its members, with all that they give at tokens. Of several ranks each scores a share.

    Args:
        reward: r_φ.
        tokenizer: the policy's.
        samples: B responses.
        progress: shows how many have been scored.
        at_once: responses that are scored between two steps of the progress; all by default.
    """
    score = EpisodeScorer(reward, tokenizer)

    def score_some(own: Samples) -> list[Tensor]:
        rows = own.rows()
        ids = rows.input_ids.to(reward.device)  # (b, L)
        said = score(ids, rows.action_mask, rows.lengths, prompts=own.prompts)
        return list(torch.cat([said.totals[None], said.member_totals]).T.cpu())  # b of (1 + k,)

    found = _in_steps(samples, score_some, "scores of responses", progress, at_once)
    table = torch.stack(found, dim=1).to(reward.device)  # (1 + k, B)
    return Scores(table[0], table[1:])


def _in_steps(
    samples: Samples, work: Callable[[Samples], list[Result]], what: str, progress: Progress | None, at_once: int | None
) -> list[Result]:
    """What the work makes of each response; each rank's share of them goes through it in steps of `at_once`."""

    def go(own: Sequence[int]) -> list[Result]:
        step = at_once or len(own)
        found: list[Result] = []
        with (progress or Progress(None)).over(len(own)) as shown:
            for i in range(0, len(own), step):
                part = samples.take(own[i : i + step])
                found += work(part)
                shown.advance(len(part))
        return found

    return ranks().spread(range(len(samples)), go, what)


def gold_scores(gold: RewardFunction, samples: Samples) -> np.ndarray:
    """The gold score of each response, (B,). Of several ranks each asks about a share."""
    return spread_gold_scores(gold, samples.prompts, samples.responses)


def spread_gold_scores(gold: RewardFunction, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
    """As `gold_scores`, of prompts and responses as texts."""

    def ask(own: Sequence[tuple[Prompt, str]]) -> list[float]:
        asked, written = map(list, zip(*own, strict=True))
        return function_scores(gold, asked, written, source="the gold reward").tolist()

    return np.array(ranks().spread(list(zip(prompts, responses, strict=True)), ask, "gold scores"), dtype=np.float64)


def log_probs(
    model: PreTrainedModel, samples: Samples, *, progress: Progress | None = None, at_once: int | None = None
) -> list[np.ndarray]:
    """log π of each response's tokens under the model's own distribution, (T_b,) each.

    Of several ranks each reads a share of the responses.

    Args:
        model: the policy π.
        samples: B responses.
        progress: shows how many have been read.
        at_once: responses that are read between two steps of the progress; all by default.
    """

    def read(own: Samples) -> list[np.ndarray]:
        rows = own.rows()
        table = token_log_probs(model, rows.input_ids, rows.lengths, mask=rows.action_mask)  # (b, L)
        return [row[acted].numpy() for row, acted in zip(table, rows.action_mask, strict=True)]

    return _in_steps(samples, read, "log-probabilities of responses", progress, at_once)


def distinct_2(responses: Sequence[str]) -> float:
    """Distinct pairs of neighbouring words over all pairs, among all the responses (Li et al. 2016, arXiv 1510.03055).

    It falls with the number of responses: compare sets of one size.
    """
    return distinct_n([response.split() for response in responses], 2)
