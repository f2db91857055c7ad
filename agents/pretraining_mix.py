"""A capability anchor: the policy goes on learning to predict texts while it learns from rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.agents.walk import walk
from rlhf_gym.lm.parts import LMParts, in_chunks
from rlhf_gym.lm.sampling import token_log_prob
from rlhf_gym.lm.tokens import encode_prompts, pad_rows


class PretrainingMix:
    """The "ptx" of InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, eq. 2): gradients of pretraining mixed into those
    of RL, to keep what the policy can do besides pleasing the reward model. Each minibatch's loss becomes

        L + γ·L_LM,   L_LM = −Ê[log π(x_t | x_<t)]

    the mean over all tokens (but the first) of the next `batch_size` texts. π here is the language model itself, at
    temperature 1 and without masks. (The paper's γ is 27.8, at other scales of the loss.)

    The texts are gone through in a new order at every pass. An agent's file holds how far it has come, not the texts:
    give them again to `load`.

    Args:
        texts: D_pretrain: texts, each closed by the tokenizer's EOS where it has one, or token ids as they are.
        coef: γ ≥ 0; 0 for nothing at all.
        batch_size: texts to a minibatch.
        max_length: longer texts are cut into pieces of so many tokens; by default the model's context.
        seed: of the texts' order.
    """

    def __init__(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        coef: float,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        if not coef >= 0 or batch_size < 1:
            raise ValueError(f"expected coef >= 0 and batch_size >= 1, got {coef} and {batch_size}")
        if max_length is not None and max_length < 2:
            raise ValueError(f"expected max_length >= 2 (a token, and one to predict), got {max_length}")
        if not len(texts):
            raise ValueError("expected at least one text, got none")
        self.texts, self.coef, self.batch_size = texts, coef, batch_size
        self.max_length, self.seed = max_length, seed
        self.used = 0
        """Texts read so far, those of minibatches whose step `target_kl` stopped among them: of these nothing is
        learned."""
        self._rows: list[list[int]] = []

    def prepare(self, tokenizer: PreTrainedTokenizerBase, model: LMParts) -> None:
        """Encode and check the texts, once.

        Raises:
            ValueError: one has a token that the model does not know, or none has two tokens.
        """
        if self._rows:
            return
        room = self.max_length or model.context_length
        rows = _encoded(self.texts, tokenizer)
        pieces = [row[i : i + room] for row in rows for i in range(0, len(row), room)] if room else rows
        self._rows = [piece for piece in pieces if len(piece) > 1]
        if not self._rows:
            raise ValueError("expected texts of at least two tokens (one to predict), got none")
        highest = max(max(row) for row in self._rows)
        if highest >= model.vocab_size:
            raise ValueError(
                f"expected token ids below {model.vocab_size} (the model's vocabulary) in the texts, got {highest}"
            )

    def add_gradient(self, policy: LMActorCriticPolicy, *, micro_batch_size: int | None = None) -> Tensor:
        """Add γ·∇L_LM on the next texts to the policy's gradients; L_LM, detached."""
        assert self._rows, "call prepare() first"
        places = walk(self.used, self.batch_size, len(self._rows), seed=self.seed)
        self.used += self.batch_size
        rows = sorted((self._rows[place] for place in places), key=len)  # micro-batches of like length
        tokens = sum(len(row) - 1 for row in rows)
        total = torch.zeros((), device=policy.device)
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) // (micro_batch_size or len(rows)))):
            loss = language_model_loss(policy, [rows[i] for i in part], denominator=tokens)
            (self.coef * loss).backward()
            total += loss.detach()
        return total

    def state_dict(self) -> dict[str, Any]:
        """How far it has come, for JSON."""
        return {"texts": len(self.texts), "used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            ValueError: the texts are others.
        """
        if state["texts"] != len(self.texts) and self.coef > 0:
            raise ValueError(f"expected the {state['texts']} texts that learning began with, got {len(self.texts)}")
        self.used = int(state["used"])


def language_model_loss(policy: LMActorCriticPolicy, rows: Sequence[Sequence[int]], *, denominator: float) -> Tensor:
    """−Σ log π(x_t | x_<t) over all but the first token of each row, divided by `denominator`; differentiable."""
    parts = policy.parts
    table, mask = pad_rows(rows)  # (B, L) each
    ids = torch.from_numpy(table).to(parts.device)
    predicted = torch.from_numpy(mask[:, 1:].astype(bool)).to(parts.device)  # (B, L - 1)
    with policy.autocast():
        states = parts.hidden_states(ids[:, :-1])[predicted]  # (n, H)

    def log_probs(states: Tensor, targets: Tensor) -> tuple[Tensor]:
        with policy.autocast():
            logits = parts.logits(states)  # (n, V)
        return (token_log_prob(logits, targets),)

    (found,) = in_chunks(log_probs, states, ids[:, 1:][predicted], vocab_size=parts.vocab_size)  # (n,)
    return -found.sum() / denominator


def _encoded(texts: Sequence[str] | Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text."""
    words = [text for text in texts if isinstance(text, str)]
    if not words:
        return [list(row) for row in texts]  # type: ignore[arg-type]
    if len(words) != len(texts):
        raise TypeError(f"expected texts or token ids, got {len(words)} texts among {len(texts)} entries")
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return [[*row, *end] for row in encode_prompts(tokenizer, words)]
