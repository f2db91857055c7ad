"""The settings of what watches an agent while it learns: what it looks at, and when alarms fire."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Interval
from tyro.constructors import PrimitiveConstructorSpec

from rlhf_gym.files import InputError, read_object
from rlhf_gym.ranges import INFINITE, Count, Threshold, Whole, check_ranges

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


Factor = Annotated[float, Gt(1), INFINITE]
"""A threshold that says by how much something may grow."""
Rise = Annotated[float, Gt(0), INFINITE]
"""A threshold that says how far something may rise."""


@dataclass(frozen=True)
class AlarmThresholds:
    """When alarms fire. A factor or a rise is measured from the value of the first rollouts.

    Raises:
        ValueError: a value is not a number, or is out of its range.
    """

    baseline: Count = 2
    """Rollouts whose mean is the start that later ones are measured by."""
    window: Count = 3
    """Rollouts whose median is the present value."""
    noise: Threshold = 4.0
    """Standard errors that a change must exceed, however large it is."""
    clear: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    """An alarm ends when the change is below this share of its threshold."""
    reward_rise: Threshold = 0.5
    """A reward has risen when its mean has, by this many standard deviations of the first rollouts' scores."""
    disagreement_factor: Factor = 1.5
    """Ensemble disagreement, relative to the start, while the reward rises."""
    repetition_rise: Rise = 0.15
    """Share of repeated pairs of tokens within a response, above the start, while the reward rises."""
    length_factor: Factor = 1.5
    """Response length, relative to the start, while the reward rises."""
    length_correlation: Threshold = 0.5
    """Rank correlation of score and length from which half of that growth is enough."""
    entropy_share: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    """Share of the start's entropy below which the alarm fires."""
    kl_high: Rise | None = None
    """KL a response, nats. By default twice a controller's target; without a controller `kl_share` decides."""
    kl_share: Rise = 0.75
    """KL a token, as a share of the entropy a token at the start. At 1 the policy writes one typical text of π_ref and
    nothing else; beyond 1 it writes what π_ref would not."""
    kl_low: Threshold = 0.01
    """KL a response, nats, below which nothing has been learned after `patience` rollouts."""
    patience: Count = 20
    """Rollouts after which learning should show."""
    explained_variance: Threshold = 0.01
    """Share of the variance of returns that the critic should explain."""
    critic_patience: Count = 20
    """Rollouts, after the first ones, whose median is the share that the critic explains."""
    missing_eos_rise: Rise = 0.2
    """Share of responses that are cut off, above the start."""
    drift_factor: Factor = 3.0
    """Perplexity of the responses under π_ref, relative to the start."""
    held_out_factor: Factor = 2.5
    """Perplexity on held-out texts, relative to the first measurement."""
    evaluation_drop: Rise = 0.2
    """Fall of a user's evaluation, as a share of the size of its first value."""
    pattern_rise: Rise = 0.15
    """Share of responses with a pattern, above the start."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AlarmThresholds:
        """Thresholds by name; those that are left out keep their defaults.

        Raises:
            ValueError: a name is unknown, or a value is wrong.
        """
        known = [threshold.name for threshold in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ValueError(f"expected thresholds among {', '.join(known)}, got {', '.join(unknown)}")
        return cls(**data)

    @classmethod
    def read(cls, path: str | Path) -> AlarmThresholds:
        """Thresholds from a file of JSON, such as `{"kl_high": 8, "window": 5}`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a JSON object, a name in it is unknown, or a value is wrong; the file is named.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"expected a file of thresholds at {path}, but there is no such file")
        found = read_object(Path(path))
        try:
            return cls.from_json(found)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error


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


LogFormat = Literal["tensorboard", "csv", "wandb"]
LogFormats = Annotated[
    tuple[LogFormat, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME[,NAME…]",
        instance_from_str=lambda words: tuple(name for name in words[0].split(",") if name),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
"""On the command line the names stand between commas."""


ThresholdsFile = Annotated[
    AlarmThresholds,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE.json",
        instance_from_str=lambda words: AlarmThresholds.read(words[0]),
        is_instance=lambda value: isinstance(value, AlarmThresholds),
        str_from_instance=lambda value: ["as they are"],
    ),
]
"""On the command line thresholds are a file."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched while the agent learns, and when an alarm sounds. It changes nothing, unless stop_on is given."""

    patterns: tuple[str, ...] = ()
    """Regular expressions to look for in responses, each as NAME=EXPRESSION; the share that has it is logged."""
    refusals: bool = False
    """Look for English refusals too."""
    held_out: Path | None = None
    """Texts that the policy should not forget, JSONL of {"text"} or one a line; by default the task's held-out
    demonstrations."""
    held_out_texts: Whole = 64
    """How many of them are read; 0 for none."""
    every: Count = 5
    """Iterations between two readings."""
    stop_on: tuple[str, ...] = ()
    """Alarms that end the training, with the policy as it is; not of the run without KL penalty."""
    thresholds: ThresholdsFile = field(default_factory=AlarmThresholds)
    """When alarms fire: a JSON file with those of `AlarmThresholds` that are to be others than by default."""

    def __post_init__(self) -> None:
        check_ranges(self)
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
