"""Checks that settings make of themselves."""

from __future__ import annotations

from typing import Any, get_args


def at_least(settings: object, least: int, *names: str) -> None:
    """Each of these settings is at least so much, or None.

    Raises:
        ValueError: one is less; the message names it.
    """
    for name in names:
        value = vars(settings)[name]
        if value is not None and not value >= least:
            raise ValueError(f"expected {name} >= {least}, got {value}")


def above(settings: object, limit: float, *names: str) -> None:
    """Each of these settings is above a limit, or None.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name in names:
        value = vars(settings)[name]
        if value is not None and not value > limit:
            raise ValueError(f"expected {name} > {limit:g}, got {value}")


def one_of(settings: object, **allowed: Any) -> None:
    """Each of these settings is one of the values of its `Literal`.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, literal in allowed.items():
        value = vars(settings)[name]
        if value not in get_args(literal):
            raise ValueError(f"expected {name} to be one of {get_args(literal)}, got {value!r}")
