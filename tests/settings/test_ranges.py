"""Every number among the settings: what means nothing is refused where the record is made, in one message."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt

from rlhf_gym import settings
from rlhf_gym.settings import RunConfig
from rlhf_gym.settings.agents import AGENTS
from rlhf_gym.settings.checks import Count, Positive, Range, Share, Threshold, check_ranges, ranges_of
from rlhf_gym.settings.stages import AdversarialConfig

MAY_BE_NEGATIVE = {
    "annotator_length_bias",
    "annotator_word_bias",
    "noise",
    "reward_rise",
    "length_correlation",
    "kl_low",
    "explained_variance",
    "missing_eos_penalty",
    "length_penalty",
    "repetition_penalty",
    "verifier_coef",
    "clip_score",
}
MAY_BE_INFINITE = {setting.name for setting in fields(settings.AlarmThresholds)}


def numbers(record: Any, put: Callable[[Any], Any], path: str) -> Iterator[tuple[str, str, Any, Callable[[Any], Any]]]:
    """The numeric settings of a record and of those in it: their path, name, value, and how to make it another."""
    declared = ranges_of(type(record))
    for setting in fields(record):
        value = getattr(record, setting.name)

        def change(new: Any, name: str = setting.name) -> Any:
            return put(replace(record, **{name: new}))

        if is_dataclass(value):
            yield from numbers(value, change, f"{path}{setting.name}.")
        elif setting.name in declared:
            yield f"{path}{setting.name}", setting.name, value, change


RECORDS = [("", RunConfig()), ("adversarial.", AdversarialConfig()), *((f"{kind.name}.", kind()) for kind in AGENTS)]
NUMBERS = [found for path, record in RECORDS for found in numbers(record, lambda made: made, path)]


def case(value: Any, number: Any) -> Any:
    return (number, number) if isinstance(value, tuple) else number


def meaningless(name: str) -> list[Any]:
    """What a setting of this name may not be."""
    found: list[Any] = [math.nan, "1", True]
    if name not in MAY_BE_INFINITE:
        found += [math.inf, -math.inf]
    if name not in MAY_BE_NEGATIVE:
        found += [-math.inf, -1, -(10**30)]
    return found


@pytest.mark.parametrize(("name", "value", "change"), [n[1:] for n in NUMBERS], ids=[n[0] for n in NUMBERS])
def test_what_means_nothing_is_refused_and_the_setting_is_named(name, value, change):
    for number in meaningless(name):
        with pytest.raises(ValueError, match=rf"expected .*\b{name}\b"):
            change(case(value, number))


@pytest.mark.parametrize(("name", "value", "change"), [n[1:] for n in NUMBERS], ids=[n[0] for n in NUMBERS])
def test_zero_and_huge_numbers_are_taken_or_refused_in_one_message(name, value, change):
    messages = []
    for number in (0, 10**30, 1e300):
        try:
            change(case(value, number))
        except ValueError as error:
            messages.append(str(error))
    assert [message for message in messages if not message.startswith("expected ")] == []


def test_the_settings_have_numbers_in_every_record():
    assert len(NUMBERS) > 150


@dataclass
class Some:
    """A record with every kind of number."""

    count: Count = 1
    rate: Positive | None = None
    shares: tuple[Share, ...] = ()
    part: Annotated[float, Interval(gt=0, lt=0.5)] = 0.25
    limit: Threshold = math.inf
    plain: float = -1.5
    text: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)


def test_ranges_are_read_from_the_types():
    assert ranges_of(Some) == {
        "count": Range(int, Ge(1)),
        "rate": Range(float, Gt(0), optional=True),
        "shares": Range(float, Ge(0), Le(1)),
        "part": Range(float, Gt(0), Lt(0.5)),
        "limit": Range(float, infinite=True),
        "plain": Range(float),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "expected count >= 1, got 0"),
        ({"count": 1.5}, "expected a whole number as count, got 1.5"),
        ({"count": None}, "expected a whole number as count, got None"),
        ({"rate": 0}, "expected rate > 0, got 0"),
        ({"rate": math.inf}, "expected a finite number as rate, got inf"),
        ({"rate": "fast"}, "expected a number as rate, got 'fast'"),
        ({"shares": (0.5, 1.5)}, r"expected shares in \[0, 1\], got 1.5"),
        ({"part": 0.5}, r"expected part in \(0, 0.5\), got 0.5"),
        ({"limit": math.nan}, "expected a finite number as limit, got nan"),
        ({"plain": math.nan}, "expected a finite number as plain, got nan"),
    ],
)
def test_the_message_says_what_was_expected_and_got(given, message):
    with pytest.raises(ValueError, match=message):
        Some(**given)


def test_numpys_numbers_are_numbers():
    assert Some(count=np.int64(2), plain=np.float32(0.5)).count == 2
