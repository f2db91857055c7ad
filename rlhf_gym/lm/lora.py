"""LoRA: weights W stay as they are, and what is learned is W + (alpha/r)·B·A of low rank r (Hu et al. 2021,
arXiv:2106.09685).

B begins at 0, so a fresh adapter changes nothing. The layers are peft's, put into the model by Transformers' own hooks:
the model stays a `PreTrainedModel`, and its folders are those of peft.
"""

from __future__ import annotations

import copy
import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version, is_peft_available

from rlhf_gym.extras import needs
from rlhf_gym.ranges import Count, Positive, check_ranges

ADAPTER_CONFIG = "adapter_config.json"
"""The file by which a folder is known to hold an adapter."""

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class LoRA:
    """The settings of a fresh adapter."""

    r: Count = 8
    """Rank of the product that is added to a weight."""
    alpha: Positive = 16
    """The product is scaled by alpha/r."""
    target_modules: str | tuple[str, ...] | list[str] | None = None
    """Names of the layers that get one, or "all-linear" (all but the head); None: peft's choice for the architecture,
    usually the attention's queries and values."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def settings(self) -> dict[str, Any]:
        """The arguments of `peft.LoraConfig`."""
        names = self.target_modules
        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "target_modules": names if names is None or isinstance(names, str) else list(names),
        }


LoRASettings = LoRA | Mapping[str, Any]
"""A `LoRA`, or arguments of `peft.LoraConfig` for settings that it does not name."""


def check_peft(what: str) -> None:
    """Check that peft is installed, in a version that the installed Transformers takes.

    Raises:
        ImportError: it is not; `what` needs it.
    """
    if not is_peft_available():
        raise ImportError(needs(what, "peft", "lora"))
    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)  # Transformers asks at every use, which is late
    except ValueError as error:
        peft, transformers = map(importlib.metadata.version, ("peft", "transformers"))
        raise ImportError(
            f"{what} needs peft >= {MIN_PEFT_VERSION}, which transformers {transformers} expects, got peft {peft}. "
            f"Where there is no such peft yet: {needs('LoRA', 'an older Transformers', 'lora')}"
        ) from error


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether the model has an adapter."""
    return bool(model._hf_peft_config_loaded)


def add_adapter(model: PreTrainedModel, lora: LoRASettings) -> None:
    """Put a fresh adapter into the model.

    Raises:
        ImportError: peft is missing.
        ValueError: the model has an adapter, or its architecture is one that peft has no `target_modules` for.
    """
    check_peft("lora=…")
    from peft import LoraConfig

    if has_adapter(model):
        raise ValueError(
            "expected a model without an adapter to put a fresh one into, got one that has one: leave lora out to go "
            "on training that one, or begin from rlhf_gym.lm.merged(model)"
        )
    settings = lora.settings() if isinstance(lora, LoRA) else lora
    config = LoraConfig(**{"task_type": "CAUSAL_LM", **settings})  # what peft's own Auto classes go by
    # what the base is called: known to a saved adapter's settings where the model itself was made from a configuration
    model.name_or_path = model.name_or_path or config.base_model_name_or_path or ""
    with warnings.catch_warnings():  # GPT-2 keeps its weights transposed; peft sees it, adapts and says so
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        model.add_adapter(config)


def train_adapter_only(model: PreTrainedModel) -> None:
    """Let gradients through to the adapter's weights and to no other.

    Raises:
        ValueError: there is not exactly one, or it is of another kind than LoRA, or it has biases of the base in it.
    """
    names = model.active_adapters()
    if len(names) != 1:
        raise ValueError(f"expected one adapter to train, got {names}")
    config = _lora_config(model)
    if config.bias != "none":
        raise ValueError(f"expected an adapter with bias='none', got {config.bias!r}: the base's weights stay")
    from rlhf_gym.lm.fused_lora import fuse_adapter

    model.requires_grad_(False)
    model.set_adapter(names[0])
    fuse_adapter(model)


def adapter_settings(model: PreTrainedModel) -> dict[str, Any] | None:
    """Arguments of `peft.LoraConfig` that make such an adapter again, for JSON; None without an adapter."""
    if not has_adapter(model):
        return None
    config = _lora_config(model)
    usual = type(config)().to_dict()
    differs = {name: value for name, value in config.to_dict().items() if value != usual[name]}
    # The weights are drawn already, so how is left out. JSON has no sets, so they become lists.
    return {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in differs.items()
        if name not in ("init_lora_weights", "inference_mode")
    }


def _lora_config(model: PreTrainedModel) -> Any:
    """The `peft.LoraConfig` of the model's adapter."""
    from peft import LoraConfig

    config = model.peft_config[model.active_adapters()[0]]
    if type(config) is not LoraConfig:
        raise ValueError(f"expected a LoRA adapter, got one of {type(config).__name__}")
    return config


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with W + (alpha/r)·B·A for weights and no adapter; the model itself where it has none.

    Raises:
        ValueError: the copy does not say the same, as where an embedding has an adapter and a head is tied to it.
    """
    if not has_adapter(model):
        return model
    copied = _without_adapter(model, merge=True)
    ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size  # (1, 4)
    with torch.no_grad():
        expected, actual = (m(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for m in (model, copied))
    tolerance = (1e-4 if model.dtype == torch.float32 else 5e-2) * max(1.0, float(expected.abs().max()))
    error = float((expected - actual).abs().max())
    if not error <= tolerance:
        raise ValueError(
            f"this adapter of {type(model).__name__} cannot be merged: expected the same logits within "
            f"{tolerance:.1e}, got a difference of {error:.1e}"
        )
    return copied


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model without its adapter."""
    return _without_adapter(model, merge=False)


def _without_adapter(model: PreTrainedModel, *, merge: bool) -> PreTrainedModel:
    copied = unwrap(copy.deepcopy(model), merge=merge)
    copied._hf_peft_config_loaded = False
    del copied.peft_config
    return copied


def unwrap(module: Module, *, merge: bool) -> Module:
    """Exchange peft's layers for those inside them, in place, their adapters merged or dropped."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, layer in list(module.named_modules()):
        parent, _, own_name = name.rpartition(".")
        if isinstance(layer, BaseTunerLayer):
            if merge:
                layer.merge(safe_merge=True)
            setattr(module.get_submodule(parent), own_name, layer.get_base_layer())
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            plain = layer.unload_and_optionally_merge_module(merge=merge, safe_merge=True, adapter_names=None)
            setattr(module.get_submodule(parent), own_name, plain)
    return module


def share_frozen(model: PreTrainedModel, other: PreTrainedModel) -> list[nn.Parameter]:
    """Let a model's frozen weights be those of another one where they are equal, so that they are held once.

    Frozen are the weights under an adapter, and layers without gradients; the other's must be without gradients too, or
    somebody may train them. Names of layers with and without an adapter are matched. Nothing else changes.

    Returns:
        The parameters of `model` whose memory is the other's now.
    """
    theirs = {_plain_name(name): parameter for name, parameter in other.named_parameters()}
    shared = []
    for name, own in model.named_parameters():
        found = theirs.get(_plain_name(name))
        if own.requires_grad or found is None or found.requires_grad:
            continue
        alike = own.shape == found.shape and own.dtype == found.dtype and own.device == found.device
        if alike and (own.data_ptr() == found.data_ptr() or torch.equal(own, found)):
            own.data = found.data
            shared.append(own)
    return shared


def _plain_name(name: str) -> str:
    """A weight's name as it is without an adapter around its layer."""
    return name.replace(".base_layer.", ".")


def save_model(model: PreTrainedModel, folder: Any, *, merge: bool) -> None:
    """Write a model as a folder that `load_causal_lm` reads: an adapter in peft's format, with the name of its base.

    A base without a name, made in memory, is written beside its adapter.

    Args:
        merge: write a model without an adapter instead, see `merged`.
    """
    if merge:
        model = merged(model)
    if has_adapter(model) and not model.peft_config[model.active_adapters()[0]].base_model_name_or_path:
        base_model(model).save_pretrained(folder)
    model.save_pretrained(folder)
