"""Loading language models and tokenizers from a hub name or a folder, with errors one can act on.

Weights are read from safetensors only, and `trust_remote_code` stays off unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rlhf_gym.files import InputError, expanded, read_object, reading
from rlhf_gym.lm import thresholds
from rlhf_gym.lm.finite import check_weights
from rlhf_gym.lm.lora import ADAPTER_CONFIG, check_peft
from rlhf_gym.lm.tensors import check_declared_sizes

T = TypeVar("T")


def check_model_source(source: str | Path, *, what: str = "a model") -> str:
    """`source` as a string for `from_pretrained`, after checking what can be checked without loading anything.

    Anything that looks like a path (it exists, or it starts with `.`, `/` or `~`) must be a folder with a
    `config.json`, or one that peft wrote, with an adapter and the name of its base; everything else is taken for a hub
    name.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a file, or a folder that holds no model.
        ImportError: an adapter, and peft is missing.
    """
    text = str(source)
    path = expanded(text)
    looks_like_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or path.exists()
    if not looks_like_path:
        return text
    if not path.exists():
        raise FileNotFoundError(f"expected {what} in the folder {path}, but it does not exist")
    if not path.is_dir():
        raise ValueError(f"expected {what} as a folder, got the file {path}")
    if (path / ADAPTER_CONFIG).is_file():
        _check_adapter(path)
    elif not (path / "config.json").is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise ValueError(f"expected {what} in {path}: a folder with config.json and *.safetensors; it holds {found}")
    return str(path)


def _check_adapter(path: Path) -> None:
    """The folder's adapter has weights and a base, and peft is there to put the two together."""
    check_peft(f"the adapter in {path}")  # without it, Transformers may load the base alone and say nothing
    if not any(path.glob("adapter_model*.safetensors")):
        raise ValueError(f"expected an adapter in {path} as adapter_model.safetensors, but there is none")
    base = read_object(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base and not (path / "config.json").is_file():
        raise ValueError(f"expected base_model_name_or_path in {path / ADAPTER_CONFIG}, got {base!r}")


def context_length(model: PreTrainedModel) -> int | None:
    """The longest row that the model has positions for, whatever is beside it in a batch; None without a limit."""
    return thresholds.context_length(model.config)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers says nothing below an error, and draws no bars of its own."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load_pretrained(auto_class: Any, source: str | Path, what: str, *, hint: str = "", **kwargs: Any) -> Any:
    """The model that one of Transformers' Auto classes makes of a hub name or a folder, in eval mode.

    Args:
        auto_class: the class.
        source: the hub name or folder.
        what: what is expected there, for messages.
        hint: what to do about weights that are missing.
        kwargs: as in Transformers.

    Raises:
        FileNotFoundError, ValueError: there is no such model, or its files are damaged.
        ValueError: weights are missing or of another shape; Transformers would draw missing ones at random.
    """
    name = check_model_source(source, what=what)
    with reading(what, repr(name)), quiet_transformers():
        model, info = auto_class.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    check_shapes(info, what, name)
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:4]) + (f" and {len(missing) - 4:,} more" if len(missing) > 4 else "")
        raise InputError(f"expected {what} with all of its weights in {name!r}, got a checkpoint without {some}{hint}")
    check_weights(model, f"{what} in {name!r}")
    return model.eval()


def check_shapes(info: Mapping[str, Any], what: str, name: str) -> None:
    """Refuse weights of another shape than the model's; Transformers itself would name them in its log alone.

    Args:
        info: what `from_pretrained(…, output_loading_info=True, ignore_mismatched_sizes=True)` tells.
        what, name: what was expected where, for the message.

    Raises:
        InputError: there are such weights.
    """
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        weight, there, wanted = wrong[0]
        raise InputError(
            f"expected {what} in {name!r} whose weights have the shapes of its config.json, got {len(wrong):,} that "
            f"have not, such as {weight}: {tuple(there)} where {tuple(wanted)} is wanted"
        )


def load_config(source: str | Path, *, what: str = "a model", **kwargs: Any) -> PreTrainedConfig:
    """The configuration of a model in a folder or on the hub, which declares no sizes that its weights have not.

    Errors as `load_pretrained`.
    """
    name = check_model_source(source, what=what)
    if (Path(name) / "config.json").is_file():
        with reading(what, repr(name)):
            check_declared_sizes(Path(name), f"{what} in {name!r}")
    with reading(f"the configuration of {what}", repr(name)):
        return AutoConfig.from_pretrained(name, **kwargs)


def _check_kind(source: str | Path, config: PreTrainedConfig) -> None:
    """Raise where a configuration is of no causal language model."""
    known = type(config) in AutoModelForCausalLM._model_mapping or hasattr(config, "auto_map")
    if not known or config.is_encoder_decoder:
        kind = "an encoder with a decoder" if config.is_encoder_decoder else "a model of another kind"
        raise InputError(
            f"expected a causal language model (one that goes on with a text, such as GPT-2 or Llama) in "
            f"{str(source)!r},\ngot {kind} ({config.model_type})"
        )


def load_causal_lm(
    source: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A causal language model with its head, in eval mode.

    Args:
        source: a hub name or a folder; those of an adapter give its base with the adapter in it.
        dtype, device, trust_remote_code, kwargs: as in Transformers.

    Raises:
        FileNotFoundError, ValueError: as `load_pretrained`; or the model is of another kind, such as T5.
        FloatingPointError: a weight is NaN or infinite.
    """
    if not (Path(source) / ADAPTER_CONFIG).is_file():
        _check_kind(source, load_config(source, what="a causal language model", trust_remote_code=trust_remote_code))
    model = load_pretrained(
        AutoModelForCausalLM,
        source,
        "a causal language model",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        **kwargs,
    )
    if getattr(model.config.get_text_config(), "num_hidden_layers", 1) < 1:  # not every configuration has the field
        raise InputError(f"expected a causal language model with layers in {str(source)!r}, got none")
    return model.to(device)


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. It must know an end-of-sequence token: a response could never end without."""
    name = check_model_source(source, what="a tokenizer (and its model)")
    with reading("a tokenizer", repr(name)):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what Transformers makes where the files are missing
        raise InputError(f"expected a tokenizer in {name!r}, got no words of one: is tokenizer.json missing?")
    if tokenizer.eos_token_id is None:
        raise InputError(f"expected a tokenizer with an eos_token, got none in {name!r}")
    tokenizer.padding_side = "right"
    return tokenizer


class Shared(Generic[T]):
    """`Shared(model)`: a handle whose copies, deep ones too, hold the very same object.

    Gymnasium deep-copies the arguments of an environment's specification. A bare model among them would be duplicated
    in silence, weights and all; a handle is not.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __copy__(self) -> Shared[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared[T]:
        return self

    def __repr__(self) -> str:
        return f"Shared({type(self.value).__name__})"
