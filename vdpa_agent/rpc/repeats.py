"""Lines that anybody can cause again and again: some go to the log, the others are counted for the next one."""

from collections.abc import Callable, Hashable
from typing import Final

from vdpa_agent.model.allowance import Allowance

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
        self._all = Allowance(clock, burst=of_all, per_s=of_all / 10)
        self._allowances: dict[Hashable, Allowance] = {}
        self._counts: dict[Hashable, int] = {}

    def due(self, kind: Hashable) -> int:
        """Counts one more of a kind; how many there were since its last line if it is to be logged, else 0."""
        allowance = self._allowances.get(kind)
        if allowance is None:
            if len(self._allowances) >= _KINDS_MAX:
                self._allowances.clear()
                self._counts.clear()
            allowance = self._allowances[kind] = Allowance(self._clock, burst=self._at_once, per_s=1 / self._every_s)
        count = self._counts.get(kind, 0) + 1
        if allowance.take() and self._all.take():
            self._counts.pop(kind, None)
            return count
        self._counts[kind] = count
        return 0
