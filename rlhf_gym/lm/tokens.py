"""Between texts and token ids. Prompts and responses are encoded apart, so a response's tokens are never re-cut.

Everything here is left-aligned and right-padded; lengths come from the mask, never from looking for a token, so a
tokenizer whose pad token is its end-of-sequence token (GPT-2, Llama) needs no care.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ActionRows(NamedTuple):
    """Right-padded rows that say which of their tokens are actions of a policy."""

    input_ids: Tensor
    """All tokens, (B, L) int64."""
    action_mask: Tensor
    """True where the token is an action, (B, L) bool; False at padding."""
    lengths: Tensor
    """The number of tokens of each row, (B,) int64."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, with the tokenizer's leading special tokens (BOS) and without a closing EOS.

    Raises:
        ValueError: a prompt has no tokens at all (there would be no state to act from).
    """
    if not prompts:
        return []
    rows = tokenizer(list(prompts)).input_ids
    eos = tokenizer.eos_token_id
    for row, text in zip(rows, prompts, strict=True):
        if row and row[-1] == eos and not text.endswith(tokenizer.eos_token):
            row.pop()  # the tokenizer closed the text by itself
    for index, row in enumerate(rows):
        if not row:
            raise ValueError(
                f"prompt {index} has no tokens: expected at least one, got {prompts[index]!r}. "
                "Give the tokenizer a BOS token, or start the prompt with some text."
            )
    return rows


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], *, stop: bool = True
) -> list[list[int]]:
    """Token ids of each response, no leading special tokens; with `stop`, closed by the end-of-sequence token."""
    if not responses:
        return []
    rows = tokenizer(list(responses), add_special_tokens=False).input_ids
    if not stop:
        return rows
    if tokenizer.eos_token_id is None:
        raise ValueError("expected a tokenizer with an eos_token to close the responses, got one without")
    return [[*row, tokenizer.eos_token_id] for row in rows]


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row, special tokens left out."""
    return tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that joined they read as the response does; special tokens by name.

    Word-level tokenizers drop the space between tokens: it is put behind each. Byte-level ones keep it inside them.
    """
    if not len(ids):
        return []
    words = tokenizer.batch_decode([[int(token)] for token in ids])
    words = [word or f"<{token}>" for word, token in zip(words, ids, strict=True)]  # ids beyond the tokenizer's own
    special = set(tokenizer.all_special_ids)
    plain = [int(token) for token in ids if token not in special]
    pair = plain[:2] if len(plain) > 1 else [int(token) for token in ids[:2]]
    glued = tokenizer.decode(pair) == "".join(tokenizer.batch_decode([[token] for token in pair]))
    return [word if glued else word + " " for word in words]


def pad_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad rows to `length` (by default the longest row's): ids (B, L) int64 and mask (B, L) int8."""
    longest = max((len(row) for row in rows), default=0)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"expected rows of at most {length} tokens, got one of {longest}")
    ids = np.full((len(rows), length), pad_token_id, dtype=np.int64)  # (B, L)
    mask = np.zeros((len(rows), length), dtype=np.int8)  # (B, L)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def pad_responses(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> ActionRows:
    """Each prompt and the response to it as one row; the response's tokens are the actions."""
    ids, mask = pad_rows([[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)])  # (B, L)
    starts = torch.tensor([len(prompt) for prompt in prompts])  # (B,)
    real = torch.from_numpy(mask) != 0  # (B, L)
    return ActionRows(torch.from_numpy(ids), real & (torch.arange(ids.shape[1]) >= starts[:, None]), real.sum(dim=1))


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's pad token, its EOS where it has none, else 0. What stands in a padded place is never read."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's EOS and those the model's generation config names."""
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if model is not None and model.generation_config is not None:
        extra = model.generation_config.eos_token_id
        ids.update([extra] if isinstance(extra, int) else (extra or []))
    return tuple(sorted(ids))


def lengths_from_mask(attention_mask: Tensor) -> Tensor:
    """Number of tokens of each row, (B,) int64, of a right-padded mask (B, L)."""
    return attention_mask.sum(dim=-1, dtype=torch.int64)
