"""Allowance: how much may be done: a burst, then so much a second."""

from collections.abc import Callable


class Allowance:
    """A budget that fills up with time."""

    __slots__ = ("_burst", "_clock", "_left", "_per_s", "_seen_s")

    def __init__(self, clock: Callable[[], float], *, burst: float, per_s: float) -> None:
        """Starts full.

        Args:
            clock: the time, in seconds.
            burst: the most that there can be.
            per_s: what comes back in a second.
        """
        self._clock = clock
        self._burst = burst
        self._per_s = per_s
        self._left = burst
        self._seen_s = clock()

    def left(self) -> float:
        """What may be spent now; negative where too much was."""
        now_s = self._clock()
        self._left = min(self._burst, self._left + (now_s - self._seen_s) * self._per_s)
        self._seen_s = now_s
        return self._left

    def has(self, amount: float) -> bool:
        """Whether so much may be spent now, or all that there can be."""
        # The clock is read only where too little is left: most questions need not know the time.
        return self._left >= amount or self.left() >= min(amount, self._burst)

    def take(self, amount: float = 1.0) -> bool:
        """Spends an amount if it may be spent now; says whether it was."""
        if not self.has(amount):
            return False
        self._left -= amount
        return True

    def spend(self, amount: float) -> None:
        """Spends an amount, even if less is left; nobody ever owes more than a burst."""
        self._left = max(self.left() - amount, -self._burst)

    def give(self, amount: float) -> None:
        """Gives an amount back, as far as there is room."""
        self._left = min(self._burst, self._left + amount)

    def wait_s(self) -> float:
        """How long nothing may be spent, in seconds; 0 where something is left."""
        return max(0.0, -self.left() / self._per_s)
