"""How long to wait before the next try."""

from typing import NamedTuple


class Backoff(NamedTuple):
    """An exponential delay with a cap and jitter.

    Attributes:
        first_s: the delay before the first retry, in seconds.
        cap_s: no delay is longer than this, but for its jitter.
        factor: each delay is this many times the one before.
        jitter: the share by which a delay varies either way, 0 to 1.
    """

    first_s: float = 1.0
    cap_s: float = 60.0
    factor: float = 2.0
    jitter: float = 0.2

    def delay_s(self, failures: int, spread: float) -> float:
        """The delay after `failures` failures in a row (from 1), in seconds.

        Args:
            failures: how many tries failed in a row, at least 1.
            spread: where in the jitter's range to be, -1 to 1; random in use, fixed in tests.
        """
        # The exponent is capped too: 2.0 ** 1100 overflows.
        plain = min(self.cap_s, self.first_s * self.factor ** min(failures - 1, 64))
        return plain * (1 + self.jitter * spread)
