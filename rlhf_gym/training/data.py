"""Rows of token ids for the supervised stages: built and checked once, before any work, then batched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.lm.tokens import encode_prompts, encode_responses, pad_rows
from rlhf_gym.preferences import Demonstration

IGNORED = -100
"""The label of a token that is not predicted."""


class Row(NamedTuple):
    """The token ids of one sequence to learn."""

    ids: list[int]
    """All tokens of the sequence."""
    start: int
    """Index of the first token that is predicted; those before it are given. At least 1."""


def demonstration_rows(tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration]) -> list[Row]:
    """Prompt, response, closing token; the response and what closes it are predicted.

    Of a conversation this is the last turn of the assistant; earlier ones belong to the prompt.
    """
    asked = [d.prompt for d in demonstrations]
    prompts = encode_prompts(tokenizer, asked)
    responses = encode_responses(tokenizer, [d.response for d in demonstrations], prompts=asked)
    return [Row(prompt + response, len(prompt)) for prompt, response in zip(prompts, responses, strict=True)]


def text_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Row]:
    """The text and EOS; everything after the first token is predicted."""
    if tokenizer.eos_token_id is None:
        raise ValueError("expected a tokenizer with an eos_token to close the texts, got one without")
    return [Row([*ids, tokenizer.eos_token_id], 1) for ids in encode_prompts(tokenizer, list(texts))]


def check_rows(
    rows: Sequence[Sequence[int]],
    *,
    what: str,
    max_length: int | None,
    vocab_size: int,
    index: Sequence[int] | None = None,
) -> None:
    """Every row fits the model.

    Args:
        rows: token ids.
        what: what one row is, for the message.
        max_length: the model's context; None where it has no limit.
        vocab_size: number of token ids that the model knows.
        index: the number that each row has for the user, where it is not its place.

    Raises:
        ValueError: there are none, or one is longer than the context, or has a token outside the vocabulary.
    """
    if not rows:
        raise ValueError(f"expected at least one {what}, got none")
    for i, row in enumerate(rows):
        number = i if index is None else index[i]
        if max_length is not None and len(row) > max_length:
            raise ValueError(
                f"expected at most {max_length} tokens (the model's context), got {len(row)} in {what} {number}"
            )
        if max(row) >= vocab_size:
            raise ValueError(
                f"expected token ids below {vocab_size} (the model's vocabulary), got {max(row)} in {what} {number}: "
                "is this the model's tokenizer?"
            )


def fingerprint(rows: Sequence[Sequence[int | float]]) -> str:
    """A short hash of the rows and their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray(row, dtype=np.float64).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def described(model: PreTrainedModel) -> str:
    """A model in the identity of a stage: its class and its size."""
    return f"{type(model).__name__} of {model.num_parameters()} parameters"


class CausalBatch(NamedTuple):
    """A batch of right-padded rows to learn."""

    input_ids: Tensor
    """The token ids, (B, L) int64."""
    attention_mask: Tensor
    """1 for real tokens, 0 for padding, (B, L) int64."""
    labels: Tensor
    """(B, L) int64: the token where it is predicted, `IGNORED` elsewhere."""
    first: int
    """Index of the first column with a label."""

    @property
    def total_weight(self) -> float:
        """Number of tokens that are predicted."""
        return float((self.labels != IGNORED).sum())

    def to(self, device: torch.device) -> CausalBatch:
        """The same batch on a device."""
        rows = (self.input_ids, self.attention_mask, self.labels)
        ids, mask, labels = (x.to(device) for x in rows)
        return CausalBatch(ids, mask, labels, self.first)


def collate_rows(rows: Sequence[Row]) -> CausalBatch:
    """Pad rows to a batch. What stands in a padded place is never read."""
    ids, mask = pad_rows([row.ids for row in rows])  # (B, L)
    places = np.arange(ids.shape[1])  # (L,)
    starts = np.array([row.start for row in rows])  # (B,)
    predicted = mask.astype(bool) & (places >= starts[:, None])  # (B, L)
    labels = np.where(predicted, ids, IGNORED)  # (B, L)
    return CausalBatch(
        torch.from_numpy(ids), torch.from_numpy(mask).long(), torch.from_numpy(labels), int(starts.min())
    )
