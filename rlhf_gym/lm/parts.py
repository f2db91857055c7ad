"""A causal language model taken apart: the trunk gives hidden states, the head turns them into logits.

Whoever trains or scores needs logits at a few positions only, and the value head reads the same hidden states, so the
two halves are called apart everywhere in this package.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache

from rlhf_gym.files import InputError, expanded, reading
from rlhf_gym.lm.agreement import check_rows, difference, tolerated
from rlhf_gym.lm.finite import check_weights
from rlhf_gym.lm.loading import context_length
from rlhf_gym.lm.memory import rows_at_once, sizes
from rlhf_gym.lm.tensors import check_tensor

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call c of the logits c·tanh(x/c)."""
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
        self.sizes = sizes(module.config)
        # Transformers ≥ 5.24 calls it cache; older models, and those with code of their own, past_key_values.
        parameters = inspect.signature(module.forward).parameters
        renamed = "cache" in parameters and "past_key_values" not in parameters
        self._cache_argument = "cache" if renamed else "past_key_values"

    @property
    def embedded(self) -> int:
        """How many token ids have an embedding."""
        return int(self.embedding.weight.shape[0])  # type: ignore[union-attr,arg-type,index]

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

    def rows_at_once(self, width: int, most: int | None = None) -> int:
        """Rows of so many tokens in one forward where nothing is trained; see `rlhf_gym.lm.memory.rows_at_once`."""
        return rows_at_once(self.device, width=width, read=self.sizes.read, most=most)

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
        FloatingPointError: its weights or logits are not finite.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"expected a causal language model with a head, got {type(model).__name__} without")
        super().__init__(_trunk_of(model))
        self.model = model
        self.lm_head: nn.Module = head
        values = model.config.get_text_config().to_dict()
        self._softcap: float | None = next((values[name] for name in SOFT_CAPS if values.get(name)), None)
        self._scale = 1.0
        self._check()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) in fp32 of hidden states (..., H): softmax and its logarithm are taken in fp32 throughout."""
        logits = self.lm_head(hidden).float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def _check(self) -> None:
        """Rows of a ragged batch are what `model` says of each alone; past thresholds, on a small copy of the trunk."""
        known = self.embedded
        training = self.model.training
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        longest = min(7, self.context_length or 7)  # L
        ids = torch.randint(0, min(known, self.vocab_size), (2, longest), generator=generator).to(self.device)  # (2, L)
        name = type(self.model).__name__
        try:
            rows = (ids[:1, :3], ids[1:])  # (1, 3) and (1, L)
            alone = [
                self.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
                for row in rows
            ]
            if not all(torch.isfinite(expected).all() for expected in alone):
                check_weights(self.model, name)
                raise FloatingPointError(f"expected finite logits from {name}, got NaN or infinite ones")
            try:
                states = self.hidden_states(ids)  # (2, L, H)
                errors = (self._use_head(head, states, alone) for head in _heads(self.model, self.module))
                error = next((error for error in errors if error <= tolerated(self.dtype)), None)
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, AssertionError) as problem:
                raise ValueError(
                    f"{name} cannot be run as this package does: expected its trunk {type(self.module).__name__} to "
                    f"give hidden states from embeddings, got {type(problem).__name__}: {problem}"
                ) from problem
            if error is None:
                raise ValueError(
                    f"{name} computes its logits in a way this package does not know: expected head(trunk(x)) of a "
                    f"right-padded batch = model(x) of each row alone within {tolerated(self.dtype):.0e}, got a "
                    f"relative difference of {self._use_head(self.lm_head, states, alone):.1e}"
                )
            check_rows(self.module, states_without_mask)
        finally:
            self.model.train(training)
        self.vocab_size = alone[0].shape[-1]
        if known < self.vocab_size:
            raise ValueError(
                f"expected {name} to have an embedding for each of the {self.vocab_size} tokens "
                f"that its head may say, got {known}"
            )

    def _use_head(self, head: nn.Module, states: Tensor, alone: list[Tensor]) -> float:
        """Let this be the head, if none before was right; how far it is from what the model says of each row alone."""
        before = self.lm_head, self._scale
        self.lm_head = head
        self._scale = 1.0
        try:
            together = self.logits(states)  # (2, L, V)
            self._scale = _factor(together[1], alone[1], self.model.config.get_text_config().to_dict())
            pairs = zip(self.logits(states), alone, strict=True)
            error = max(difference(found[: len(row)].to(row.dtype), row) for found, row in pairs)
        except (RuntimeError, TypeError, ValueError, AttributeError):  # such as sizes that do not fit
            error = math.inf
        if not error <= tolerated(self.dtype):
            self.lm_head, self._scale = before
        return error


def states_without_mask(module: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, L, H) of right-padded rows (B, L), as this package computes them: without the mask."""
    return Trunk(module).hidden_states(ids)


def _heads(model: PreTrainedModel, trunk: PreTrainedModel) -> Iterator[nn.Module]:
    """What may turn a trunk's states into logits: the output embeddings, or all that stands beside the trunk, in turn.

    The latter is the way of BERT's kind and ModernBERT's, which transform the states once more.
    """
    yield model.get_output_embeddings()
    beside = [child for child in model.children() if not any(part is trunk for part in child.modules())]
    if len(beside) > 1 or (beside and beside[0] is not model.get_output_embeddings()):
        yield nn.Sequential(*beside)


def _factor(found: Tensor, expected: Tensor, named: dict[str, object]) -> float:
    """The number that all logits (n, V) are multiplied by, as Cohere and Granite do; 1 where there is no such one.

    Measured, and then taken exactly as the configuration names it, itself or as a divisor; in fp32 as measured, where
    it is a ratio of two (MiniCPM's).
    """
    precise = expected.dtype == torch.float32
    found = found.double()
    expected = expected.double()
    measured = float((found * expected).sum() / found.square().sum().clamp_min(1e-30))
    values = [value for value in named.values() if isinstance(value, float | int) and value > 0]
    candidates = [1.0, *(float(value) for value in values), *(1.0 / value for value in values)]
    nearest = min(candidates, key=lambda value: abs(value - measured))
    if abs(nearest - measured) <= 1e-2 * abs(measured):
        return nearest
    return measured if precise else 1.0


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


VALUE_HEADS = ("v_head.summary.weight", "v_head.summary.bias", "score.weight", "score.bias")
"""What others call the weights of a value head."""


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

    def load(self, folder: str | Path) -> None:
        """Begin with the value head in a folder that Transformers or TRL wrote, from *.safetensors.

        TRL's `AutoModelForCausalLMWithValueHead` calls it `v_head.summary`, and it has a bias. A classifier with one
        label, which TRL's `PPOTrainer` takes as its value model, calls it `score`, and it has none.

        Raises:
            FileNotFoundError: there is no such folder. InputError: it holds no such head, or one of another shape.
        """
        path = expanded(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"expected a model with a value head in the folder {path}, but it does not exist")
        found: dict[str, Tensor] = {}
        with reading("a value head", repr(str(path))):
            for file in sorted(path.glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    found |= {name: tensors.get_tensor(name) for name in tensors.keys() if name in VALUE_HEADS}  # noqa: SIM118
        weights = [name for name in found if name.endswith("weight")]
        if len(weights) != 1:
            raise InputError(
                f"expected one of v_head.summary.weight and score.weight in *.safetensors in {path}, got "
                f"{' and '.join(weights) or 'neither'}"
            )
        weight = found[weights[0]].float()
        bias = found.get(weights[0].replace("weight", "bias"), torch.zeros(1)).float()
        for name, value, own in (("weight", weight, self.linear.weight), ("bias", bias, self.linear.bias)):
            check_tensor(f"the {name} of the value head in {path}", value, own)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)


def fuse_activations(model: nn.Module) -> None:
    """Replace GPT-2's GELU, written out as eight operations, by torch's one kernel for the same formula, in place.

    The two agree to rounding. It has no weights, so nothing changes in what is saved; forward, backward and memory get
    cheaper.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


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
