"""When alarms fire, and what they are called. This module imports no model code, so that settings can be made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ALARM_NAMES = (
    "disagreement",
    "repetition",
    "length",
    "entropy",
    "kl_high",
    "kl_low",
    "critic",
    "missing_eos",
    "drift",
    "held_out",
)
"""The alarms that every run has; `pattern/NAME` and `evaluation/NAME` come with what the user watches."""

REFUSAL = (
    r"(?i)\b(I('m|’m| am) (sorry|unable|not able)|I (can('t|not|’t)|won('t|’t)|will not)\b|"
    r"as an? (AI|(large )?language model))"
)
"""A pattern for English refusals, for `RLHFMonitor(patterns={"refusal": REFUSAL})`. Look at what it finds in yours."""


@dataclass(frozen=True)
class AlarmThresholds:
    """When alarms fire. A factor or a rise is measured from the value of the first rollouts.

    Raises:
        ValueError: a value is not a number, or is out of its range.
    """

    baseline: int = 2
    """Rollouts whose mean is the start that later ones are measured by."""
    window: int = 3
    """Rollouts whose median is the present value."""
    noise: float = 4.0
    """Standard errors that a change must exceed, however large it is."""
    clear: float = 0.5
    """An alarm ends when the change is below this share of its threshold."""
    reward_rise: float = 0.5
    """A reward has risen when its mean has, by this many standard deviations of the first rollouts' scores."""
    disagreement_factor: float = 1.5
    """Ensemble disagreement, relative to the start, while the reward rises."""
    repetition_rise: float = 0.15
    """Share of repeated pairs of tokens within a response, above the start, while the reward rises."""
    length_factor: float = 1.5
    """Response length, relative to the start, while the reward rises."""
    length_correlation: float = 0.5
    """Rank correlation of score and length from which half of that growth is enough."""
    entropy_share: float = 0.3
    """Share of the start's entropy below which the alarm fires."""
    kl_high: float | None = None
    """KL a response, nats. By default twice a controller's target; without a controller `kl_share` decides."""
    kl_share: float = 0.75
    """KL a token, as a share of the entropy a token at the start. At 1 the policy writes one typical text of π_ref and
    nothing else; beyond 1 it writes what π_ref would not."""
    kl_low: float = 0.01
    """KL a response, nats, below which nothing has been learned after `patience` rollouts."""
    patience: int = 20
    """Rollouts after which learning should show."""
    explained_variance: float = 0.01
    """Share of the variance of returns that the critic should explain."""
    critic_patience: int = 20
    """Rollouts, after the first ones, whose median is the share that the critic explains."""
    missing_eos_rise: float = 0.2
    """Share of responses that are cut off, above the start."""
    drift_factor: float = 3.0
    """Perplexity of the responses under π_ref, relative to the start."""
    held_out_factor: float = 2.5
    """Perplexity on held-out texts, relative to the first measurement."""
    evaluation_drop: float = 0.2
    """Fall of a user's evaluation, as a share of the size of its first value."""
    pattern_rise: float = 0.15
    """Share of responses with a pattern, above the start."""

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_number(field.name, whole=field.type == "int", optional="None" in str(field.type))
        at_least_1 = ("baseline", "window", "patience", "critic_patience")
        above_1 = ("disagreement_factor", "length_factor", "drift_factor", "held_out_factor")
        above_0 = ("repetition_rise", "kl_high", "kl_share", "missing_eos_rise", "evaluation_drop", "pattern_rise")
        for name, value in vars(self).items():
            if name in at_least_1 and value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
            if name in above_1 and not value > 1:
                raise ValueError(f"expected {name} > 1, got {value}")
            if name in above_0 and value is not None and not value > 0:
                raise ValueError(f"expected {name} > 0, got {value}")
        if not (0 < self.entropy_share < 1 and 0 <= self.clear < 1):
            raise ValueError(
                f"expected entropy_share in (0, 1) and clear in [0, 1), got {self.entropy_share}, {self.clear}"
            )

    def _check_number(self, name: str, *, whole: bool, optional: bool) -> None:
        value = vars(self)[name]
        if value is None and optional:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        if not number or (whole and not isinstance(value, int)):
            raise ValueError(f"expected {'a whole number' if whole else 'a number'} as {name}, got {value!r}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AlarmThresholds:
        """Thresholds by name; those that are left out keep their defaults.

        Raises:
            ValueError: a name is unknown, or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ValueError(f"expected thresholds among {', '.join(known)}, got {', '.join(unknown)}")
        return cls(**data)

    @classmethod
    def read(cls, path: str | Path) -> AlarmThresholds:
        """Thresholds from a file of JSON, such as `{"kl_high": 8, "window": 5}`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a JSON object, a name in it is unknown, or a value is wrong; the file is named.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError(f"expected a JSON object of thresholds, got {text.strip()[:60]}")
            return cls.from_json(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def check_alarm_names(names: Sequence[str], *, patterns: Iterable[str], evaluations: Iterable[str]) -> tuple[str, ...]:
    """Names of alarms, as given.

    Raises:
        ValueError: there is no such alarm.
    """
    if isinstance(names, str):
        raise ValueError(f"expected a sequence of alarms, got the text {names!r}")
    known = [*ALARM_NAMES, *(f"pattern/{name}" for name in patterns), *(f"evaluation/{name}" for name in evaluations)]
    for name in names:
        if name not in known:
            raise ValueError(f"expected one of the alarms {', '.join(known)}, got {name!r}")
    return tuple(names)
