"""Handled: how the gRPC calls so far ended, and how long they took."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from grpclib.const import Cardinality, Status

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 4.0, 10.0)
"""The upper bounds of the histogram, in seconds; the last but one is for calls that were held."""

UNKNOWN: Final = "/unknown/unknown"
"""What stands for all methods that are not here: peers must not choose what is counted."""


class Call(NamedTuple):
    """One call that has ended.

    Attributes:
        path: its method, one of those that are here.
        status: how it ended.
        seconds: how long it took.
        trace: the headers that place it in a trace, by their W3C names; empty if it is in none.
    """

    path: str
    status: Status
    seconds: float
    trace: Mapping[str, str]


class Handled:
    """Counts calls by method and status.

    Attributes:
        methods: the methods that are here, by their path.
        codes: how many calls ended with which status, by path.
        times: of the unary methods, how many calls took how long, one number for each bound and one for more.
        seconds: of the unary methods, how long all their calls took together.
        watcher: is told of each call to a method that is here; None: nobody is.
    """

    def __init__(self, methods: Mapping[str, Cardinality]) -> None:
        self.methods = methods
        self.codes: Counter[tuple[str, Status]] = Counter({(path, Status.OK): 0 for path in methods})
        unary = [path for path, cardinality in methods.items() if cardinality is Cardinality.UNARY_UNARY]
        self.times = {path: [0] * (len(BOUNDS_S) + 1) for path in unary}
        self.seconds = dict.fromkeys(unary, 0.0)
        self.watcher: Callable[[Call], None] | None = None

    def add(self, path: str, status: Status, seconds: float, trace: Mapping[str, str]) -> None:
        """Counts one call that ended."""
        self.codes[path, status] += 1
        times = self.times.get(path)
        if times is not None:
            times[bisect_left(BOUNDS_S, seconds)] += 1
            self.seconds[path] += seconds
        if self.watcher is not None:
            self.watcher(Call(path, status, seconds, trace))

    def add_unknown(self) -> None:
        """Counts one call to a method that is not here."""
        self.codes[UNKNOWN, Status.UNIMPLEMENTED] += 1
