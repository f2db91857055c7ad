"""What gates say when an answer is wrong, and how they ask a student's function.

A gate is a function of the student's answers. It returns nothing if they are right, and raises `LessonError` if not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, NoReturn

import numpy as np
import torch


class LessonError(Exception):
    """An answer is wrong. The message says what is wrong in the lesson's terms, and not what is right."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows the message alone, without the lines of this package that raised it."""
        return [str(self)]


class NotYet(LessonError):
    """An answer is still a blank, or what must be done before has not been done."""


def fail(message: str) -> NoReturn:
    """Say that an answer is wrong."""
    raise LessonError(message)


def require(condition: object, message: str) -> None:
    """Say that an answer is wrong unless `condition` holds."""
    if not condition:
        fail(message)


def number(name: str, answer: Any) -> float:
    """The answer as a finite number.

    Raises:
        LessonError: it is no number, or not finite.
    """
    try:
        value = float(answer)
    except (TypeError, ValueError):
        fail(f"`{name}` must be a number, but it is {_short(answer)}.")
    require(math.isfinite(value), f"`{name}` is {value}. It must be finite.")
    return value


def numbers(name: str, answer: Any, count: int | None = None) -> np.ndarray:
    """The answer as finite numbers, shape (count,), float64.

    Raises:
        LessonError: it is no list of as many numbers, or one of them is not finite.
    """
    if isinstance(answer, torch.Tensor):
        answer = answer.detach()
    try:
        values = np.asarray(answer, dtype=np.float64)  # (count,)
    except (TypeError, ValueError):
        fail(f"`{name}` must be a list of numbers, but it is {_short(answer)}.")
    require(values.ndim == 1, f"`{name}` must be a list of numbers, but its shape is {values.shape}.")
    if count is not None:
        require(len(values) == count, f"`{name}` must have {count} numbers, but it has {len(values)}.")
    require(np.isfinite(values).all(), f"`{name}` has a number that is not finite: {_short(answer)}.")
    return values


def one_number(name: str, result: Any) -> torch.Tensor:
    """What a student's loss returns, a tensor of shape ().

    Raises:
        LessonError: it is no tensor, or has more numbers than one.
    """
    require(
        isinstance(result, torch.Tensor),
        f"`{name}` must return one number, as a tensor, but it returns {_short(result)}.",
    )
    require(
        result.numel() == 1,
        f"`{name}` must return one number, the mean over the batch, but its shape is {tuple(result.shape)}.",
    )
    scalar: torch.Tensor = result.reshape(())
    return scalar


def near(value: float, right: float, tolerance: float = 5e-3) -> bool:
    """Whether a number worked out by hand is right: within `tolerance`, relative to numbers above 1."""
    return abs(value - right) <= tolerance * max(1.0, abs(right))


def explain(
    name: str, value: float, mistakes: Mapping[str, float], otherwise: str, right: float | None = None
) -> NoReturn:
    """Say which known mistake gives this value.

    Args:
        name: of the answer.
        value: the student's, which is not the right one.
        mistakes: what to say of the value that a known mistake gives.
        otherwise: what to say of any other value.
        right: the right number, if a student may round it. One that is rounded too far is told so.
    """
    for message, wrong in mistakes.items():
        if near(value, wrong):
            fail(message)
    if right is not None and any(abs(value - round(right, digits)) < 1e-9 for digits in (2, 3)):
        fail(f"`{name}` is {value:.4g}. It is rounded too far: give more digits.")
    fail(f"`{name}` is {value:.4g}. {otherwise}")


def ask(name: str, function: Any, *arguments: Any) -> Any:
    """What the student's function returns.

    Raises:
        LessonError: it is no function, or it stops with an error, or it returns nothing.
    """
    require(callable(function), f"`{name}` must be a function, but it is {_short(function)}.")
    try:
        result = function(*arguments)
    except Exception as error:
        fail(f"`{name}` stopped with {type(error).__name__}: {error}.")
    require(result is not None, f"`{name}` returns None. Does it end with `return`?")
    return result


def blank_in(answer: Any) -> bool:
    """Whether an answer is a blank, `...`, or a collection or function with one in it."""
    if answer is Ellipsis:
        return True
    if isinstance(answer, Mapping):
        return any(blank_in(value) for value in answer.values())
    if isinstance(answer, list | tuple | set | frozenset):
        return any(blank_in(value) for value in answer)
    return isinstance(answer, Callable) and _code_has_blank(getattr(answer, "__code__", None))  # type: ignore[arg-type]


def _code_has_blank(code: CodeType | None) -> bool:
    if code is None:
        return False
    constants = code.co_consts
    return any(c is Ellipsis or (isinstance(c, CodeType) and _code_has_blank(c)) for c in constants)


def _short(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 60 else f"{text[:57]}..."
