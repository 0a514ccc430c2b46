"""Loaded: what is known of a file that is followed."""

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

ABSENT: Final = "the file is not there"
"""The problem of a file that does not exist."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """The last good content of a file, and what is wrong with its present one.

    Attributes:
        value: the last good content; None before the first, and after the file went for good.
        problem: why its present content does not count, empty if it does.
    """

    value: T | None = None
    problem: str = ""
