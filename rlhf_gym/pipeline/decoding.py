"""How a candidate is written: drawn, the likeliest token at each step, the best of n by r_φ, or by beam search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.generation import Generation, check_room, generate
from rlhf_gym.lm.sampling import SamplingParams
from rlhf_gym.lm.tokens import decode, encode_prompts, stop_token_ids
from rlhf_gym.pipeline.samples import Samples, proxy_scores
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.tasks import Task

Kind = Literal["sample", "greedy", "best-of", "beam"]


@dataclass(frozen=True)
class Decoding:
    """One way to write a response."""

    kind: Kind
    """Which."""
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
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    reward: LearnedReward | None = None,
    progress: str | None = None,
) -> Samples:
    """One response to each prompt; the same seed draws the same ones.

    Args:
        model: who writes.
        task: for its tokenizer and its longest response.
        prompts: B texts.
        decoding: how.
        seed: of the draws.
        temperature: for what is drawn.
        top_p: as above.
        reward: for the best of n.
        progress: label of a progress bar.
    """
    copies = decoding.n if decoding.kind == "best-of" else 1
    ids = [row for row in encode_prompts(task.tokenizer, prompts) for _ in range(copies)]
    stops = stop_token_ids(task.tokenizer, model)
    if decoding.kind == "beam":
        generations = beam_search(
            model, ids, beams=decoding.n, max_new_tokens=task.max_new_tokens, stop_token_ids=stops
        )
    else:
        generations = generate(
            model,
            ids,
            max_new_tokens=task.max_new_tokens,
            stop_token_ids=stops,
            params=SamplingParams(temperature=temperature, top_p=top_p),
            greedy_decoding=decoding.kind == "greedy",
            generator=torch.Generator(model.device).manual_seed(seed),
            num_slots=128,
            progress=progress,
        )
    repeated = [prompt for prompt in prompts for _ in range(copies)]
    samples = Samples(repeated, decode(task.tokenizer, [g.response_ids for g in generations]), generations)
    if decoding.kind != "best-of":
        return samples
    if reward is None:
        raise ValueError(f"expected a reward model to choose with for {decoding}, got none")
    best = proxy_scores(reward, task.tokenizer, samples).reshape(-1, copies).argmax(axis=1)  # (B,)
    return samples.take([copies * i + int(j) for i, j in enumerate(best)])


@dataclass(frozen=True)
class _Beam:
    """A response as far as it goes."""

    ids: tuple[int, ...] = ()
    """Its tokens."""
    log_probs: tuple[float, ...] = ()
    """Of each token."""

    @property
    def log_prob(self) -> float:
        """Of all of it."""
        return sum(self.log_probs)

    def then(self, token: int, log_prob: float) -> _Beam:
        """A token further."""
        return _Beam((*self.ids, token), (*self.log_probs, log_prob))


def beam_search(
    model: PreTrainedModel | Decoder,
    prompt_ids: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    num_slots: int = 64,
) -> list[Generation]:
    """The likeliest response to each prompt that a search with so many beams finds: highest Σ_t log π(y_t | x, y_<t).

    Each step keeps the `beams` likeliest unfinished responses of a prompt and stops once none of them is likelier than
    the best finished one, for it can only lose. There is no reward for length, so this leans to short responses.

    Args:
        model: the policy.
        prompt_ids: prompts as token ids.
        beams: how many responses are followed at once; 1 is greedy decoding.
        max_new_tokens: longest response, the stop token included.
        stop_token_ids: tokens that end a response.
        num_slots: rows in one forward.
    """
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    prompts = [list(ids) for ids in prompt_ids]
    check_room(prompts, max_new_tokens, decoder.parts.context_length)
    stops, results = frozenset(stop_token_ids), []
    at_once = max(1, num_slots // beams)
    decoder.invalidate()
    for first in range(0, len(prompts), at_once):
        chunk = prompts[first : first + at_once]
        live = [[_Beam()] for _ in chunk]
        done: list[_Beam | None] = [None for _ in chunk]
        for _ in range(max_new_tokens):
            log_probs = _next_log_probs(decoder, chunk, live, beams, max_new_tokens)  # (prompts, beams, V)
            for i, mine in enumerate(live):
                if mine:
                    live[i], done[i] = _extend(mine, done[i], log_probs[i], beams, stops)
            if not any(live):
                break
        for prompt, unfinished, finished in zip(chunk, live, done, strict=True):
            best = max([*unfinished, *([finished] if finished else [])], key=lambda beam: beam.log_prob)
            reason = "stop" if best is finished else "length"
            results.append(Generation(prompt, list(best.ids), reason, np.array(best.log_probs, dtype=np.float32)))
    return results


def _next_log_probs(
    decoder: Decoder, prompts: list[list[int]], live: list[list[_Beam]], beams: int, max_new_tokens: int
) -> np.ndarray:
    """log π of every next token after each beam, (prompts, beams, V); places without a beam hold nothing."""
    width = max(len(prompt) for prompt in prompts) + max_new_tokens
    ids = np.zeros((len(prompts) * beams, width), dtype=np.int64)  # (prompts·beams, L)
    lengths = np.zeros(len(ids), dtype=np.int64)
    for i, (prompt, mine) in enumerate(zip(prompts, live, strict=True)):
        for j, beam in enumerate(mine):
            row = [*prompt, *beam.ids]
            ids[i * beams + j, : len(row)] = row
            lengths[i * beams + j] = len(row)
    logits = decoder.logits(ids, lengths)  # (prompts·beams, V)
    return torch.log_softmax(logits.float(), dim=-1).cpu().numpy().reshape(len(prompts), beams, -1)


def _extend(
    live: list[_Beam], done: _Beam | None, log_probs: np.ndarray, beams: int, stops: frozenset[int]
) -> tuple[list[_Beam], _Beam | None]:
    """The likeliest continuations of a prompt's beams (beams, V), and the likeliest finished response so far."""
    total = np.array([beam.log_prob for beam in live])[:, None] + log_probs[: len(live)]  # (live, V)
    flat = total.ravel()
    wanted = min(len(flat), beams + len(live) * len(stops))  # so many, if every beam could also stop
    top = np.argpartition(-flat, wanted - 1)[:wanted]
    longer: list[_Beam] = []
    for place in top[np.argsort(-flat[top], kind="stable")].tolist():
        which, token = divmod(place, total.shape[1])
        beam = live[which].then(token, float(log_probs[which, token]))
        if done is not None and beam.log_prob <= done.log_prob:
            break
        if token in stops:
            done = beam
        elif len(longer) < beams:
            longer.append(beam)
    return longer, done
