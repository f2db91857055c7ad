"""Where a classifier is read: at the last token that is not padding, or wherever its class's own forward reads.

Transformers' classes for causal models take the rightmost token that is not `config.pad_token_id`. A checkpoint whose
pad token is the EOS is therefore read, and was trained, at the token before the EOS. What is read here is what the
class itself gives for a row alone and unpadded, whatever its pad token is.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.lm.agreement import check_rows, evaluating, tolerated
from rlhf_gym.lm.finite import check_weights
from rlhf_gym.lm.loading import context_length
from rlhf_gym.lm.parts import Trunk, states_without_mask
from rlhf_gym.lm.tokens import lengths_from_mask

Reading = Literal["last_token", "classifier"]
"""`"last_token"`: from left to right, up to the last token that is not the pad token; `"classifier"`: as an encoder."""

PAD = "[PAD]"
"""The pad token that is added where a tokenizer has none of its own."""


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a classifier that gives hidden states.

    Raises:
        ValueError: there is not exactly one.
    """
    trunk: Any = model.base_model
    if trunk is not model:
        return trunk
    found = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(found) != 1:
        raise ValueError(f"expected a classifier over one trunk, got {type(model).__name__} over {len(found)}")
    return found[0]


def head_layer(model: PreTrainedModel) -> nn.Linear | None:
    """The one linear layer with k outputs outside the trunk; None where there is not exactly one."""
    trunk = set(trunk_of(model).modules())
    k = model.config.num_labels
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == k and m not in trunk]
    return found[0] if len(found) == 1 else None


def pad_of(model: PreTrainedModel) -> int | None:
    """The pad token that the model's class looks for."""
    return model.config.get_text_config().pad_token_id


def can_pad(model: PreTrainedModel) -> bool:
    """Whether a row can be padded with the model's pad token: it has one, and an embedding for it."""
    pad = pad_of(model)
    return pad is not None and 0 <= pad < rows_of(model)


def rows_of(model: PreTrainedModel) -> int:
    """Number of token ids that the model can embed."""
    return int(model.config.get_text_config().vocab_size)


def knows_tokens(
    model: PreTrainedModel,
    own: PreTrainedTokenizerBase | None,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int | None,
) -> bool:
    """Whether a policy's tokens are among those of a reward model with the tokenizer `own`.

    Raises:
        ValueError: it has no tokenizer to read texts with, and another vocabulary.
    """
    rows = rows_of(model)
    if own is not None:
        known = own.get_vocab()
        return max(known.values()) < rows and tokenizer.get_vocab().items() <= known.items()
    if len(tokenizer) <= rows <= max(len(tokenizer), vocab_size or 0):
        return True
    expected = " or ".join(str(n) for n in (len(tokenizer), vocab_size) if n is not None)
    raise ValueError(
        f"expected a reward model with the policy's vocabulary of {expected} tokens, or one with a tokenizer "
        f"of its own to read texts with; got a vocabulary of {rows} tokens and no tokenizer"
    )


def check_token_rows(input_ids: Tensor, attention_mask: Tensor, *, vocab_size: int, max_length: int | None) -> Tensor:
    """Lengths (B,) on the CPU of rows (B, L) that a reward model can read.

    Raises:
        ValueError: the mask is not that of right-padded rows of at least one token, a row is longer than the model's
            context, or it has a token that the model cannot embed.
    """
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        shapes = f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
        raise ValueError(f"expected input_ids and attention_mask of one shape (B, L), got {shapes}")
    lengths = lengths_from_mask(attention_mask).cpu()  # (B,)
    if len(lengths) == 0:
        return lengths
    right_padded = attention_mask.bool().cpu() == (torch.arange(input_ids.shape[1]) < lengths[:, None])  # (B, L)
    if not right_padded.all() or int(lengths.min()) < 1:
        bad = int((~right_padded.all(dim=1) | (lengths < 1)).nonzero()[0])
        raise ValueError(f"expected right-padded rows of at least one token, got row {bad} with another mask")
    if max_length is not None and int(lengths.max()) > max_length:
        raise ValueError(
            f"expected rows of at most {max_length} tokens (the reward model's context), "
            f"got {int(lengths.max())} in row {int(lengths.argmax())}"
        )
    unknown = (attention_mask != 0) & ((input_ids < 0) | (input_ids >= vocab_size))  # (B, L)
    if unknown.any():
        row, place = unknown.nonzero()[0].tolist()
        raise ValueError(
            f"expected token ids in 0 … {vocab_size - 1}, which the reward model can embed, got "
            f"{int(input_ids[row, place])} at place {place} of row {row}"
        )
    return lengths


class Reader:
    """The scores that a classifier gives, of each row what its class gives for that row alone and unpadded.

    A causal model's head is put on the state of the token that the class reads. Where the class does more than that
    (a layer between trunk and head), and for an encoder, the class itself is called.

    Args:
        model: the classifier.
        reading: what its checkpoint says (`Reader.reading`); found out by comparing the two otherwise.

    Raises:
        ValueError: the class gives a row another score in a padded batch than alone, or a score that is no number.
    """

    def __init__(self, model: PreTrainedModel, reading: Reading | None = None) -> None:
        self.model = model
        self._trunk: Trunk | None = None
        self._causal = False
        self.reads: Reading = "classifier"
        with evaluating(model):
            self._choose(reading)

    @property
    def reading(self) -> Reading:
        """What a checkpoint says of it: whether its head is put on the last token's state, or its class is asked."""
        return "classifier" if self._trunk is None else "last_token"

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores (B, k) in float32, differentiable, of right-padded rows (B, L) with their mask (B, L)."""
        if self._trunk is not None:
            return self._at_last_token(self._trunk, input_ids, attention_mask)
        return self._by_class(input_ids, attention_mask)

    def _at_last_token(self, trunk: Trunk, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The heads on the trunk's state at the token that is read, (B, k).

        The trunk gets no mask: under causal attention what stands right of a token does not reach it, and attention
        kernels are faster without one.
        """
        layer = head_layer(self.model)
        assert layer is not None
        hidden = trunk.hidden_states(input_ids.masked_fill(attention_mask == 0, 0))  # (B, L, H)
        read = last_token(input_ids, attention_mask, pad_of(self.model))  # (B,)
        states = hidden[torch.arange(len(hidden), device=hidden.device), read]  # (B, H)
        return layer(states.to(layer.weight.dtype)).float()  # (B, k)

    def _by_class(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The class's own forward, (B, k); what stands in padded places is the pad token, which it may look for.

        A causal model without a pad token gets each row alone: its class refuses batches, or reads their padding.
        """
        pad = pad_of(self.model)
        if pad is not None and can_pad(self.model):
            input_ids = input_ids.masked_fill(attention_mask == 0, pad)  # (B, L)
        elif self._causal and len(input_ids) > 1:
            lengths = attention_mask.sum(dim=1).tolist()  # (B,)
            rows = [input_ids[i : i + 1, :n] for i, n in enumerate(lengths)]
            return torch.cat([self._by_class(row, torch.ones_like(row)) for row in rows])  # (B, k)
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float()  # (B, k)

    @torch.no_grad()
    def _choose(self, reading: Reading | None) -> None:
        """Find what gives, on a ragged batch, the scores that the class gives for each row alone and unpadded."""
        model = self.model
        trunk = trunk_of(self.model)
        rows = _probe_rows(model)
        causal = self._causal = is_causal(model)
        alone = torch.cat([self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits for row in rows])
        alone = alone.float()  # (B, k)
        if not alone.isfinite().all():
            check_weights(model, type(model).__name__)
            raise ValueError(f"expected finite scores from {type(model).__name__}, got {_rounded(alone)}")
        ids = pad_sequence([row[0] for row in rows], batch_first=True)  # (B, L)
        mask = pad_sequence([torch.ones_like(row[0]) for row in rows], batch_first=True)  # (B, L)
        tolerance = tolerated(model.dtype)
        tried = {}
        if causal and reading != "classifier" and head_layer(model) is not None:
            heads = Trunk(trunk)
            tried["its head at the last token"] = self._at_last_token(heads, ids, mask)
            if reading == "last_token":
                alone = torch.cat([self._at_last_token(heads, row, torch.ones_like(row)) for row in rows])  # (B, k)
            if torch.allclose(tried["its head at the last token"], alone, rtol=tolerance, atol=tolerance):
                check_rows(trunk, states_without_mask)
                self._trunk = heads
                self.reads = "last_token"
                return
        tried["its class in a batch"] = self._by_class(ids, mask)
        if torch.allclose(tried["its class in a batch"], alone, rtol=tolerance, atol=tolerance):
            check_rows(trunk, _states_with_mask)
            other = rows[0].clone()  # (1, L)
            other[0, -1] = rows[1][0, 0]
            moved = self._by_class(other, torch.ones_like(other)) != alone[:1]  # (1, k)
            self.reads = "last_token" if causal and bool(moved.any()) else "classifier"
            return
        found = ", ".join(f"{_rounded(scores)} by {name}" for name, scores in tried.items())
        raise ValueError(
            f"expected {type(model).__name__} to score a row alike alone and right-padded in a batch, got "
            f"{_rounded(alone)} alone and {found}"
        )


def last_token(input_ids: Tensor, attention_mask: Tensor, pad: int | None) -> Tensor:
    """Place of each row's last token that is not `pad`, (B,) int64; 0 in a row of nothing else.

    Args:
        input_ids: right-padded rows (B, L).
        attention_mask: 1 at real tokens, (B, L).
        pad: what the classes of Transformers look for; None reads the last real token.
    """
    read = attention_mask != 0  # (B, L)
    if pad is not None:
        read = read & (input_ids != pad)  # (B, L)
    places = torch.arange(input_ids.shape[1], device=input_ids.device)  # (L,)
    return (places * read).amax(dim=1)


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token's state in a classifier's trunk does not depend on the tokens after it.

    Raises:
        ValueError: the classifier is an encoder-decoder.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"expected a decoder or an encoder, got the encoder-decoder {type(model).__name__}")
    trunk = trunk_of(model)
    ids = (torch.arange(8, device=model.device) % rows_of(model))[None, : context_length(model)]  # (1, L)
    other = ids.clone()  # (1, L)
    other[0, -1] = 0
    before, after = (states_of(trunk, row)[:, :-1] for row in (ids, other))  # (1, L - 1, H)
    return torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().amax()))


@torch.no_grad()
def states_of(trunk: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The last hidden states (B, L, H) in float32 of rows without padding, dropout off."""
    with evaluating(trunk):
        return trunk(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state.float()


def without_pad_token(config: PreTrainedConfig) -> None:
    """Let a classifier's class look for no pad token, in place; some configurations must have one: it is then −1."""
    try:
        config.get_text_config().pad_token_id = None
    except StrictDataclassFieldValidationError:
        config.get_text_config().pad_token_id = -1


def own_pad_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stop_ids: Collection[int] = ()
) -> PreTrainedTokenizerBase | None:
    """Make a causal classifier and its tokenizer agree on the pad token, in place, and return the tokenizer.

    A pad token that the class can look for is kept: it is how the checkpoint was trained. A class without one reads
    the last token. It gets one that is no stop token, so that its EOS is read: the tokenizer's own, or else `[PAD]`,
    added to a copy of the tokenizer. The embedding grows only if it has no row left for it.

    Args:
        model: the classifier.
        tokenizer: its tokenizer; without one, nothing needs a pad token.
        stop_ids: tokens that end a response, beside the EOS of the tokenizer and of the config.
    """
    if tokenizer is None:
        return None
    config = model.config.get_text_config()
    pad = config.pad_token_id
    if can_pad(model):
        if tokenizer.pad_token_id == pad:
            return tokenizer
        name = tokenizer.convert_ids_to_tokens(pad) if pad < len(tokenizer) else None
        if name is not None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = name
            return tokenizer
    eos = config.eos_token_id
    stops = {*stop_ids, tokenizer.eos_token_id, *(eos if isinstance(eos, list | tuple) else [eos])}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stops:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"pad_token": PAD})
    config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id >= rows_of(model):
        grown = model.resize_token_embeddings(int(tokenizer.pad_token_id) + 1, mean_resizing=False)
        with torch.no_grad():
            grown.weight[tokenizer.pad_token_id :].zero_()
    return tokenizer


def _states_with_mask(trunk: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden states (B, L, H) of right-padded rows as an encoder is read."""
    return trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _probe_rows(model: PreTrainedModel) -> list[Tensor]:
    """Rows (1, L) of unlike lengths, among them one with the pad token inside and at its end."""
    pad = pad_of(model)
    context = context_length(model)
    longest = 11 if context is None else min(11, context)
    usable = torch.tensor([i for i in range(min(rows_of(model), 512)) if i != pad])  # (≤ 512,)
    generator = torch.Generator().manual_seed(0)
    ids = usable[torch.randint(len(usable), (4, longest), generator=generator)]  # (4, L)
    rows = [ids[0, :longest], ids[1, : max(1, longest // 2)], ids[2, : max(1, longest - 2)]]
    if pad is not None and can_pad(model) and longest >= 5:
        ids[3, [1, 3, 4]] = pad
        rows.append(ids[3, :5])
    return [row[None].to(model.device) for row in rows]


def _rounded(scores: Tensor) -> list[float]:
    return [round(x, 4) for x in scores.flatten().tolist()]
