"""Tensors in a file are compared with what they are for, before any is taken over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_gym.files import InputError, read_object

OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad)
"""Found again by name; another must be given again at loading."""


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]], groups: list[dict[str, Any]], *, steps: int
) -> None:
    """Let an optimizer go on from the state in a file.

    Moments of another shape than their parameter's would be handed to fused kernels that do not look, so that the
    process ends without a message.

    Args:
        optimizer: of the policy that the state belongs to.
        state: of each parameter, by its number.
        groups: the groups of parameters, by number, and their settings.
        steps: how many steps it has taken; after the first there is a state.

    Raises:
        InputError: groups or state are not those of the optimizer. Nothing is taken over.
    """
    own = optimizer.state_dict()["param_groups"]
    if [group.get("params") for group in groups] != [group["params"] for group in own]:
        raise InputError(f"expected an optimizer of {len(own)} groups of the policy's parameters, got other groups")
    for group, known in zip(groups, own, strict=True):
        check_names("the optimizer's settings", group, known)
        for name, value in group.items():
            if isinstance(value, int | float) and not math.isfinite(value):
                raise InputError(f"expected a finite {name} of the optimizer, got {value}")
    if steps and not state:
        raise InputError(f"expected an optimizer that has taken {steps} steps, got one without a state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(optimizer, OPTIMIZERS):  # the moments of another optimizer may have any shape
        _check_moments(state, parameters, _moments_of(optimizer))
    placed = {i: {name: _placed(value, parameters[i]) for name, value in own.items()} for i, own in state.items()}
    optimizer.load_state_dict({"state": placed, "param_groups": groups})


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment as its parameter lies: of one that is spread over processes, this process's part."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device_mesh.device_type)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _moments_of(optimizer: torch.optim.Optimizer) -> list[str]:
    """The names under which such an optimizer keeps the state of a parameter: those after a step of another one."""
    parameter = torch.zeros(1, requires_grad=True)
    settings = {name: value for name, value in optimizer.param_groups[0].items() if name in optimizer.defaults}
    another = type(optimizer)([{"params": [parameter], **settings}])  # type: ignore[call-arg]
    parameter.grad = torch.zeros(1)
    another.step()
    return sorted(another.state[parameter])


def _check_moments(state: dict[int, dict[str, Tensor]], parameters: Sequence[Tensor], names: Sequence[str]) -> None:
    if odd := sorted(state.keys() - set(range(len(parameters)))):
        raise InputError(f"expected optimizer states of {len(parameters)} parameters, got one of number {odd[0]}")
    for index, own in state.items():
        check_names(f"the optimizer's state of parameter {index}", own, names)
        for name, value in own.items():
            wanted = torch.zeros(()) if name == "step" else parameters[index]
            check_tensor(f"{name} of parameter {index} in the optimizer", value, wanted)


LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model", "vocab_size")
"""Fields of a config.json that are layers, and those that are a dimension of some weight."""
WHOLE = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
"""Kinds of numbers in a file of safetensors that no weight is of, unless it is quantized."""


def check_declared_sizes(folder: Path, what: str) -> None:
    """The sizes in a folder's config.json are not larger than its weights can be: before anything so large is built.

    A layer has a weight of its own, or a few share one; a width is a dimension of some weight.

    Raises:
        InputError: they are larger, or a weight is of whole numbers and not quantized.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("adapter_model")]
    tensors = [tensor for path in files for tensor in _tensors(path)]
    if not tensors:
        return  # whoever reads the weights says that there are none, or they are an adapter's alone
    try:
        config = read_object(folder / "config.json")
    except InputError:
        return  # whoever reads the configuration says what it is
    whole = [f"{name} of {kind}" for name, kind, _ in tensors if name.endswith("weight") and kind in WHOLE]
    if whole and "quantization_config" not in config:
        raise InputError(f"expected {what} whose weights are real numbers, got {whole[0]}")
    check_config_sizes(config, [shape for _, _, shape in tensors], what)


def check_config_sizes(config: Mapping[str, Any], shapes: Sequence[Sequence[int]], what: str) -> None:
    """The sizes in a model's configuration are not larger than weights of these shapes can be.

    Raises:
        InputError: they are.
    """
    largest = max((size for shape in shapes for size in shape), default=0)
    for part in (config, config.get("text_config")):
        for name, value in part.items() if isinstance(part, dict) else ():
            if name in WIDTHS and isinstance(value, int) and value > largest:
                raise InputError(f"expected {what} whose weights have {name}={value:,}, got at most {largest:,}")
            if name in LAYERS and isinstance(value, int) and value > 4 * len(shapes) + 64:
                raise InputError(f"expected {what} with weights of {name}={value:,}, got {len(shapes):,} tensors")


def _tensors(path: Path) -> list[tuple[str, str, list[int]]]:
    """Of each tensor in a file its name, its kind of number such as "F32", and its shape; no tensor is read."""
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return [(name, tensor.get_dtype(), tensor.get_shape()) for name, tensor in slices.items()]


def check_names(what: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Names in a file are those expected, all of them and no other.

    Raises:
        InputError: they are not.
    """
    missing = sorted(set(expected) - set(given))
    surplus = sorted(set(given) - set(expected))
    if missing or surplus:
        raise InputError(f"expected {what}; missing {missing[:3]}, unexpected {surplus[:3]}")


def check_tensor(what: str, given: Tensor, expected: Tensor, *, finite: bool = True) -> None:
    """A tensor in a file has the shape and the kind of number of the one that it is for.

    Raises:
        InputError: it has not, or a number in it is NaN or infinite where all are to be `finite`.
    """
    if given.shape != expected.shape or given.is_floating_point() != expected.is_floating_point():
        raise InputError(
            f"expected {what} as {tuple(expected.shape)} of {expected.dtype}, got {tuple(given.shape)} of {given.dtype}"
        )
    if finite and given.is_floating_point() and not bool(given.isfinite().all()):
        raise InputError(f"expected finite numbers in {what}, got NaN or infinite ones")
