"""What reward models are made of: a Transformers classifier whose scalar heads are read at the last real token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_gym.lm.chunked import rows_at_once
from rlhf_gym.lm.fuse import fuse_activations
from rlhf_gym.lm.loading import check_model_source, context_length, load_causal_lm, load_tokenizer, quiet_transformers
from rlhf_gym.lm.lora import merged
from rlhf_gym.lm.tokens import encode_prompts, encode_responses, lengths_from_mask, pad_rows, pad_token_id

Reading = Literal["last_token", "classifier"]


class Loaded(NamedTuple):
    """A classifier and what was found beside it."""

    model: PreTrainedModel
    """In eval mode."""
    tokenizer: PreTrainedTokenizerBase | None
    """Its tokenizer, if there is one."""


class Classifier(nn.Module):
    """An `AutoModelForSequenceClassification(num_labels=k)` as k scalar heads on one trunk: abstract.

    Rows are left-aligned and right-padded, and the last real token is found from the attention mask. (The class's own
    `forward` looks for the pad token instead, and so reads an earlier token wherever the pad token is the EOS.)

    The constructor compares the two on a small ragged batch. A causal model agrees and is read at its last token; an
    encoder, whose head reads something else, is called through its class's own `forward` with the attention mask;
    `reads` says which. What agrees with neither is refused.

    Attributes:
        model: the Transformers classifier.
        tokenizer: the tokenizer it was trained with, or None where it came without one.
        reads: `"last_token"` or `"classifier"`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().__init__()
        fuse_activations(model)
        self.model = model
        self.tokenizer = tokenizer
        self.model.config.use_cache = False  # one forward over whole episodes: there is nothing to keep
        if tokenizer is not None and self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = pad_token_id(tokenizer)  # the class's own forward asks for one
        self.reads: Reading = _choose_reading(self)

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def num_heads(self) -> int:
        """k."""
        labels = self.model.config.num_labels
        assert labels is not None
        return labels

    @property
    def vocab_size(self) -> int:
        """Number of token ids the trunk can embed."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def max_length(self) -> int | None:
        """The longest sequence it can score, in tokens; None where its config sets no limit."""
        return context_length(self.model)

    # -- scoring ----------------------------------------------------------------------------------------------------

    def heads(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What each head says, (B, k) float32, differentiable, of right-padded rows (B, L) with their mask (B, L)."""
        if self.reads == "classifier":
            return _classifier_scores(self.model, input_ids, attention_mask)
        return _last_token_scores(self.model, input_ids, attention_mask)

    @torch.no_grad()
    def head_scores(self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None) -> Tensor:
        """What each head says, (B, k) float32 and not normalised, of right-padded rows (B, L) with their mask (B, L).

        Rows of like length go together, `batch_size` at a time (by default what suits the device), with dropout off
        whatever the mode of the module. A row's score does not depend on its batch-mates or on its padding.

        Raises:
            ValueError: the mask is not that of right-padded rows of at least one token, or a row is longer than the
                model's context.
        """
        lengths = self._check_rows(input_ids, attention_mask)  # (B,)
        scores = torch.empty(len(input_ids), self.num_heads, dtype=torch.float32, device=input_ids.device)  # (B, k)
        if len(input_ids) == 0:
            return scores
        was_training = self.training
        self.eval()
        try:
            order = lengths.argsort(descending=True, stable=True)  # (B,)
            for rows in order.split(batch_size or rows_at_once(self.device)):
                longest = int(lengths[rows[0]])
                rows = rows.to(input_ids.device)
                ids = input_ids[rows, :longest].to(self.device)  # (b, longest)
                mask = attention_mask[rows, :longest].to(self.device)  # (b, longest)
                scores[rows] = self.heads(ids, mask).to(scores.device)
        finally:
            self.train(was_training)
        return scores

    def encode_rows(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and mask (B, L) of responses to prompts, each response closed by the EOS."""
        ids, mask = pad_rows(self.encode(prompts, responses), pad_token_id=self._pad_token_id)  # (B, L)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def encode(
        self, prompts: Sequence[str], responses: Sequence[str], *, closed: Sequence[bool] | None = None
    ) -> list[list[int]]:
        """The rows to score, in this model's own tokens.

        Args:
            prompts: B texts.
            responses: B texts.
            closed: for each response whether it came to its end (then the EOS closes it) or was cut at the length
                limit; all by default. An encoder's pairs are closed by its own template in any case.
        """
        if self.tokenizer is None:
            raise ValueError("expected a reward model with a tokenizer to score texts, got one without")
        if len(prompts) != len(responses):
            raise ValueError(f"expected as many responses as prompts, got {len(responses)} and {len(prompts)}")
        if self.reads == "classifier":
            return self.tokenizer(list(prompts), list(responses)).input_ids if prompts else []
        heads = encode_prompts(self.tokenizer, prompts)
        tails = encode_responses(self.tokenizer, responses)
        closed = [True] * len(tails) if closed is None else closed
        return [h + (t if ended else t[:-1]) for h, t, ended in zip(heads, tails, closed, strict=True)]

    @property
    def _pad_token_id(self) -> int:
        return 0 if self.tokenizer is None else pad_token_id(self.tokenizer)

    def _check_rows(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Lengths (B,) on the CPU, after the checks `head_scores` promises."""
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
        if self.max_length is not None and int(lengths.max()) > self.max_length:
            raise ValueError(
                f"expected rows of at most {self.max_length} tokens (the reward model's context), "
                f"got {int(lengths.max())} in row {int(lengths.argmax())}"
            )
        return lengths


def load_classifier(
    source: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> Loaded:
    """The checkpoint as it was trained; never one whose head is new, for its scores would be noise.

    Raises:
        ValueError: there is none, or one without a head.
    """
    name = check_model_source(source, what="a reward model")
    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name, use_safetensors=True, output_loading_info=True, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except OSError as error:
        raise ValueError(f"could not load a reward model from {name!r}: {error}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"expected a reward model with its scalar head in {name!r}, got a checkpoint without "
            f"{', '.join(sorted(info['missing_keys']))}; RewardModel.from_language_model starts a new one"
        )
    folder, tokenizer = Path(name), None
    if not folder.is_dir() or any(folder.glob("tokenizer*")):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        tokenizer.padding_side = "right"
    return Loaded(model.eval().to(device), tokenizer)


def classifier_from_language_model(
    source: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    heads: int,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Loaded:
    """A copy of a language model's trunk with new heads, head i drawn from `seed + i`.

    A head's weights are N(0, 1/(H+1)) and its bias 0 (Huang et al. 2024, arXiv:2403.17031), so that first scores are of
    order 1 whatever the width H.
    """
    if isinstance(source, PreTrainedModel):
        language_model = source
    else:
        language_model = load_causal_lm(source, dtype=dtype)
        tokenizer = load_tokenizer(source) if tokenizer is None else tokenizer
    language_model = merged(language_model)
    keep = language_model.dtype if dtype == "auto" else dtype
    config = copy.deepcopy(language_model.config)
    config.num_labels, config.architectures = heads, None
    model = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(language_model.base_model.state_dict())
    _initialise_heads(model, seed)
    return Loaded(model.to(device=device, dtype=keep).eval(), tokenizer)


def head_layer(model: PreTrainedModel) -> nn.Linear | None:
    """The one linear layer with k outputs outside the trunk; None where there is not exactly one."""
    trunk, k = set(model.base_model.modules()), model.config.num_labels
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == k and m not in trunk]
    return found[0] if len(found) == 1 else None


def _initialise_heads(model: PreTrainedModel, seed: int) -> None:
    layer = head_layer(model)
    if layer is None:
        raise ValueError(f"expected a class with one linear head over its trunk, got {type(model).__name__}")
    with torch.no_grad():
        for i, row in enumerate(layer.weight):  # (H,)
            generator = torch.Generator().manual_seed(seed + i)
            row.copy_(torch.empty(row.shape).normal_(std=(len(row) + 1) ** -0.5, generator=generator))
        if layer.bias is not None:
            layer.bias.zero_()


def _last_token_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Scores (B, k): the heads on the trunk's state at each row's last real token.

    The trunk gets no mask: under causal attention what stands right of a token does not reach it, and attention
    kernels are faster without one. It gets embeddings, because ids without a mask make Transformers warn.
    """
    layer = head_layer(model)
    assert layer is not None
    embeddings = model.get_input_embeddings()(input_ids)  # (B, L, H)
    hidden = model.base_model(inputs_embeds=embeddings).last_hidden_state  # (B, L, H)
    last = lengths_from_mask(attention_mask) - 1  # (B,)
    states = hidden[torch.arange(len(hidden), device=hidden.device), last]  # (B, H)
    return layer(states).float()  # (B, k)


def _classifier_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Scores (B, k) of the class's own forward."""
    return model(input_ids=input_ids, attention_mask=attention_mask).logits.float()  # (B, k)


def _check_reads_pad_token(reward: Classifier, row: Tensor) -> None:
    """Where the pad token is the EOS, the class's own forward must not take a closing EOS for padding."""
    pad, tokenizer = reward.model.config.pad_token_id, reward.tokenizer
    if tokenizer is None or pad is None or pad != tokenizer.eos_token_id:
        return
    closed = torch.cat([row[:, :-1], torch.full_like(row[:, :1], pad)], dim=1)  # (1, L)
    cut = row[:, :-1]  # (1, L - 1)
    scores = [_classifier_scores(reward.model, ids, torch.ones_like(ids)) for ids in (closed, cut)]  # (1, k) each
    if torch.equal(*scores):
        raise ValueError(
            f"expected a pad token other than the EOS ({tokenizer.eos_token!r}) for {type(reward.model).__name__}, "
            "which looks for the pad token and would not read the EOS"
        )


@torch.no_grad()
def _choose_reading(reward: Classifier) -> Reading:
    """Which reading gives, on a ragged batch, what the class itself gives for each row alone and unpadded."""
    model = reward.model
    if model.config.is_encoder_decoder:
        raise ValueError(f"expected a decoder or an encoder, got the encoder-decoder {type(model).__name__}")
    was_training = model.training
    model.eval()
    pad = model.config.pad_token_id
    usable = torch.tensor([i for i in range(min(reward.vocab_size, 512)) if i != pad])  # (≤ 512,)
    longest = 11 if reward.max_length is None else min(11, reward.max_length)
    lengths = torch.tensor([longest, max(1, longest // 2), max(1, longest - 2)])  # (3,)
    generator = torch.Generator().manual_seed(0)
    ids = usable[torch.randint(len(usable), (3, longest), generator=generator)]  # (3, L)
    mask = (torch.arange(longest) < lengths[:, None]).long()  # (3, L)
    ids = torch.where(mask.bool(), ids, reward._pad_token_id if pad is None else pad)  # (3, L)
    ids, mask = ids.to(model.device), mask.to(model.device)
    alone = torch.cat(
        [
            _classifier_scores(model, row[None, :n], torch.ones_like(row[None, :n]))
            for row, n in zip(ids, lengths.tolist(), strict=True)
        ]
    )  # (3, k)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.05
    try:
        tried: dict[Reading, Tensor] = {}
        if head_layer(model) is not None:
            tried["last_token"] = _last_token_scores(model, ids, mask)
            if torch.allclose(tried["last_token"], alone, rtol=tolerance, atol=tolerance):
                return "last_token"
        tried["classifier"] = _classifier_scores(model, ids, mask)
        if torch.allclose(tried["classifier"], alone, rtol=tolerance, atol=tolerance):
            _check_reads_pad_token(reward, ids[:1])
            return "classifier"
    finally:
        model.train(was_training)
    raise ValueError(
        f"expected {type(model).__name__} to score a row alike alone and right-padded in a batch, got "
        f"{_rounded(alone)} alone and " + ", ".join(f"{_rounded(scores)} by {name}" for name, scores in tried.items())
    )


def _rounded(scores: Tensor) -> list[float]:
    return [round(x, 4) for x in scores.flatten().tolist()]
