"""Capability anchors: does the policy still know what it knew? Perplexity on texts it is not trained on."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.tokens import encode_prompts, encode_responses, pad_responses
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
        prompts: list[list[int]] = []
        continuations: list[list[int]] = []
        for text in texts:
            prompt = encode_prompts(tokenizer, [text.prompt if isinstance(text, Demonstration) else text])[0]
            tail = encode_responses(tokenizer, [text.response])[0] if isinstance(text, Demonstration) else []
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
