"""Lengths from which on a model computes otherwise, found in its configuration, and a small copy to look past them on.

A sliding window of 4,096 tokens shows in no short check, and a long one of the real model takes minutes. A small copy
runs the same code: the model's class with a few narrow layers, random weights, and every such length scaled down.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

FEW_WEIGHTS = 4_000_000
"""A model with no more weights than this is looked at itself, where its thresholds are low."""
LOW = 64
"""Thresholds up to this are low."""
MOST_WEIGHTS = 60_000_000
"""A copy with more weights than this is not made."""
SPACING = 12
"""Scaled down, the lowest threshold is this many tokens, the next twice as many, and so on."""

_LENGTHS = re.compile(
    r"window|chunk|local_attention|block_size|block_length|span|stride|segment|keep_|(index|sparse)_top_?k|compress"
    r"|position_embeddings|n_positions|n_ctx|(?<!model_)max_seq|(?<!audio_)seq_length|(target|source)_positions"
)
_NO_LENGTHS = re.compile(r"layer|pattern|feed_forward|conv|_dim|_size_per|num_|rate|ratio|bucket|type")
_OTHER_SENSES = re.compile(r"image|vision|audio|video|speech")
_POSITIONS = re.compile(
    r"(?<!original_)max_position_embeddings|n_positions|n_ctx|max_seq_len\w*|seq_length|\w*target_positions"
)


def thresholds(config: PreTrainedConfig) -> dict[str, int]:
    """Every length that the configuration names, by its name: windows, chunks, switches and limits of positions."""
    return {".".join(map(str, path)): value for path, value in _lengths(_values(config))}


def inner_thresholds(config: PreTrainedConfig) -> list[int]:
    """The lengths among them that a row may exceed: all but the limits of positions; in ascending order."""
    found = {value for path, value in _lengths(_values(config)) if not _POSITIONS.fullmatch(str(path[-1]))}
    limit = context_length(config)
    return sorted(value for value in found if limit is None or value < limit)


def switch_length(config: PreTrainedConfig) -> int | None:
    """The longest row up to which a row's positions do not depend on the longest row beside it; None without such.

    Rotary positions of the kinds `longrope` (Phi-3, Phi-3.5 and Phi-4-mini at 4,096 tokens) and `dynamic` have other
    frequencies once any row of a batch is longer, and so has each row's own beginning. Callers never go beyond it, or
    put the rows on either side of it in different batches.
    """
    config = _text(config)
    rope = getattr(config, "rope_parameters", None) or {}  # not every configuration has the field
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    found = []
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            found.append(kind.get("original_max_position_embeddings", config.max_position_embeddings))
        elif "dynamic" in str(kind.get("rope_type")):
            found.append(config.max_position_embeddings)
    return min(found, default=None)


def sides(lengths: Sequence[int], switch: int | None) -> list[list[int]]:
    """The numbers of the rows that may share a batch: those up to the switch, and those beyond it; no empty group."""
    if switch is None:
        return [list(range(len(lengths)))]
    groups = [[i for i, n in enumerate(lengths) if (n > switch) == beyond] for beyond in (False, True)]
    return [group for group in groups if group]


def context_length(config: PreTrainedConfig) -> int | None:
    """The longest row that the model has positions for, whatever is beside it; None without a limit."""
    try:
        # Not every configuration has the field, some have it under a name that only attributes resolve, and XLNet's
        # raises an error of its own.
        names = ("max_position_embeddings", "max_seq_len", "max_target_positions")
        limit = next((n for name in names if (n := getattr(_text(config), name, None))), None)
    except NotImplementedError:
        limit = None
    limits = [n for n in (limit, switch_length(config)) if isinstance(n, int) and n > 0]
    return min(limits, default=None)


def probe_lengths(config: PreTrainedConfig) -> list[int]:
    """Lengths of rows that lie on both sides of every threshold of a small model, in ascending order."""
    limit = context_length(config)
    found = {3, SPACING}
    for threshold in inner_thresholds(config):
        found |= {threshold - 1, threshold, threshold + 1, threshold + 6}
    return sorted(n for n in found if n <= (limit or max(found)))


def small_copy(module: PreTrainedModel) -> PreTrainedModel | None:
    """A model of the same class whose thresholds are low, to run the same code past them.

    That is the module itself where it is small and its thresholds are low. Otherwise the copy has random weights in
    fp32, is in eval mode and on the module's device. None where none can be made.
    """
    config = module.config
    few = sum(p.numel() for p in module.parameters()) <= FEW_WEIGHTS
    if few and max(inner_thresholds(config), default=0) <= LOW:
        return module
    attention = str(config._attn_implementation)
    if attention not in ("eager", "sdpa"):
        attention = "sdpa"
    return _small_copy(type(module), _Key(config), attention, str(module.device))  # type: ignore[arg-type]


class _Key:
    """A configuration that a cache finds by its content."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        self.content = type(config).__name__ + config.to_json_string(use_diff=False)

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.content == other.content


@lru_cache(maxsize=8)
def _small_copy(model_class: type[PreTrainedModel], key: _Key, attention: str, device: str) -> PreTrainedModel | None:
    for fewer_layers, narrow in ((True, True), (False, True), (True, False), (False, False)):
        try:
            values = scaled_down(key.config, fewer_layers=fewer_layers, narrow=narrow)
            config = type(key.config).from_dict(values)
            config._attn_implementation = attention
            with torch.device("meta"):
                weights = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
            if weights > MOST_WEIGHTS:
                continue
            model = _drawn(model_class, config, device)
            ids = torch.arange(8, device=device)[None] % config.get_text_config().vocab_size  # (1, 8)
            with torch.no_grad():
                found = model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False)[0]
        except Exception:  # whatever a class says to sizes that it was not written for: the next way is tried
            continue
        if torch.isfinite(found).all():
            return model
    return None


def _drawn(model_class: type[PreTrainedModel], config: PreTrainedConfig, device: str) -> PreTrainedModel:
    """Random weights, wide enough that a wrong mask or position shows; the global random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).float().eval().requires_grad_(False)
        for layer in model.modules():
            if isinstance(layer, nn.Linear | Conv1D):
                layer.weight.normal_(0.0, layer.weight.shape[isinstance(layer, nn.Linear)] ** -0.5)
            elif isinstance(layer, nn.Embedding):
                layer.weight.normal_()
    return model.to(device)


def scaled_down(config: PreTrainedConfig, *, fewer_layers: bool, narrow: bool) -> dict[str, Any]:
    """The configuration's values with thresholds of a dozen tokens and more, in their order, and a small vocabulary.

    Args:
        config: of a trunk.
        fewer_layers: leave two layers of each kind.
        narrow: leave few heads and experts and narrow inner layers. A head keeps its size, on which much depends.
    """
    values = config.to_dict()
    ranks = {value: rank for rank, value in enumerate(sorted({value for _, value in _lengths(values)}), start=1)}
    for path, value in list(_lengths(values)):
        # odd stays odd, even even: some classes take half of it
        _put(values, path, SPACING * ranks[value] + value % 2)
    names = config.attribute_map
    for name, value in values.items():
        if name.startswith("vocab_size") and isinstance(value, int):
            values[name] = min(value, 64)
        elif name.endswith("_token_id") and isinstance(value, int):
            values[name] = min(value, 63)
    for name in ("initializer_range", "init_std"):
        if isinstance(values.get(name), float):
            values[name] = 0.2
    if narrow:
        _narrow(values, names)
    if fewer_layers:
        _fewer_layers(values, names.get("num_hidden_layers", "num_hidden_layers"))
    return values


def _narrow(values: dict[str, Any], names: dict[str, str]) -> None:
    hidden, heads, groups = (
        names.get(name, name) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    if heads in values and hidden in values:
        head_dim = values[hidden] // values[heads]
        before = values.get(groups) or values[heads]
        few = min(before, 2) * min(values[heads] // before, 2)
        values[heads] = few
        values[hidden] = few * max(head_dim, 8)
        if values.get(groups):
            values[groups] = min(before, 2)
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if re.search(r"intermediate_size|ffn_dim|n_inner|ffn_hidden|mlp_size", name):
            values[name] = min(value, 64)
        elif re.search(r"experts_per_tok|moe_topk|top_k_experts", name):
            values[name] = min(value, 2)
        elif re.search(r"(num|n)_(\w+_)?experts$", name):
            values[name] = min(value, 4)
        elif name in ("n_group", "topk_group"):
            values[name] = 1


def _fewer_layers(values: dict[str, Any], count_name: str) -> None:
    """Leave the first two layers of every kind, as far as lists of the configuration tell kinds."""
    count = values[count_name]
    lists = {name: value for name, value in values.items() if isinstance(value, list | tuple) and len(value) == count}
    kinds: dict[str, list[int]] = {}
    for layer in range(count):
        kinds.setdefault(repr([value[layer] for value in lists.values()]), []).append(layer)
    kept = sorted(layer for layers in kinds.values() for layer in layers[:2])
    for name, value in lists.items():
        values[name] = [value[layer] for layer in kept]
    own = values.get("per_layer_config")
    if own:  # what some layers have of their own, by their numbers
        values["per_layer_config"] = {new: own[old] for new, old in enumerate(kept) if old in own}
    values[count_name] = len(kept)
    if "attention_types" in values:  # GPT-Neo's way to say it
        kinds_in_turn = values["attention_types"][0][0]
        values["attention_types"] = [[kinds_in_turn, 1]]
        values[count_name] = len(kinds_in_turn)
        values.pop("attention_layers", None)


def _lengths(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """(path, value) of every length in nested values."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _lengths(value, (*path, name))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from _lengths(value, (*path, index))
    elif isinstance(values, int) and not isinstance(values, bool) and values > 1:
        name = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
        of_text = not any(_OTHER_SENSES.search(str(part)) for part in path)
        if of_text and _LENGTHS.search(name) and not _NO_LENGTHS.search(name):
            yield path, values


def _text(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that a causal language model reads text by."""
    return config.get_text_config(decoder=True)


def _values(config: PreTrainedConfig) -> dict[str, Any]:
    return _text(config).to_dict()


def _put(values: Any, path: tuple[Any, ...], value: int) -> None:
    *outer, last = path
    for part in outer:
        values = values[part]
    values[last] = value
