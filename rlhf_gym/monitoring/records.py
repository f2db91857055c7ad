"""The monitor's records: what was measured at a rollout, kept as a line of JSON, so that alarms can be told anew."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KLToken:
    """One token's part of a rollout's KL."""

    text: str
    """The token, as the tokenizer shows it."""
    count: int
    """How often it was written."""
    nats: float
    """Σ log π − log π_ref over its occurrences, for each response of the rollout."""
    share: float
    """Its part of the rollout's KL; may exceed 1 where other tokens lower the sum."""


@dataclass(frozen=True)
class MonitorRecord:
    """What was measured at one rollout."""

    rollout: int
    """Counts from 1."""
    tokens: int
    """Response tokens generated until its end."""
    figures: dict[str, float]
    """Each quantity by its name, without the `monitor/` that the logger puts before it."""
    errors: dict[str, float] = field(default_factory=dict)
    """Standard errors of those that are means over episodes."""
    kl_coef: float | None = None
    """β."""
    kl_target: float | None = None
    """The KL a controller steers to, in nats a response; None without one."""
    kl_tokens: tuple[KLToken, ...] = ()
    """The tokens that carry most of the KL, the first one most."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MonitorRecord:
        """What `to_json` wrote."""
        return cls(**data | {"kl_tokens": tuple(KLToken(**token) for token in data["kl_tokens"])})

    def to_json(self) -> dict[str, Any]:
        """For one line of JSON."""
        return asdict(self)


def read_records(path: Path, *, tokens: int | None = None) -> list[MonitorRecord]:
    """The records of a file, up to so many tokens; none where there is no file. A line that was cut off is left out."""
    if not path.is_file():
        return []
    with path.open(newline="\n", encoding="utf-8") as file:
        found = [MonitorRecord.from_json(json.loads(line)) for line in file if line.endswith("\n")]
    return [record for record in found if tokens is None or record.tokens <= tokens]


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write a file of JSON lines, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
