"""A holder for weights that several owners share."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """`Shared(model)`: a handle whose copies, deep ones too, hold the very same object.

    Gymnasium deep-copies the arguments of an environment's specification. A bare model among them would be duplicated
    in silence, weights and all; a handle is not.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __copy__(self) -> Shared[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared[T]:
        return self

    def __repr__(self) -> str:
        return f"Shared({type(self.value).__name__})"
