"""The ranges of numbers and the words of a `Literal`, declared with their types and checked where an object is made.

    @dataclass(frozen=True)
    class Settings:
        epochs: Count = 1
        learning_rate: Positive = 1e-5

        def __post_init__(self) -> None:
            check_ranges(self)

    class Learner:
        @check_arguments
        def __init__(self, epochs: Count = 1, learning_rate: Positive | Schedule = 1e-5) -> None:

A number is finite unless its type is `Threshold`. The constraints are those of the package annotated-types, and so are
those of a setting that needs a range of its own: `Annotated[float, Interval(gt=0, lt=1)]`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import fields
from functools import cache, wraps
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt

P = ParamSpec("P")
R = TypeVar("R")

Count = Annotated[int, Ge(1)]
"""A whole number from 1 on."""
Several = Annotated[int, Ge(2)]
"""A whole number from 2 on."""
Whole = Annotated[int, Ge(0)]
"""A whole number from 0 on."""
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
"""A seed, as NumPy takes it."""
Positive = Annotated[float, Gt(0)]
"""A number above 0."""
NonNegative = Annotated[float, Ge(0)]
"""A number from 0 on."""
Share = Annotated[float, Interval(ge=0, le=1)]
"""A number from 0 to 1."""
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
"""A number above 0, at most 1."""
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
"""A number from 0 on, below 1."""
INFINITE = "may be infinite"
"""Marks a type of numbers that may be infinite."""
Threshold = Annotated[float, INFINITE]
"""A number that others are compared with; an infinite one is never reached."""


class Range(NamedTuple):
    """What a numeric setting may be, or a truth value, or one of several words."""

    kind: type
    """Either `int`, `float`, `bool` or `str`."""
    low: Ge | Gt | None = None
    """The lower bound."""
    high: Le | Lt | None = None
    """The upper bound."""
    infinite: bool = False
    """Whether it may be infinite."""
    optional: bool = False
    """Whether it may be None."""
    several: bool = False
    """Whether it is a tuple or a list of such numbers."""
    others: tuple[type, ...] = ()
    """Classes whose instances it may be in a number's place, such as a schedule."""
    words: tuple[Any, ...] = ()
    """Of a `Literal`, its values."""

    def check(self, name: str, value: Any) -> None:
        """Check that a value is such a number or word, or that each of a tuple is.

        Raises:
            ValueError: it is not; the message names the setting.
        """
        if (value is None and self.optional) or (isinstance(value, self.others) and not isinstance(value, str)):
            return
        for number in value if self.several and isinstance(value, tuple | list) else (value,):
            self._check_one(name, number)

    def _check_one(self, name: str, value: Any) -> None:
        if self.words:
            if value not in self.words:
                raise ValueError(f"expected {name} to be one of {self.words}, got {value!r}")
            return
        whole = self.kind is int
        if self.kind is bool:
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"expected True or False as {name}, got {value!r}")
            return
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
            raise ValueError(f"expected {'a whole number' if whole else 'a number'} as {name}, got {value!r}")
        if (
            isinstance(value, numbers.Integral) and not -(2**63) <= int(value) < 2**63
        ):  # no array and no database holds it
            raise ValueError(f"expected a number of 64 bits as {name}, got {value}")
        if not self.holds(value):
            raise ValueError(f"expected {name} {self.bounds()}, got {value}")
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            raise ValueError(f"expected a finite number as {name}, got {value}")

    def holds(self, value: Any) -> bool:
        """Whether a number is within the bounds; NaN is not, where there is one."""
        above = self.low is None or (value >= self.low.ge if isinstance(self.low, Ge) else value > self.low.gt)
        below = self.high is None or (value <= self.high.le if isinstance(self.high, Le) else value < self.high.lt)
        return bool(above and below)

    def bounds(self) -> str:
        """The bounds as in ">= 1" or "in (0, 1]"."""
        limits: list[tuple[str, str, Any]] = []
        if self.low is not None:
            limits.append((">=", "[", self.low.ge) if isinstance(self.low, Ge) else (">", "(", self.low.gt))
        if self.high is not None:
            limits.append(("<=", "]", self.high.le) if isinstance(self.high, Le) else ("<", ")", self.high.lt))
        if len(limits) < 2:
            return " ".join(f"{sign} {_short(limit)}" for sign, _, limit in limits)
        (_, opening, low), (_, closing, high) = limits
        return f"in {opening}{_short(low)}, {_short(high)}{closing}"


def check_ranges(settings: object) -> None:
    """Each number among the fields of a record is in the range that its type declares, each word among its values.

    Raises:
        ValueError: one is not; the message names it.
    """
    kind: Any = type(settings)
    for name, declared in ranges_of(kind).items():
        declared.check(name, getattr(settings, name))


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which first checks each number among its arguments against the range that its type declares.

    A word is checked against the values of its `Literal`, and so are keywords of a `TypedDict` (`Unpack`). It raises a
    ValueError that names the first argument that is wrong.
    """
    signature = inspect.signature(function)
    keywords = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # the function's own error says what is missing or too much
            return function(*args, **kwargs)
        given = {**given, **given.get(keywords, {})}
        for name, declared in argument_ranges(function).items():
            if name in given:
                declared.check(name, given[name])
        return function(*args, **kwargs)

    return checked


@cache
def ranges_of(kind: Any) -> dict[str, Range]:
    """The ranges that the fields of a record declare, by name; other fields are left out."""
    hints = get_type_hints(kind, include_extras=True)
    return _ranges({field.name: hints[field.name] for field in fields(kind)})


@cache
def argument_ranges(function: Callable[..., Any]) -> dict[str, Range]:
    """The ranges that a function's arguments declare, by name; other arguments are left out."""
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    hints.pop("return", None)
    for name, hint in list(hints.items()):
        if get_origin(hint) is Unpack:
            del hints[name]
            hints |= get_type_hints(get_args(hint)[0], include_extras=True)
    return _ranges(hints)


def _ranges(hints: dict[str, Any]) -> dict[str, Range]:
    found = {name: _range(hint) for name, hint in hints.items()}
    return {name: declared for name, declared in found.items() if declared is not None}


def _range(hint: Any, constraints: tuple[Any, ...] = ()) -> Range | None:
    """The range of a type: of a number or word, or of what an optional one or a tuple holds."""
    if get_origin(hint) is Annotated:
        inner, *given = get_args(hint)
        return _range(inner, (*given, *constraints))
    if get_origin(hint) in (Union, UnionType, tuple):
        inside = [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]
        ranges = {part: found for part in inside if (found := _range(part, constraints)) is not None}
        others = tuple(get_origin(part) or part for part in inside if part not in ranges)
        first = next(iter(ranges.values()), None)
        if first is None:
            return None
        return first._replace(
            optional=NoneType in get_args(hint), several=first.several or get_origin(hint) is tuple, others=others
        )
    if get_origin(hint) is Literal:
        return Range(str, words=get_args(hint))
    if hint not in (int, float, bool):
        return None
    flat = [part for given in constraints for part in (given if isinstance(given, GroupedMetadata) else (given,))]
    low = next((part for part in flat if isinstance(part, Ge | Gt)), None)
    high = next((part for part in flat if isinstance(part, Le | Lt)), None)
    return Range(hint, low, high, infinite=INFINITE in flat)


def _short(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)
