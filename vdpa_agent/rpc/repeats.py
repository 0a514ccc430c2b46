"""Lines that anybody can cause again and again: some go to the log, the others are counted for the next one."""

from collections.abc import Callable, Hashable
from typing import Final

from vdpa_agent.rpc.limits import TokenBucket

_KINDS_MAX: Final = 4_096
"""Kinds that are remembered; beyond, those that were seen last are forgotten with the rest."""


class Repeats:
    """Decides which of many lines of a kind are logged."""

    def __init__(self, clock: Callable[[], float], *, at_once: int, every_s: float, of_all: int) -> None:
        """Nothing was logged yet.

        Args:
            clock: the time, in seconds.
            at_once: lines of a kind that are logged without a pause.
            every_s: after how long one more of the kind may be, in seconds.
            of_all: lines of all kinds that are logged without a pause, and in every ten seconds.
        """
        self._clock = clock
        self._at_once = at_once
        self._every_s = every_s
        self._all = TokenBucket(of_all / 10, of_all, clock)
        self._buckets: dict[Hashable, TokenBucket] = {}
        self._counts: dict[Hashable, int] = {}

    def due(self, kind: Hashable) -> int:
        """Counts one more of a kind; how many there were since its last line if it is to be logged, else 0."""
        bucket = self._buckets.get(kind)
        if bucket is None:
            if len(self._buckets) >= _KINDS_MAX:
                self._buckets.clear()
                self._counts.clear()
            bucket = self._buckets[kind] = TokenBucket(1 / self._every_s, self._at_once, self._clock)
        count = self._counts.get(kind, 0) + 1
        if bucket.take() and self._all.take():
            self._counts.pop(kind, None)
            return count
        self._counts[kind] = count
        return 0
