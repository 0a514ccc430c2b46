"""Allowance: how much may be done: a burst, then so much a second."""


class Allowance:
    """A budget that fills up with time, on the caller's clock."""

    __slots__ = ("_burst", "_left", "_per_s", "_seen_s")

    def __init__(self, now_s: float, *, burst: float, per_s: float) -> None:
        """Starts full.

        Args:
            now_s: the time, in seconds of the caller's clock.
            burst: the most that there can be.
            per_s: what comes back in a second.
        """
        self._burst = burst
        self._per_s = per_s
        self._left = burst
        self._seen_s = now_s

    def left(self, now_s: float) -> float:
        """What may be spent now; negative where too much was."""
        self._left = min(self._burst, self._left + (now_s - self._seen_s) * self._per_s)
        self._seen_s = now_s
        return self._left

    def spend(self, amount: float) -> None:
        """Takes an amount, even if less is left."""
        self._left -= amount

    def wait_s(self, now_s: float) -> float:
        """How long nothing may be spent, in seconds; 0 where something is left."""
        return max(0.0, -self.left(now_s) / self._per_s)
