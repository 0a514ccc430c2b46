"""Restarts: what the deaths of a daemon so far say about its next start."""

from typing import Final, NamedTuple

HEALTHY_AFTER_S: Final = 600.0
"""A daemon that ran this long has forgotten its earlier deaths."""

CRASH_LOOP_DEATHS: Final = 5
"""So many deaths within CRASH_LOOP_WINDOW_S are a crash loop (the intensity and period of Erlang's supervisors)."""

CRASH_LOOP_WINDOW_S: Final = 60.0


class Restarts(NamedTuple):
    """The deaths that still count.

    Attributes:
        failures: deaths in a row without a healthy time between them.
        deaths_s: when the newest of them were, in seconds of any one clock, oldest first.
        crash_loop: whether they came so close that somebody should look; retries go on all the same.
    """

    failures: int = 0
    deaths_s: tuple[float, ...] = ()
    crash_loop: bool = False

    def after_death(self, now_s: float) -> "Restarts":
        """The daemon died at `now_s`."""
        deaths = (*self.deaths_s, now_s)[-CRASH_LOOP_DEATHS:]
        close = len(deaths) == CRASH_LOOP_DEATHS and deaths[-1] - deaths[0] <= CRASH_LOOP_WINDOW_S
        return self._replace(failures=self.failures + 1, deaths_s=deaths, crash_loop=self.crash_loop or close)


FORGIVEN: Final = Restarts()
"""No death counts any more: what a healthy time leads to."""
