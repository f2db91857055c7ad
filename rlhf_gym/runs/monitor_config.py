"""The settings of what watches the agent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_gym.monitoring.thresholds import REFUSAL, AlarmThresholds, check_alarm_names


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched while the agent learns, and when an alarm sounds. It changes nothing, unless stop_on is given."""

    patterns: tuple[str, ...] = ()
    """Regular expressions to look for in responses, each as NAME=EXPRESSION; the share that has it is logged."""
    refusals: bool = False
    """Look for English refusals too."""
    held_out: Path | None = None
    """Texts that the policy should not forget, as `--ppo.ptx-texts` takes them; by default the task's held-out
    demonstrations."""
    held_out_texts: int = 64
    """How many of them are read; 0 for none."""
    every: int = 5
    """Iterations between two readings."""
    stop_on: tuple[str, ...] = ()
    """Alarms that end the training, with the policy as it is; not of the run without KL penalty."""
    thresholds: AlarmThresholds = field(default_factory=AlarmThresholds)
    """When alarms sound."""

    def __post_init__(self) -> None:
        if self.held_out_texts < 0 or self.every < 1:
            raise ValueError(f"expected held_out_texts >= 0 and every >= 1, got {self.held_out_texts}, {self.every}")
        for pattern in self.patterns:
            name, equals, expression = pattern.partition("=")
            if not (name and equals and expression) or "/" in name:
                raise ValueError(f"expected patterns as NAME=EXPRESSION, got {pattern!r}")
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"expected a regular expression in {pattern!r}: {error}") from error
        names = [pattern.partition("=")[0] for pattern in self.patterns] + ["refusal"] * self.refusals
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"expected each pattern under a name of its own, got {twice[0]!r} twice")
        check_alarm_names(self.stop_on, patterns=self.by_name, evaluations=())

    @property
    def by_name(self) -> dict[str, str]:
        """The regular expressions by their names."""
        named = dict(pattern.split("=", 1) for pattern in self.patterns)
        return ({"refusal": REFUSAL} if self.refusals else {}) | named
