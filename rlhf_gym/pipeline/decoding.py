"""How a candidate is written: drawn, the likeliest token at each step, the best of n by r_φ, or by beam search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedModel

from rlhf_gym.lm.chat import Prompt
from rlhf_gym.lm.generation import Generation, check_room, token_log_probs
from rlhf_gym.lm.loading import context_length
from rlhf_gym.lm.tokens import encode_prompts, pad_responses, stop_token_ids
from rlhf_gym.pipeline.samples import Samples, draw, episodes_of, proxy_scores
from rlhf_gym.progress import Progress
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.tasks import Task

Kind = Literal["sample", "greedy", "best-of", "beam"]


@dataclass(frozen=True)
class Decoding:
    """One way to write a response."""

    kind: Kind
    """How a response is chosen."""
    n: int = 1
    """Responses the best is taken of, or beams."""

    @classmethod
    def parse(cls, text: str) -> Decoding:
        """From "sample", "greedy", "best-of-4" or "beam-4", with any number of at least 2.

        Raises:
            ValueError: none of these.
        """
        if text in ("sample", "greedy"):
            return cls("sample" if text == "sample" else "greedy")
        found = re.fullmatch(r"(best-of|beam)-(\d+)", text)
        if found is None or int(found[2]) < 2:
            raise ValueError(f'expected a decoding "sample", "greedy", "best-of-4" or "beam-4", got {text!r}')
        return cls("best-of" if found[1] == "best-of" else "beam", int(found[2]))

    @property
    def draws(self) -> bool:
        """Whether chance decides, and temperature and top-p with it; otherwise a prompt has one such response."""
        return self.kind in ("sample", "best-of")

    def __str__(self) -> str:
        return self.kind if self.n == 1 else f"{self.kind}-{self.n}"


def write_responses(
    model: PreTrainedModel,
    task: Task,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    reward: LearnedReward | None = None,
    progress: Progress | None = None,
) -> Samples:
    """One response to each prompt; the same seed draws the same ones on as many ranks, each of which writes a share.

    Args:
        model: who writes.
        task: for its tokenizer and its longest response.
        prompts: B texts.
        decoding: how.
        seed: of the draws.
        temperature: for what is drawn.
        top_p: as above.
        reward: for the best of n.
        progress: shows how many responses have ended.
    """
    copies = decoding.n if decoding.kind == "best-of" else 1
    repeated = [prompt for prompt in prompts for _ in range(copies)]
    if decoding.kind == "beam":
        search = partial(
            beam_search,
            model,
            beams=decoding.n,
            max_new_tokens=task.max_new_tokens,
            stop_token_ids=stop_token_ids(task.tokenizer, model),
            progress=progress,
        )
        generations = ranks().spread(encode_prompts(task.tokenizer, prompts), search, "responses")
        return Samples.of(prompts, episodes_of(prompts, generations), task)
    samples = draw(
        model,
        task,
        repeated,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        greedy_decoding=decoding.kind == "greedy",
        progress=progress,
    )
    if decoding.kind != "best-of":
        return samples
    if reward is None:
        raise ValueError(f"expected a reward model to choose with for {decoding}, got none")
    best = proxy_scores(reward, task.tokenizer, samples).reshape(-1, copies).argmax(axis=1)  # (B,)
    return samples.take([copies * i + int(j) for i, j in enumerate(best)])


def beam_search(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    num_slots: int = 64,
    progress: Progress | None = None,
) -> list[Generation]:
    """The likeliest response to each prompt that Transformers' beam search finds: highest Σ_t log π(y_t | x, y_<t).

    There is no reward for length, so this leans to short responses.

    Args:
        model: the policy.
        prompt_ids: prompts as token ids.
        beams: how many responses are followed at once; 1 is greedy decoding.
        max_new_tokens: longest response, the stop token included.
        stop_token_ids: tokens that end a response.
        num_slots: rows in one forward.
        progress: shows how many responses have been found.
    """
    prompts = [list(ids) for ids in prompt_ids]
    check_room(prompts, max_new_tokens, context_length(model))
    config = GenerationConfig(
        num_beams=beams,
        length_penalty=0.0,  # a response's score is the sum over its tokens
        do_sample=False,
        early_stopping=False,
        repetition_penalty=1.0,  # what is not said here would be taken from the model's own settings
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_token_ids),
        pad_token_id=min(stop_token_ids, default=0),
    )
    responses: dict[int, list[int]] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    at_once = max(1, num_slots // beams)
    groups = [list(group) for _, group in groupby(by_length, key=lambda i: len(prompts[i]))]  # these need no padding
    with (progress or Progress(None)).over(len(prompts)) as shown:
        for chunk in (rows[i : i + at_once] for rows in groups for i in range(0, len(rows), at_once)):
            ids = torch.tensor([prompts[i] for i in chunk], device=model.device)  # (b, P)
            found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)  # type: ignore[operator]  # (b, P + T)
            for i, row in zip(chunk, found[:, ids.shape[1] :].tolist(), strict=True):
                end = next((t for t, token in enumerate(row) if token in stop_token_ids), len(row) - 1)
                responses[i] = row[: end + 1]
            shown.advance(len(chunk))
    found_ids = [responses[i] for i in range(len(prompts))]
    padded = pad_responses(prompts, found_ids)
    table = token_log_probs(model, padded.input_ids, padded.lengths, mask=padded.action_mask)  # (B, L)
    return [
        Generation(prompt, ids, "stop" if ids[-1] in stop_token_ids else "length", scored[acted].numpy())
        for prompt, ids, scored, acted in zip(prompts, found_ids, table, padded.action_mask, strict=True)
    ]
