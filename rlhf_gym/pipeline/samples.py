"""Responses: drawn, scored, compared, kept as JSONL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.envs import Episode, TokenVectorEnv, candidates_from_episodes, turns_of
from rlhf_gym.envs.episode import stack_rows
from rlhf_gym.functional import distinct_n
from rlhf_gym.lm.chat import Prompt, Response, as_prompt, as_response, response_text, to_json
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.generation import Generation, generate, token_log_probs
from rlhf_gym.lm.memory import free_memory, slots_that_fit
from rlhf_gym.lm.sampling import PLAIN, SamplingParams, behaviour_logits, greedy, sample
from rlhf_gym.lm.tokens import ActionRows, decode, encode_prompts, stop_token_ids
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
    responses: list[Response]
    """The responses, special tokens left out: texts, or dialogues where the task has another side."""
    episodes: list[Episode]
    """The responses as tokens behind their prompts."""

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, prompts: Sequence[Prompt], episodes: Sequence[Episode], task: Task) -> Samples:
        """What was said in these episodes, one behind each prompt."""
        if task.others is None:
            texts = decode(task.tokenizer, [episode.response_ids.tolist() for episode in episodes])
            return cls(list(prompts), list(texts), list(episodes))
        candidates = candidates_from_episodes(episodes, task.tokenizer)
        return cls(list(prompts), [candidate.response for candidate in candidates], list(episodes))

    def to_json(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "prompts": [to_json(prompt) for prompt in self.prompts],
            "responses": [to_json(response) for response in self.responses],
            "episodes": [
                [
                    e.input_ids.tolist(),
                    e.action_mask.astype(int).tolist(),
                    e.finish_reason,
                    None if e.turn_rewards is None else e.turn_rewards.tolist(),
                ]
                for e in self.episodes
            ],
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Samples:
        """What `to_json` gave."""
        prompts = [as_prompt(prompt) for prompt in saved["prompts"]]
        responses = [as_response(response) for response in saved["responses"]]
        episodes = []
        rows = zip(prompts, responses, saved["episodes"], strict=True)
        for number, (prompt, response, (ids, acted, reason, *earned)) in enumerate(rows):
            apart = isinstance(prompt, str) or isinstance(response, str)
            messages = None if apart else (*prompt, *response)
            tokens = np.array(ids, dtype=np.int64)  # (L,)
            paid = next((np.array(row, dtype=np.float32) for row in earned if row is not None), None)  # (T,)
            episodes.append(Episode(number, 0, tokens, np.array(acted, dtype=bool), reason, prompt, messages, paid))
        return cls(prompts, responses, episodes)

    def take(self, indices: Sequence[int]) -> Samples:
        """The samples at these places."""
        return Samples(
            [self.prompts[i] for i in indices],
            [self.responses[i] for i in indices],
            [self.episodes[i] for i in indices],
        )

    @property
    def lengths(self) -> np.ndarray:
        """Actions of each response, its end included, (B,)."""
        return np.array([episode.response_length for episode in self.episodes])

    @property
    def earned(self) -> np.ndarray | None:
        """What the turns of each earned, summed, (B,); None where there are no turns."""
        rows = [episode.turn_rewards for episode in self.episodes if episode.turn_rewards is not None]
        return np.array([row.sum(dtype=np.float64) for row in rows]) if rows else None

    @property
    def stopped(self) -> np.ndarray:
        """Whether each came to its end by itself, (B,)."""
        return np.array([episode.finish_reason == "stop" for episode in self.episodes])

    def rows(self) -> ActionRows:
        """Prompts and responses as padded rows of tokens."""
        return stack_rows(self.episodes)


def draw(
    model: PreTrainedModel,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy_decoding: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """One response to each prompt; the same seed draws the same ones on as many ranks, each of which draws a share.

    In a task of several turns a response is a dialogue.

    Args:
        model: who writes.
        task: for its tokenizer, its longest response, and who answers.
        prompts: B prompts.
        seed: of the draws, and of what others say.
        temperature, top_p: of the sampling.
        greedy_decoding: the likeliest token instead of a draw.
        progress: shows how many responses have ended.
    """
    write = partial(
        write_episodes,
        model,
        task,
        seed=ranks().own_seed(seed),
        params=SamplingParams(temperature=temperature, top_p=top_p),
        greedy_decoding=greedy_decoding,
        progress=progress,
    )
    return Samples.of(prompts, ranks().spread(list(prompts), write, "responses"), task)


def write_episodes(
    model: PreTrainedModel,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    params: SamplingParams = PLAIN,
    greedy_decoding: bool = False,
    progress: Progress | None = None,
) -> list[Episode]:
    """An episode behind each prompt, in their order. Each rank plays all that it is given; arguments as of `draw`."""
    generator = torch.Generator(model.device).manual_seed(seed)
    if task.others is not None:
        return _dialogues(model, task, prompts, params, greedy_decoding, seed, generator, progress)
    generations = generate(
        model,
        encode_prompts(task.tokenizer, prompts),
        max_new_tokens=task.max_new_tokens,
        stop_token_ids=stop_token_ids(task.tokenizer, model),
        params=params,
        greedy_decoding=greedy_decoding,
        generator=generator,
        num_slots=SLOTS,
        progress=progress,
    )
    return episodes_of(prompts, generations)


def episodes_of(prompts: Sequence[Prompt], generations: Sequence[Generation]) -> list[Episode]:
    """What was generated for these prompts, as episodes of one turn."""
    return [
        Episode.of_response(g.prompt_ids, g.response_ids, g.finish_reason, number=i, prompt=prompt)
        for i, (prompt, g) in enumerate(zip(prompts, generations, strict=True))
    ]


@torch.no_grad()
def _dialogues(
    model: PreTrainedModel,
    task: Task,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    greedy_decoding: bool,
    seed: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> list[Episode]:
    """A whole dialogue behind each prompt, in the prompts' order."""
    decoder = Decoder(model)
    parts = decoder.parts
    slots = slots_that_fit(
        min(SLOTS, len(prompts)), width=task.max_length, cached=parts.sizes.cached, free=free_memory(parts.device)
    )
    env = TokenVectorEnv(
        slots,
        prompts=list(dict.fromkeys(prompts)),
        tokenizer=task.tokenizer,
        reference=None,
        reward=lambda prompts, responses: np.zeros(len(prompts)),
        turns=turns_of(task),
        max_new_tokens=task.max_new_tokens,
        max_prompt_length=task.max_prompt_length,
        kl_coef=0.0,
        reward_timing="deferred",
        stop_token_ids=stop_token_ids(task.tokenizer, model),
        vocab_size=parts.vocab_size,
    )
    observation, _ = env.reset(seed=seed, options={"prompts": list(prompts)})
    episodes: list[Episode] = []
    with (progress or Progress(None)).over(len(prompts)) as shown:
        while not env.parked.all():
            lengths = observation["attention_mask"].sum(axis=1, dtype=np.int64)  # (N,)
            logits = behaviour_logits(decoder.logits(observation["input_ids"], lengths), params)  # (N, V)
            tokens, _ = greedy(logits) if greedy_decoding else sample(logits, generator=generator)  # (N,)
            observation, *_ = env.step(tokens)
            episodes += env.last_step.episodes
            shown.update(len(episodes))
    return sorted(episodes, key=lambda episode: episode.number)


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
        said = score(ids, rows.action_mask, rows.lengths, prompts=[episode.asked for episode in own.episodes])
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


def spread_gold_scores(gold: RewardFunction, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
    """As `gold_scores`, of prompts and responses as texts."""

    def ask(own: Sequence[tuple[Prompt, Response]]) -> list[float]:
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


def distinct_2(responses: Sequence[Response]) -> float:
    """Distinct pairs of neighbouring words over all pairs, among all the responses (Li et al. 2016, arXiv 1510.03055).

    It falls with the number of responses: compare sets of one size.
    """
    return distinct_n([response_text(response).split() for response in responses], 2)
