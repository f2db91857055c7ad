"""A causal language model taken apart: the trunk gives hidden states, the head turns them into logits.

Whoever trains or scores needs logits at a few positions only, and the value head reads the same hidden states, so the
two halves are called apart everywhere in this package.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache

from rlhf_gym.lm.agreement import check_rows, difference, tolerated
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
        self.vocab_size = int(module.config.get_text_config(decoder=True).vocab_size)
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

    @cached_property
    def hidden_size(self) -> int:
        """H, as measured: OPT-350m projects its states to another size than its configuration calls the hidden one."""
        with torch.no_grad():
            return int(self.hidden_states(torch.zeros(1, 1, dtype=torch.int64, device=self.device)).shape[-1])

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
        ValueError: `head(trunk(x))` is not what `model(x)` returns for each row alone; or the model has no output
            embeddings, or fewer input embeddings than tokens that it may say.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"expected a causal language model with a head, got {type(model).__name__} without")
        super().__init__(_trunk_of(model))
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
        """Rows of a ragged batch are what `model` says of each alone; past thresholds, on a small copy of the trunk."""
        known = int(self.embedding.weight.shape[0])  # type: ignore[union-attr,arg-type]
        training = self.model.training
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, min(known, self.vocab_size), (2, 7), generator=generator).to(self.device)  # (2, 7)
        try:
            together = self.logits(self.hidden_states(ids))  # (2, 7, V)
            for row, n in enumerate((3, 7)):
                alone = ids[row : row + 1, :n]  # (1, n)
                expected = self.model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[0]  # (n, V)
                self._check_same(together[row, :n].to(expected.dtype), expected)
            check_rows(self.module, lambda small, ids, _: Trunk(small).hidden_states(ids))
        finally:
            self.model.train(training)
        self.vocab_size = expected.shape[-1]
        if known < self.vocab_size:
            raise ValueError(
                f"expected {type(self.model).__name__} to have an embedding for each of the {self.vocab_size} tokens "
                f"that its head may say, got {known}"
            )

    def _check_same(self, found: Tensor, expected: Tensor) -> None:
        name, tolerance = type(self.model).__name__, tolerated(self.dtype)
        if found.shape != expected.shape:
            raise ValueError(
                f"{name} computes its logits in a way this package does not know: expected {expected.shape[-1]} "
                f"logits a token from head(trunk(x)), got {found.shape[-1]}"
            )
        if not torch.isfinite(expected).all():
            raise ValueError(f"expected finite logits from {name}, got NaN or infinite ones: are its weights finite?")
        error = difference(found, expected)
        if not error <= tolerance:
            raise ValueError(
                f"{name} computes its logits in a way this package does not know: expected head(trunk(x)) of a "
                f"right-padded batch = model(x) of each row alone within {tolerance:.0e}, got a relative difference of "
                f"{error:.1e}"
            )


def _trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a causal LM below its head.

    Raises:
        ValueError: none of its modules is one.
    """
    # ModernBERT's decoder calls its head `decoder`, and Llama 4 its trunk otherwise than its class says.
    for found in (model.get_decoder(), model.base_model, *model.children()):
        if isinstance(found, PreTrainedModel) and found is not model:
            return found
    raise ValueError(f"expected {type(model).__name__} to have a trunk below its head, found none")


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
