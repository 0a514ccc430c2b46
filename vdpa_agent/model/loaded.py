"""Loaded: what is known of a file that is followed."""

from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

ABSENT: Final = "the file is not there"
"""The problem of a file that does not exist."""


class Loaded(NamedTuple, Generic[T]):
    """The last good content of a file, and what is wrong with its present one.

    Attributes:
        value: the last good content; None before the first, and after the file went for good.
        problem: why its present content does not count, or not yet; empty if it does.
        refused: whether it does not count because of what it is: malformed, or unreadable. A file that is absent, and
            one that must stay the same for a while before it counts, are not refused.
    """

    value: T | None = None
    problem: str = ""
    refused: bool = False


@dataclass(slots=True)
class Readings:
    """How often a new content of a file was judged, counted by the one who follows it.

    Attributes:
        loaded: it counts.
        refused: it does not count.
        absent: the file was gone.
        loaded_at_s: when it last counted, in seconds since the epoch; 0: never.
        is_refused: whether the present content is one that does not count.
    """

    loaded: int = 0
    refused: int = 0
    absent: int = 0
    loaded_at_s: float = 0.0
    is_refused: bool = False
