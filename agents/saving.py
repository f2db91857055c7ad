"""An agent's state as a zip of safetensors and JSON. Nothing is pickled, so nothing unknown is run on loading."""

from __future__ import annotations

import dataclasses
import inspect
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import safetensors.torch
import torch
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from rlhf_gym import __version__
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.agents.rollout import LengthAdaptive
from rlhf_gym.files import InputError, reading, settle
from rlhf_gym.functional.policy_gradient import CISPO, Clip, SequenceClip
from rlhf_gym.lm.tensors import OPTIMIZERS, check_config_sizes, check_names, check_tensor

FORMAT = 3
"""Of the file. Files of earlier formats had other arguments; those of the first had no number."""
RECORDS = {kind.__name__: kind for kind in (Clip, SequenceClip, CISPO, LengthAdaptive)}
"""Records that may stand for an argument, by their class's name."""
DATA = "data.json"
TENSORS = ".safetensors"


class Kept(Protocol):
    """What is saved with an agent and taken back with an iteration that is cut short: regularisers, callbacks."""

    def state_dict(self) -> dict[str, Any]:
        """The state without weights, for JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict()` gave."""

    def weights(self) -> dict[str, Tensor]:
        """The weights by name."""

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restore what `weights()` gave."""


class AgentState(NamedTuple):
    """What an agent's file holds."""

    data: dict[str, Any]
    """Everything but tensors, for JSON."""
    policy: dict[str, Tensor]
    """The policy's weights by name."""
    optimizer: dict[int, dict[str, Tensor]]
    """State of each parameter, by its number in the optimizer's groups."""
    kept: dict[str, dict[str, Tensor]]
    """Other weights, by what they belong to and by name."""


def write_state(state: AgentState, path: Path) -> None:
    """Write to `path` (`.zip` is added where there is no suffix), atomically."""
    path = path if path.suffix else path.with_suffix(".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.optimizer.items()
        for name, value in values.items()
    }
    tensors = {"policy": state.policy, "optimizer": flat, **{name: own for name, own in state.kept.items() if own}}
    data = {"format": FORMAT, "rlhf_gym": __version__, **state.data}
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(DATA, json.dumps(data, indent=1, default=_plain))
        for name, table in tensors.items():
            content = safetensors.torch.save({key: value.contiguous() for key, value in table.items()})
            archive.writestr(name + TENSORS, content)
    settle(partial, path)


def read_state(path: Path) -> AgentState:
    """What `write_state` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of ours, or of another format.
    """
    path = path if path.is_file() or path.suffix else path.with_suffix(".zip")
    if not path.is_file():
        raise FileNotFoundError(f"expected a saved agent at {path}, but there is no such file")
    expected = [DATA, "policy" + TENSORS, "optimizer" + TENSORS]
    if not zipfile.is_zipfile(path):
        raise InputError(f"expected a zip with {', '.join(expected)}, but {path} is no zip")
    with reading("a saved agent", path), zipfile.ZipFile(path) as archive:
        if not set(expected) <= set(archive.namelist()):
            raise InputError(f"expected a zip with {', '.join(expected)}, {path} holds {', '.join(archive.namelist())}")
        packed = [member for member in archive.infolist() if member.file_size > member.compress_size]
        if packed:  # a few bytes could unpack to gigabytes
            raise InputError(f"expected members stored as they are, {path} holds {packed[0].filename} compressed")
        data = json.loads(archive.read(DATA))
        if data.get("format", 1) != FORMAT:
            raise InputError(
                f"expected an agent's file of format {FORMAT}, {path} has format {data.get('format', 1)} (written by "
                f"rlhf-gym {data['rlhf_gym']}): load it with that version; its save_pretrained folder can be used here"
            )
        names = [name.removesuffix(TENSORS) for name in archive.namelist() if name.endswith(TENSORS)]
        tensors = {name: safetensors.torch.load(archive.read(name + TENSORS)) for name in names}
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.pop("optimizer").items():
            index, name = key.split(".", 1)
            optimizer.setdefault(int(index), {})[name] = value
        missing = sorted(
            {"class", "arguments", "schedules", "policy_class", "policy", "optimizer_groups"} - data.keys()
        )
        if missing:
            raise InputError(f"expected an agent's {DATA} in {path}, got one without {', '.join(missing)}")
    return AgentState(data, tensors.pop("policy"), optimizer, tensors)


# -- schedules -----------------------------------------------------------------------------------------------------


def schedule_to_json(schedule: Any) -> Any:
    """A number, a record or SB3's linear schedule; any other callable must be given again at loading."""
    if type(schedule) in RECORDS.values():
        return {"record": type(schedule).__name__, "fields": dataclasses.asdict(schedule)}
    if isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    if isinstance(schedule, ConstantSchedule):
        return schedule.val
    if isinstance(schedule, LinearSchedule):
        return {"linear": [schedule.start, schedule.end, schedule.end_fraction]}
    return schedule if schedule is None or isinstance(schedule, int | float) else {"callable": repr(schedule)}


def schedule_from_json(name: str, value: Any) -> Any:
    """What `schedule_to_json` described.

    Raises:
        InputError: it is a record of an unknown kind. ValueError: it was a function.
    """
    if isinstance(value, dict) and "record" in value:
        if value["record"] not in RECORDS:
            raise InputError(f"expected {name} to be one of {', '.join(RECORDS)}, got {value['record']}")
        return RECORDS[value["record"]](**value["fields"])
    if isinstance(value, dict) and "linear" in value:
        return LinearSchedule(*value["linear"])
    if isinstance(value, dict):
        raise ValueError(f"{name} was a function ({value['callable']}), which is not saved: pass {name}=… when loading")
    return value


# -- the policy ----------------------------------------------------------------------------------------------------


def policy_to_json(policy: LMActorCriticPolicy) -> dict[str, Any]:
    """The arguments a policy of the same kind is made with, its optimizer's class by name."""
    arguments = policy._get_constructor_parameters()
    for name in ("observation_space", "action_space", "lr_schedule"):
        del arguments[name]
    arguments["optimizer_class"] = policy.optimizer_class.__name__
    return {
        name: {"model_type": value.model_type, **value.to_dict()} if isinstance(value, PretrainedConfig) else value
        for name, value in arguments.items()
    }


def policy_from_json(
    saved: dict[str, Any], extra: dict[str, Any], kind: type[LMActorCriticPolicy], weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The arguments of a policy of this kind as saved, then those given anew.

    Raises:
        InputError: one is no argument that such a policy is saved with, or a model is declared of other sizes than
            those of the policy's weights.
    """
    not_saved = {"self", "use_sde", "observation_space", "action_space", "lr_schedule"}
    check_names("the arguments of a policy", saved, inspect.signature(kind.__init__).parameters.keys() - not_saved)
    arguments = dict(saved)
    with reading("the configuration of the policy's model", "a saved agent"):
        for name, built in (("model", AutoModelForCausalLM), ("critic_model", AutoModel)):
            arguments[name] = None if saved[name] is None else _configuration(saved[name], weights, built)
    if "optimizer_class" not in extra:
        known = {kind.__name__: kind for kind in OPTIMIZERS}
        if saved["optimizer_class"] not in known:
            raise ValueError(
                f"expected the class of the saved optimizer: pass policy_kwargs={{'optimizer_class': "
                f"{saved['optimizer_class']}}} when loading"
            )
        arguments["optimizer_class"] = known[saved["optimizer_class"]]
    return arguments | extra


def _configuration(saved: dict[str, Any], weights: Mapping[str, Tensor], built: Any) -> PretrainedConfig:
    """A saved configuration of a model all of whose weights have the shape of one of these: nothing larger is built."""
    shapes = {tuple(weight.shape) for weight in weights.values()}
    check_config_sizes(saved, [list(weight.shape) for weight in weights.values()], "a policy's model")
    config = AutoConfig.for_model(**saved)
    with torch.device("meta"):  # of no memory
        model = built.from_config(config, dtype=torch.float32)
    odd = [name for name, weight in model.named_parameters() if tuple(weight.shape) not in shapes]
    if odd:
        wanted = tuple(model.get_parameter(odd[0]).shape)
        raise InputError(f"expected a policy's model of the sizes of its weights, got {odd[0]} of {wanted}")
    return config


def named_weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    named = dict(module.named_parameters(remove_duplicate=True))
    persistent = module.state_dict().keys()
    named |= {name: buffer for name, buffer in module.named_buffers() if name in persistent}  # type: ignore[misc]
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def load_named_weights(policy: LMActorCriticPolicy, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name into the policy.

    Raises:
        InputError: one is missing, unknown, of another shape or kind of number, or not finite. Nothing is copied.
    """
    own = dict(policy.named_parameters(remove_duplicate=True))
    persistent = policy.state_dict().keys()
    buffers = {name: buffer for name, buffer in policy.named_buffers() if name in persistent}
    named = {**own, **buffers}
    check_names("the weights of this policy", weights, named)
    for name, value in weights.items():
        check_tensor(f"the weight {name}", value, named[name], finite=name in own)
    policy.own_frozen()
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(value)


def _plain(value: Any) -> Any:
    """Convert NumPy values, paths and dtypes to what JSON can hold."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"cannot save {value!r} of type {type(value).__name__} as JSON")


def device_rng_state(device: torch.device) -> list[int] | None:
    """The state of a device's own random numbers, for JSON; None where it has none beside the CPU's."""
    if device.type in ("cpu", "meta"):
        return None
    which = () if device.index is None else (device,)  # Apple's has one device, and takes no argument
    return list(torch.get_device_module(device).get_rng_state(*which).tolist())


def set_device_rng_state(device: torch.device, state: list[int] | None) -> None:
    """Restore what `device_rng_state` gave; nothing where either device has no random numbers of its own."""
    if state is None or device.type in ("cpu", "meta"):
        return
    which = () if device.index is None else (device,)
    torch.get_device_module(device).set_rng_state(torch.tensor(state, dtype=torch.uint8), *which)
