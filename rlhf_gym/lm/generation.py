"""Drawing responses and scoring them, through the same decoder the environment steps with.

Slots are refilled as soon as a response ends, so short responses never wait for the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.memory import free_memory, slots_that_fit
from rlhf_gym.lm.parts import LMParts, in_chunks
from rlhf_gym.lm.sampling import SamplingParams, behaviour_logits, greedy, sample, token_log_prob
from rlhf_gym.lm.split import LowerStates
from rlhf_gym.progress import Progress


class Generation(NamedTuple):
    """One response that was drawn for a prompt."""

    prompt_ids: list[int]
    """Tokens of the prompt."""
    response_ids: list[int]
    """Tokens drawn, the stop token included where there is one."""
    finish_reason: str
    """Why the response ended, `"stop"` or `"length"`."""
    log_probs: np.ndarray
    """Log-probability of each drawn token under the behaviour distribution, shape (T,)."""


def generate(
    model: PreTrainedModel | LMParts | Decoder,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    params: SamplingParams | None = None,
    greedy_decoding: bool = False,
    num_slots: int = 64,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> list[Generation]:
    """Draw one response to each prompt, in the prompts' order.

    Args:
        prompt_ids: B prompts as token ids; repeat a prompt to have several responses to it.
        max_new_tokens: longest response, the stop token included.
        stop_token_ids: tokens that end a response.
        params: temperature and masks; plain sampling by default.
        greedy_decoding: the likeliest token instead of a draw.
        num_slots: episodes in progress at once, at most: as many as there is memory for.
        generator: source of randomness, on the model's device.
        progress: shows how many responses have ended.

    Raises:
        ValueError: an empty prompt, or a prompt that leaves no room in the model's context.
    """
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    params = params or SamplingParams()
    prompts = [list(ids) for ids in prompt_ids]
    check_room(prompts, max_new_tokens, decoder.parts.context_length)
    if not prompts:
        return []
    width = max(len(ids) for ids in prompts) + max_new_tokens
    slots = slots_that_fit(
        min(num_slots, len(prompts)),
        width=width,
        cached=decoder.parts.sizes.cached,
        free=free_memory(decoder.parts.device),
    )
    state = _Slots(prompts, slots, width)
    results: list[Generation | None] = [None] * len(prompts)
    stops = frozenset(stop_token_ids)
    decoder.invalidate()
    ended = 0
    # counted by tokens, as many responses may end together; one that ends early counts as long as the longest
    shown = (progress or Progress(None)).over(len(prompts) * max_new_tokens, unit=max_new_tokens)
    with shown, torch.no_grad():
        while state.lengths.any():
            logits = decoder.logits(state.ids, state.lengths)  # (N, V)
            done_so_far = torch.from_numpy(state.response_lengths).to(logits.device)
            logits = behaviour_logits(logits, params, response_lengths=done_so_far, stop_token_ids=stop_token_ids)
            tokens, log_probs = greedy(logits) if greedy_decoding else sample(logits, generator=generator)
            for slot, reason in state.append(tokens.cpu().numpy(), log_probs.cpu().numpy(), stops, max_new_tokens):
                index = state.index[slot]
                results[index] = state.take(slot, reason)
                ended += 1
            shown.update(ended * max_new_tokens + int(state.response_lengths.sum()))
    return [result for result in results if result is not None]


class _Slots:
    """The rows of episodes in progress; a parked row has length 0."""

    def __init__(self, prompts: list[list[int]], num_slots: int, width: int) -> None:
        self.prompts = prompts
        self.ids = np.zeros((num_slots, width), dtype=np.int64)  # (N, L)
        self.lengths = np.zeros(num_slots, dtype=np.int64)
        self.response_lengths = np.zeros(num_slots, dtype=np.int64)
        self.log_probs = np.zeros((num_slots, width), dtype=np.float32)
        self.index = np.zeros(num_slots, dtype=np.int64)
        self.next = 0
        for slot in range(num_slots):
            self.refill(slot)

    def refill(self, slot: int) -> None:
        self.lengths[slot] = self.response_lengths[slot] = 0
        if self.next < len(self.prompts):
            prompt = self.prompts[self.next]
            self.ids[slot, : len(prompt)] = prompt
            self.lengths[slot] = len(prompt)
            self.index[slot] = self.next
            self.next += 1

    def append(
        self, tokens: np.ndarray, log_probs: np.ndarray, stops: frozenset[int], max_new_tokens: int
    ) -> list[tuple[int, str]]:
        """Add a token to every active row; return the slots that ended and why."""
        rows = np.flatnonzero(self.lengths)
        self.ids[rows, self.lengths[rows]] = tokens[rows]
        self.log_probs[rows, self.lengths[rows]] = log_probs[rows]
        self.lengths[rows] += 1
        self.response_lengths[rows] += 1
        ended = []
        for slot in rows:
            if int(tokens[slot]) in stops:
                ended.append((int(slot), "stop"))
            elif self.response_lengths[slot] >= max_new_tokens:
                ended.append((int(slot), "length"))
        return ended

    def take(self, slot: int, reason: str) -> Generation:
        last = self.lengths[slot]
        drawn = slice(last - self.response_lengths[slot], last)
        result = Generation(
            self.prompts[self.index[slot]],
            self.ids[slot, drawn].tolist(),
            reason,
            self.log_probs[slot, drawn].copy(),
        )
        self.refill(slot)
        return result


def check_room(
    prompt_ids: Sequence[Sequence[int]], max_new_tokens: int, context_length: int | None, *, others: int = 0
) -> None:
    """Every prompt has tokens, and room for its response and for `others` tokens more in the model's context.

    Raises:
        ValueError: naming the first prompt that does not.
    """
    for index, ids in enumerate(prompt_ids):
        if not len(ids):
            raise ValueError(f"prompt {index} is empty: expected at least one token")
        if context_length is not None and len(ids) + max_new_tokens + others > context_length:
            room = f" and room for {others} tokens of others" if others else ""
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens: with max_new_tokens={max_new_tokens}{room}, expected at most "
                f"{context_length - max_new_tokens - others} (the model's context is {context_length})"
            )


@torch.no_grad()
def token_log_probs(
    model: PreTrainedModel | LMParts,
    input_ids: Tensor,
    lengths: Tensor,
    *,
    mask: Tensor | None = None,
    params: SamplingParams | None = None,
    batch_size: int | None = None,
    lower: LowerStates | None = None,
) -> Tensor:
    """log π(token_t | tokens_<t) of whole sequences, in one forward a batch.

    Args:
        input_ids: left-aligned rows (B, L) int64.
        lengths: real tokens of each row (B,).
        mask: tokens to score, (B, L) bool, such as an episode's actions; by default every token that has one before
            it. Logits are computed only where needed.
        params: temperature (masks are not for whole sequences); the model's own distribution by default.
        batch_size: rows in one forward at most; what suits the device by default.
        lower: what the model's lower layers give for these rows; only the upper ones are then run.

    Returns:
        (B, L) fp32 on the CPU; 0 at all other places.
    """
    parts = model if isinstance(model, LMParts) else LMParts(model)
    tempered = SamplingParams(temperature=1.0 if params is None else params.temperature)
    out = torch.zeros(input_ids.shape, dtype=torch.float32)  # (B, L)
    if mask is None:
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]  # (B, L)
    order = torch.argsort(lengths)  # batches of like length waste least
    for rows in order.split(parts.rows_at_once(int(lengths.max()) if len(lengths) else 1, batch_size)):
        width = int(lengths[rows].max())
        if width < 2:  # one token: nothing came before it
            continue
        ids = input_ids[rows, :width].to(parts.device)  # (b, l)
        wanted = mask[rows, 1:width]  # (b, l - 1)
        if lower is None:
            states = parts.hidden_states(ids[:, :-1])  # (b, l - 1, H)
        else:
            states = lower.split.upper(lower.states[rows, : width - 1].to(parts.device))  # (b, l - 1, H)
        hidden = states[wanted.to(parts.device)]  # (n, H)
        targets = ids[:, 1:][wanted.to(parts.device)]  # (n,)
        (scored,) = in_chunks(
            lambda h, t: (token_log_prob(behaviour_logits(parts.logits(h), tempered), t),),
            hidden,
            targets,
            vocab_size=parts.vocab_size,
        )  # (n,)
        block = torch.zeros(len(rows), width)  # (b, l)
        block[:, 1:][wanted] = scored.cpu()
        out[rows, :width] = block
    return out
