"""Capability anchors: does the policy still know what it knew? Perplexity on texts it is not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.tokens import encode_prompts, encode_responses, pad_rows
from rlhf_gym.monitoring.measures import perplexity
from rlhf_gym.preferences import Demonstration


class HeldOutTexts:
    """Texts, as tokens, and what a model says of them.

    Args:
        texts: whole texts, read from their second token on, or demonstrations, whose responses are read, end included.
        tokenizer: the policy's.
        max_length: tokens that a model has room for; longer texts are cut. None for no limit.
    """

    def __init__(
        self, texts: Sequence[str] | Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> None:
        rows, first = [], []
        for text in texts:
            prompt = encode_prompts(tokenizer, [text.prompt if isinstance(text, Demonstration) else text])[0]
            tail = encode_responses(tokenizer, [text.response])[0] if isinstance(text, Demonstration) else []
            start = len(prompt) if tail else 1
            row = [*prompt, *tail][:max_length]
            if len(row) > start:  # else nothing is left to be read
                rows.append(row)
                first.append(start)
        if not rows:
            raise ValueError(f"expected held-out texts of at least two tokens, got {len(texts)} texts without")
        self._ids = torch.from_numpy(pad_rows(rows)[0])  # (B, L)
        self._lengths, self._first = torch.tensor([len(row) for row in rows]), torch.tensor(first)  # (B,) each
        self.num_tokens = int((self._lengths - self._first).sum())

    def perplexity(self, model: LMParts) -> float:
        """exp of the mean of −log p over all tokens, under the model's own distribution; inf beyond 709 nats."""
        total = token_log_probs(model, self._ids, self._lengths, first=self._first).double().sum()
        return perplexity(-float(total) / self.num_tokens)
