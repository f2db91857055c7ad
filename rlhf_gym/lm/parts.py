"""A causal language model taken apart: the trunk gives hidden states, the head turns them into logits.

Whoever trains or scores needs logits at a few positions only, and the value head reads the same hidden states, so the
two halves are called apart everywhere in this package.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache

from rlhf_gym.lm.loading import context_length

LOGITS_AT_ONCE = 1 << 25
"""Most logits that `in_chunks` holds at once: 128 MiB in fp32."""


class Trunk:
    """The trunk of a language model that lives elsewhere: a view, not a module, so nothing is registered twice.

    Args:
        module: a Transformers base model (`AutoModel`'s kind), which returns hidden states.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        fuse_activations(module)
        self.module = module
        self.embedding: nn.Module = module.get_input_embeddings()
        config = module.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.hidden_size = int(config.hidden_size)
        self.context_length = context_length(module)
        # Transformers ≥ 5.24 calls it cache; older models, and those with code of their own, past_key_values.
        parameters = inspect.signature(module.forward).parameters
        renamed = "cache" in parameters and "past_key_values" not in parameters
        self._cache_argument = "cache" if renamed else "past_key_values"

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device  # type: ignore[union-attr,return-value]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype  # type: ignore[union-attr,return-value]

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B, L, H) of left-aligned rows (B, L).

        Right padding needs no mask under causal attention: no real token ever looks at it, and what comes out at
        padded places is not read.
        """
        # Embeddings rather than ids: with ids and no mask, Transformers warns about padding that it cannot judge.
        return self.module(
            inputs_embeds=self.embedding(input_ids),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=cache is not None,
            **({} if cache is None else {self._cache_argument: cache}),
        ).last_hidden_state


class LMParts(Trunk):
    """Trunk and head of a causal LM.

    Args:
        model: any Transformers causal LM whose logits are a function of the trunk's last hidden state.

    Raises:
        ValueError: `head(trunk(x))` is not what `model(x)` returns, or the model has no output embeddings.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"expected a causal language model with a head, got {type(model).__name__} without")
        super().__init__(model.get_decoder())
        self.model = model
        self.lm_head: nn.Module = head
        self._softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._check()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) in fp32 of hidden states (..., H): softmax and its logarithm are taken in fp32 throughout."""
        logits = self.lm_head(hidden).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def _check(self) -> None:
        training = self.model.training
        self.model.eval()
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size  # (1, 4)
        expected = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        actual = self.logits(self.hidden_states(ids))
        self.model.train(training)
        tolerance = (1e-4 if self.dtype == torch.float32 else 5e-2) * max(1.0, float(expected.abs().max()))
        error = float((expected - actual).abs().max())
        if not error <= tolerance:
            raise ValueError(
                f"{type(self.model).__name__} computes its logits in a way this package does not know: expected "
                f"head(trunk(x)) = model(x) within {tolerance:.1e}, got a difference of {error:.1e}"
            )


class ValueHead(nn.Module):
    """V(s) = w·h + b in fp32, zero at the start (Huang et al. 2024, arXiv:2403.17031)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The value of each hidden state, (..., H) → (...)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float())[..., 0]


def fuse_activations(model: nn.Module) -> None:
    """Replace GPT-2's GELU, written out as eight operations, by torch's one kernel for the same formula, in place.

    The two agree to rounding. It has no weights, so nothing changes in what is saved; forward, backward and memory get
    cheaper.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def rows_at_once(device: torch.device) -> int:
    """Sequences in one forward where nothing is trained: a CPU is as quick with few, and few take less memory."""
    return 16 if device.type == "cpu" else 64


def in_chunks(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor, vocab_size: int) -> tuple[Tensor, ...]:
    """`function(*rows)`, (n, …) each → a tuple of (n,), row by row independent, without ever holding all logits.

    At a vocabulary of 150,000 the fp32 logits of a minibatch take more memory than the model. Rows are therefore worked
    through in chunks of at most `LOGITS_AT_ONCE` logits, and each chunk's are computed again in the backward pass.
    Gradients are those of the whole; few enough rows are one plain call.
    """
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(table.split(size) for table in rows), strict=True)
    if torch.is_grad_enabled():
        results = [checkpoint(function, *part, use_reentrant=False) for part in parts]
    else:
        results = [function(*part) for part in parts]
    return tuple(torch.cat(column) for column in zip(*results, strict=True))
