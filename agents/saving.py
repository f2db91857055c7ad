"""A token agent as a zip of safetensors and JSON. Nothing is pickled, so nothing unknown is run on loading."""

from __future__ import annotations

import copy
import json
import warnings
import zipfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from rlhf_gym import __version__
from rlhf_gym.agents.kl_control import kl_controller_from
from rlhf_gym.agents.policy import LMActorCriticPolicy

if TYPE_CHECKING:
    from rlhf_gym.agents.base import TokenAlgorithm

Agent = TypeVar("Agent", bound="TokenAlgorithm")

OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad)
"""Found again by name; another must be given again at loading."""
SCHEDULES = ("clip_range", "clip_range_vf")
"""Arguments besides the learning rate that may be functions of the remaining progress."""
REFERENCE, KEPT = "reference", ".kept.safetensors"
"""A moving π_ref among the weights kept beside the policy's, and how their files end."""


# -- what is not weights -----------------------------------------------------------------------------------------------


def host_state(agent: TokenAlgorithm) -> dict[str, Any]:
    """Counters, random states and the prompts' position: what an iteration begins with, besides weights and β."""
    cuda = torch.cuda.get_rng_state(agent.device) if agent.device.type == "cuda" else None
    return {
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "torch_rng": torch.get_rng_state().tolist(),
        "cuda_rng": None if cuda is None else cuda.tolist(),
        "minibatch_rng": agent._rng.bit_generator.state,
        "env": agent.engine.state_dict() if agent.env is not None else None,
        "agent": agent.own_state(),
        "ptx": None if agent.ptx is None else agent.ptx.state_dict(),
        "notes": copy.deepcopy(agent.notes),
        "ep_infos": None if agent.ep_info_buffer is None else list(agent.ep_info_buffer),  # of SB3's rolling means
    }


def restore_host_state(agent: TokenAlgorithm, state: dict[str, Any]) -> None:
    """Put back what `host_state` took. An environment with other prompts begins their order anew, and says so."""
    agent.num_timesteps, agent._n_updates = state["num_timesteps"], state["n_updates"]
    torch.set_rng_state(torch.tensor(state["torch_rng"], dtype=torch.uint8))
    if state["cuda_rng"] is not None and agent.device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(state["cuda_rng"], dtype=torch.uint8), agent.device)
    agent._rng.bit_generator.state = state["minibatch_rng"]
    agent.restore_own_state(state["agent"])
    if agent.ptx is not None and state.get("ptx") is not None:
        agent.ptx.load_state_dict(state["ptx"])
    agent.notes = copy.deepcopy(state.get("notes", {}))
    if state.get("ep_infos") is not None:
        agent.ep_info_buffer = deque(state["ep_infos"], maxlen=agent._stats_window_size)
        agent.ep_success_buffer = deque(maxlen=agent._stats_window_size)  # SB3 looks for both; we never fill this one
    if state["env"] is None or agent.env is None:
        return
    known, given = state["env"]["prompts"]["num_prompts"], agent.engine.num_prompts
    if known == given:
        agent.engine.load_state_dict(state["env"])
        return
    warnings.warn(f"expected an environment with {known} prompts, got {given}: their order begins anew", stacklevel=3)
    state["env"] = None


def check_ptx(agent: TokenAlgorithm) -> None:
    """The texts that learning began with are there, where it is to go on.

    Raises:
        ValueError: they were not given again at loading.
    """
    if agent.ptx is None and agent.began_with_ptx:
        raise ValueError(
            "expected ptx=PretrainingMix(…), as learning began with, got none: the texts are not saved, give them "
            "again when loading (with coef=0 to go on without)"
        )


def schedule_to_json(schedule: Any) -> Any:
    """A number, or SB3's linear schedule; None for any other callable, which must be given again at loading."""
    if isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    if isinstance(schedule, ConstantSchedule):
        return schedule.val
    if isinstance(schedule, LinearSchedule):
        return {"linear": [schedule.start, schedule.end, schedule.end_fraction]}
    return schedule if schedule is None or isinstance(schedule, int | float) else {"callable": repr(schedule)}


def schedule_from_json(name: str, value: Any) -> Any:
    """The schedule `schedule_to_json` described."""
    if isinstance(value, dict) and "linear" in value:
        return LinearSchedule(*value["linear"])
    if isinstance(value, dict):
        raise ValueError(f"{name} was a function ({value['callable']}), which is not saved: pass {name}=… when loading")
    return value


# -- the zip -----------------------------------------------------------------------------------------------------------


def save(agent: TokenAlgorithm, path: Path) -> None:
    """Write the agent to `path` (`.zip` is added where there is no suffix), atomically."""
    path = path if path.suffix else path.with_suffix(".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    optimizer = agent.policy.optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, state in optimizer["state"].items()
        for name, value in state.items()
    }
    constructor = agent.policy._get_constructor_parameters()
    arguments = [name for name in agent.saved_arguments if name not in (*SCHEDULES, "kl_controller")]
    schedules = ["learning_rate", *(name for name in agent.saved_arguments if name in SCHEDULES)]
    data = {
        "class": type(agent).__name__,
        "rlhf_gym": __version__,
        "hyperparameters": {name: vars(agent)[name] for name in arguments},
        "kl_controller": agent.kl_controller.state_dict(),
        "schedules": {name: schedule_to_json(vars(agent)[name]) for name in schedules},
        "policy_class": type(agent.policy).__name__,
        "policy": {
            key: _config_to_json(value) if isinstance(value, PretrainedConfig) else value
            for key, value in constructor.items()
            if key not in ("observation_space", "action_space", "lr_schedule", "optimizer_class")
        },
        "optimizer_class": agent.policy.optimizer_class.__name__,
        "observation_length": agent.observation_space["input_ids"].shape[0],  # type: ignore[index]
        "vocab_size": int(agent.action_space.n),  # type: ignore[attr-defined]
        "optimizer_groups": optimizer["param_groups"],
        "total_timesteps": agent._total_timesteps,
        "state": agent._snapshot if agent._snapshot is not None else host_state(agent),
    }
    more = {REFERENCE: agent.moving_reference.weights()} if agent.moving_reference is not None else {}
    more = {name: weights for name, weights in (more | agent.kept_weights).items() if weights}
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("data.json", json.dumps(data, indent=1, default=_plain))
        archive.writestr("policy.safetensors", safetensors.torch.save(named_weights(agent.policy)))
        archive.writestr("optimizer.safetensors", safetensors.torch.save(tensors))
        for name, weights in more.items():
            archive.writestr(name + KEPT, safetensors.torch.save({k: v.contiguous() for k, v in weights.items()}))
    partial.replace(path)


def load(cls: type[Agent], path: Path, env: Any, device: torch.device | str, overrides: dict[str, Any]) -> Agent:
    """The agent that `save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds another kind of agent, or is none of ours.
    """
    archive = _read(path)
    data = archive.data
    if data["class"] != cls.__name__:
        raise ValueError(f"expected a saved {cls.__name__}, {path} holds a {data['class']}")
    if "policy" not in overrides and data["policy_class"] != LMActorCriticPolicy.__name__:
        raise ValueError(f"expected the class of the saved policy: pass policy={data['policy_class']} when loading")
    seed = overrides.get("seed")
    kwargs = dict(data["hyperparameters"])
    if "kl_controller" in cls.saved_arguments and "kl_controller" not in overrides:
        kwargs["kl_controller"] = kl_controller_from(data["kl_controller"])
    for name, value in data["schedules"].items():
        kwargs[name] = overrides.pop(name) if name in overrides else schedule_from_json(name, value)
    policy_kwargs = _policy_kwargs(data, overrides.pop("policy_kwargs", {}))
    policy = overrides.pop("policy", "LMPolicy")
    kwargs |= {"policy_kwargs": policy_kwargs, "device": device, "_init_setup_model": False} | overrides
    agent = cls(policy, env, **kwargs)  # type: ignore[call-arg]
    if env is None:
        agent.observation_space, agent.action_space = _spaces(data["observation_length"], data["vocab_size"])
        agent.n_envs = 1
    # Random weights are drawn and then replaced; the random state they come from is restored below.
    agent._setup_model()
    load_named_weights(agent.policy, archive.weights)
    agent.policy.optimizer.load_state_dict({"state": archive.optimizer, "param_groups": data["optimizer_groups"]})
    agent.policy.invalidate()
    reference = archive.kept.pop(REFERENCE, {})
    if agent.moving_reference is not None:
        agent.moving_reference.load_weights(reference)
    agent.kept_weights = archive.kept
    agent.began_with_ptx = data["state"].get("ptx") is not None
    agent._total_timesteps = data["total_timesteps"]
    agent._snapshot = data["state"]  # `learn` begins from here, whatever is drawn until then
    restore_host_state(agent, data["state"])
    if seed is not None:
        agent.set_random_seed(seed)
    return agent


class _Archive(NamedTuple):
    data: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    """State of each parameter, by its number in the optimizer's groups."""
    kept: dict[str, dict[str, Tensor]]
    """Other weights, by what they are and by name."""


def _read(path: Path) -> _Archive:
    path = path if path.is_file() or path.suffix else path.with_suffix(".zip")
    if not path.is_file():
        raise FileNotFoundError(f"expected a saved agent at {path}, but there is no such file")
    expected = ["data.json", "policy.safetensors", "optimizer.safetensors"]
    if not zipfile.is_zipfile(path):
        raise ValueError(f"expected a zip with {', '.join(expected)}, but {path} is no zip")
    with zipfile.ZipFile(path) as archive:
        if not set(expected) <= set(archive.namelist()):
            raise ValueError(f"expected a zip with {', '.join(expected)}, {path} holds {', '.join(archive.namelist())}")
        data = json.loads(archive.read("data.json"))
        weights = safetensors.torch.load(archive.read("policy.safetensors"))
        flat = safetensors.torch.load(archive.read("optimizer.safetensors"))
        names = [name for name in archive.namelist() if name.endswith(KEPT)]
        kept = {name.removesuffix(KEPT): safetensors.torch.load(archive.read(name)) for name in names}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        optimizer.setdefault(int(index), {})[name] = value
    return _Archive(data, weights, optimizer, kept)


def _policy_kwargs(data: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The policy's arguments as saved, then those given anew."""
    saved = dict(data["policy"])
    for key in ("model", "critic_model"):
        saved[key] = None if saved[key] is None else AutoConfig.for_model(**saved[key])
    if "optimizer_class" not in extra:
        known = {kind.__name__: kind for kind in OPTIMIZERS}
        if data["optimizer_class"] not in known:
            raise ValueError(
                f"expected the class of the saved optimizer: pass policy_kwargs={{'optimizer_class': "
                f"{data['optimizer_class']}}} when loading"
            )
        saved["optimizer_class"] = known[data["optimizer_class"]]
    return saved | extra


def named_weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    named = dict(module.named_parameters(remove_duplicate=True))
    persistent = module.state_dict().keys()
    named |= {name: buffer for name, buffer in module.named_buffers() if name in persistent}  # type: ignore[misc]
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def load_named_weights(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights by name; every one must be there."""
    own = dict(module.named_parameters(remove_duplicate=True)) | dict(module.named_buffers())
    expected = named_weights(module).keys()
    if set(weights) != set(expected):
        missing, surplus = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
        raise ValueError(f"expected the weights of this policy; missing {missing[:3]}, unexpected {surplus[:3]}")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def _config_to_json(config: PretrainedConfig) -> dict[str, Any]:
    return {"model_type": config.model_type, **config.to_dict()}


def _spaces(length: int, vocab_size: int) -> tuple[Any, Any]:
    observation = spaces.Dict(
        input_ids=spaces.Box(0, vocab_size - 1, (length,), np.int64),
        attention_mask=spaces.Box(0, 1, (length,), np.int8),
    )
    return observation, spaces.Discrete(vocab_size)


def _plain(value: Any) -> Any:
    """NumPy scalars and the like, for JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"cannot save {value!r} of type {type(value).__name__} as JSON")
