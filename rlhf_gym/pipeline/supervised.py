"""The supervised stages: pretraining of a small model, and fine-tuning on demonstrations."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_gym.lm.loading import load_causal_lm
from rlhf_gym.pipeline.context import Run
from rlhf_gym.training import SFTConfig, pretrain, train_sft


def pretrain_stage(run: Run) -> dict[str, Any]:
    """A small language model from random weights, on the task's texts; every 20th is held out to measure it."""
    task = run.task
    texts = list(task.pretraining_texts)
    heldout = texts[::20]
    texts = [text for i, text in enumerate(texts) if i % 20]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(task.model_config)
    metrics = pretrain(
        model,
        task.tokenizer,
        texts,
        heldout=heldout,
        config=_on_device(run.config.pretraining, run),
        output_dir=run.folder.stage("pretrain") / "model",
    )
    return asdict(metrics) | {"texts": len(texts), "parameters": model.num_parameters()}


def sft_stage(run: Run) -> dict[str, Any]:
    """The pretrained model fine-tuned on demonstrations: the policy that everything is compared with."""
    task = run.task
    model = load_causal_lm(run.pretrained, dtype=torch.float32)
    metrics = train_sft(
        model,
        task.tokenizer,
        list(task.demonstrations),
        heldout=list(task.heldout_demonstrations),
        config=_on_device(run.config.sft, run),
        output_dir=run.folder.stage("sft") / "model",
    )
    floor = {} if run.perplexity_floor is None else {"perplexity_floor": run.perplexity_floor}
    return asdict(metrics) | floor | {"demonstrations": len(task.demonstrations), "parameters": model.num_parameters()}


def _on_device(config: SFTConfig, run: Run) -> SFTConfig:
    return replace(config, use_cpu=config.use_cpu or run.device == "cpu")
