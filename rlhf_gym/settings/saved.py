"""Settings as JSON: what a run folder's config.json holds."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from rlhf_gym import __version__
from rlhf_gym.files import read_json
from rlhf_gym.settings.agents import AgentSettings, settings_class
from rlhf_gym.settings.run import RunConfig

CONFIG_FILE = "config.json"
FORMAT = 2
"""The form in which settings are saved. Version 1 had `ppo`, for every agent, and `unleashed`."""

T = TypeVar("T")


def read_config(folder: Path) -> RunConfig | None:
    """The settings that a run folder was made with; None for a new folder.

    Raises:
        ValueError: there are some that this version cannot read.
    """
    path = folder / CONFIG_FILE
    saved = read_json(path)
    if saved is None:
        return None
    try:
        written = saved.get("format", 1)
        if written != FORMAT:
            raise ValueError(f"they have format {written}, expected {FORMAT}")
        return from_json(RunConfig, saved["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


def check_format(folder: Path) -> None:
    """Check that a run folder's settings have today's form, whatever agent they are for; other folders pass.

    Raises:
        ValueError: another version wrote them.
    """
    path = folder / CONFIG_FILE
    saved = read_json(path)
    if isinstance(saved, dict) and "rlhf_gym" in saved and saved.get("format", 1) != FORMAT:
        raise _unreadable(path, f"they have format {saved.get('format', 1)}, expected {FORMAT}")


def _unreadable(path: Path, reason: object) -> ValueError:
    return ValueError(
        f"expected the settings of a run in {path}, got some that rlhf_gym {__version__} cannot read ({reason}). "
        "Go on with the version that wrote them, from Python if the agent is your own, or choose another folder"
    )


def saved_config(config: RunConfig) -> dict[str, Any]:
    """The settings in the form that `read_config` reads."""
    return {"rlhf_gym": __version__, "format": FORMAT, "config": to_json(config)}


def to_json(config: Any) -> dict[str, Any]:
    """A record of records as JSON can hold it; an agent's settings say which agent's they are."""
    made: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        made[field.name] = to_json(value) if dataclasses.is_dataclass(value) else json.loads(_dumps(value))
    return {"name": config.name} | made if isinstance(config, AgentSettings) else made


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)


def from_json(kind: type[T], data: dict[str, Any]) -> T:
    """The record that `to_json` came from.

    Raises:
        TypeError: a field that `kind` does not have.
        ValueError: an agent that has not been defined.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - {field.name for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise TypeError(f"unknown settings {', '.join(unknown)}")
    return kind(**{name: _revive(hints[name], value) for name, value in data.items()})


def _revive(hint: Any, value: Any) -> Any:
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if isinstance(value, dict):
        if kinds[0] is AgentSettings:
            return from_json(settings_class(value["name"]), {n: v for n, v in value.items() if n != "name"})
        return from_json(kinds[0], value)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    return value


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
