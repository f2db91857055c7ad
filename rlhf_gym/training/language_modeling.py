"""Supervised training of a language model: on demonstrations (SFT), or on texts (pretraining)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.lm.agreement import evaluating
from rlhf_gym.lm.loading import context_length, load_causal_lm, quiet_transformers
from rlhf_gym.lm.lora import has_adapter
from rlhf_gym.lm.memory import rows_at_once, sizes
from rlhf_gym.lm.parts import LOGITS_AT_ONCE, LMParts, in_chunks
from rlhf_gym.preferences import Demonstration
from rlhf_gym.ranks import ranks
from rlhf_gym.settings import SFTConfig
from rlhf_gym.training.data import (
    IGNORED,
    CausalBatch,
    Row,
    check_rows,
    collate_rows,
    demonstration_rows,
    described,
    fingerprint,
    text_rows,
)
from rlhf_gym.training.stage import SupervisedStage, run_stage


@dataclass(frozen=True)
class SFTMetrics:
    """How well a language model predicts held-out sequences. Means are over the tokens that are predicted."""

    loss: float
    """Mean −log p(token), in nats."""
    perplexity: float
    """exp(loss)."""
    accuracy: float
    """Share of tokens that are the likeliest one."""
    tokens: int
    """Number of tokens predicted."""
    n: int
    """Number of sequences."""


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    *,
    heldout: Sequence[Demonstration],
    config: SFTConfig | None = None,
    output_dir: str | Path,
    resume: bool = True,
) -> SFTMetrics:
    """Fine-tune `model` in place on demonstrations; the loss is that of the responses and their EOS alone.

    L = −(1/N) Σ log p(y_t | x, y_<t) over the N response tokens of each optimizer step.

    Args:
        model: a causal language model; trained where its weights are moved to (an accelerator, if there is one).
        tokenizer: its tokenizer, saved beside it.
        demonstrations: records with `prompt` and `response`.
        heldout: the same, for the metrics; nothing is learned from them.
        config: `SFTConfig()` by default.
        output_dir: receives the model, `metrics.json` and `history.json`; checkpoints while it runs.
        resume: go on from the last checkpoint in `output_dir`; if the run had finished, load its model. False begins
            again.

    Returns:
        The metrics on `heldout` after the last step.

    Raises:
        ValueError: before any work: no demonstrations, none held out, or one that does not fit the model; or
            `output_dir` is that of a run with other data or settings.
        FileExistsError: `output_dir` holds a model from elsewhere.
    """
    rows = _checked(model, demonstration_rows(tokenizer, demonstrations), "demonstration")
    heldout_rows = _checked(model, demonstration_rows(tokenizer, heldout), "held-out demonstration")
    return _train("fine-tuning", model, tokenizer, rows, heldout_rows, config or SFTConfig(), output_dir, resume)


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    heldout: Sequence[str],
    config: SFTConfig | None = None,
    output_dir: str | Path,
    resume: bool = True,
) -> SFTMetrics:
    """Train `model` in place on texts, each closed by EOS; the loss is that of every token after the first.

    Arguments, result and errors as in `train_sft`.
    """
    rows = _checked(model, text_rows(tokenizer, texts), "text")
    heldout_rows = _checked(model, text_rows(tokenizer, heldout), "held-out text")
    return _train("pretraining", model, tokenizer, rows, heldout_rows, config or SFTConfig(), output_dir, resume)


def evaluate_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    *,
    batch_size: int = 64,
) -> SFTMetrics:
    """How well `model` predicts the responses of demonstrations, and their EOS. Of several ranks each reads a share."""
    rows = _checked(model, demonstration_rows(tokenizer, demonstrations), "demonstration")
    with quiet_transformers():
        return _evaluate(model, rows, batch_size)


def summed_loss(
    model: PreTrainedModel, batch: CausalBatch, *, slices_logits: bool, parts: LMParts | None = None
) -> Tensor:
    """−Σ log p(token) over the labelled tokens of a batch.

    Args:
        model: the language model.
        batch: the rows.
        slices_logits: whether the model's forward takes `logits_to_keep`.
        parts: the model's own, to run trunk and head apart; see `parts_for`. None for its own forward.
    """
    if parts is None:
        logits, labels = _logits_and_labels(model, batch, slices_logits)
        return cross_entropy(logits, labels, reduction="sum")
    return _judged(parts, batch)[0].sum()


def parts_for(model: PreTrainedModel, rows: Sequence[Row], batch_size: int) -> LMParts | None:
    """The model taken apart where the logits of a batch would be more than `LOGITS_AT_ONCE`; else None.

    The head is then run on some predicted tokens at a time, whose logits are computed again in the backward pass.

    Raises:
        ValueError: they would, and the model cannot be taken apart.
    """
    longest = max(len(row.ids) - row.start for row in rows)
    return LMParts(model) if batch_size * longest * vocabulary(model) > LOGITS_AT_ONCE else None


def vocabulary(model: PreTrainedModel) -> int:
    """Number of token ids that the model knows."""
    return int(model.config.get_text_config().vocab_size)


def _judged(parts: LMParts, batch: CausalBatch) -> tuple[Tensor, Tensor]:
    """−log p of each predicted token, differentiable, and whether it is the likeliest, (M,) each."""
    hidden = parts.hidden_states(batch.input_ids, attention_mask=batch.attention_mask)  # (B, L, H)
    predicted = batch.labels[:, 1:] != IGNORED  # (B, L - 1)

    def judged(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = parts.logits(states)  # (m, V)
        return cross_entropy(logits, labels, reduction="none"), logits.detach().argmax(dim=-1) == labels

    states = hidden[:, :-1][predicted]  # (M, H)
    losses, hits = in_chunks(judged, states, batch.labels[:, 1:][predicted], vocab_size=parts.vocab_size)
    return losses, hits


def _logits_and_labels(model: PreTrainedModel, batch: CausalBatch, slices_logits: bool) -> tuple[Tensor, Tensor]:
    """Logits (M, V) in fp32 at the M positions whose next token is predicted, and those tokens (M,)."""
    labels = batch.labels[:, batch.first :]  # (B, K)
    keep: dict[str, Any] = {"logits_to_keep": labels.shape[1] + 1} if slices_logits else {}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **keep).logits
    logits = logits[:, -labels.shape[1] - 1 : -1]  # (B, K, V)
    predicted = labels != IGNORED  # (B, K)
    return logits[predicted].float(), labels[predicted]


def _slices_logits(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@torch.no_grad()
def _evaluate(model: PreTrainedModel, rows: Sequence[Row], batch_size: int) -> SFTMetrics:
    slices_logits = _slices_logits(model)
    rows = sorted(rows, key=lambda row: len(row.ids))
    batch_size = rows_at_once(model.device, width=len(rows[-1].ids), read=sizes(model.config).read, most=batch_size)
    parts = parts_for(model, rows, batch_size)
    group = ranks()
    own = rows[group.rank :: group.size]
    loss = 0.0
    correct = 0
    tokens = 0
    with evaluating(model):
        for i in range(0, len(own), batch_size):
            batch = collate_rows(own[i : i + batch_size]).to(model.device)
            if parts is None:
                logits, labels = _logits_and_labels(model, batch, slices_logits)
                loss += float(cross_entropy(logits, labels, reduction="sum"))
                hits = logits.argmax(dim=-1) == labels  # (M,)
            else:
                losses, hits = _judged(parts, batch)
                loss += float(losses.double().sum())
            correct += int(hits.sum())
            tokens += len(hits)
    loss, correct, tokens = map(sum, zip(*group.gather((loss, correct, tokens), "held-out sequences"), strict=True))
    mean = loss / tokens
    return SFTMetrics(mean, math.exp(min(mean, 700.0)), correct / tokens, tokens, len(rows))


def _checked(model: PreTrainedModel, rows: list[Row], what: str) -> list[Row]:
    if has_adapter(model):  # its base would be trained, and the adapter alone be saved
        raise ValueError("expected a model without an adapter, got one that has one: train rlhf_gym.lm.merged(model)")
    check_rows([row.ids for row in rows], what=what, max_length=context_length(model), vocab_size=vocabulary(model))
    return rows


def _train(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    heldout: list[Row],
    config: SFTConfig,
    output_dir: str | Path,
    resume: bool,
) -> SFTMetrics:
    micro_batch_size = config.micro_batch_size or config.batch_size

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def load(folder: Path) -> None:
        model.load_state_dict(load_causal_lm(folder, dtype=model.dtype).state_dict())

    stage = SupervisedStage(
        name=name,
        model=model,
        examples=rows,
        lengths=[len(row.ids) for row in rows],
        collate=collate_rows,
        loss=partial(
            summed_loss,
            slices_logits=_slices_logits(model),
            parts=parts_for(model, rows, micro_batch_size),
        ),
        evaluate=lambda: _evaluate(model, heldout, 2 * micro_batch_size),
        metrics=SFTMetrics,
        identity={
            "model": described(model),
            "data": fingerprint([[row.start, *row.ids] for row in rows]),
            "heldout": fingerprint([[row.start, *row.ids] for row in heldout]),
        },
        save=save,
        load=load,
    )
    return run_stage(stage, config, output_dir, resume=resume)
