"""Restarts: what the deaths of a daemon so far say about its next start."""

from typing import Final, NamedTuple

from vdpa_agent.model.backoff import Backoff

HEALTHY_S: Final = 10.0
"""A daemon that had been healthy for so long is started again at once."""

FORGIVEN_AFTER_S: Final = 600.0
"""A daemon that has been healthy for so long has its earlier deaths forgiven."""

CRASH_LOOP_DEATHS: Final = 5
"""So many deaths within CRASH_LOOP_WINDOW_S are a crash loop (the intensity and period of Erlang's supervisors)."""

CRASH_LOOP_WINDOW_S: Final = 60.0


class Restarts(NamedTuple):
    """The deaths that still count.

    Attributes:
        failures: deaths whose next start had or has to wait, since the last ones were forgiven.
        deaths_s: when the newest deaths were, in seconds of any one clock, oldest first.
        crash_loop: whether they came so close that somebody should look; retries go on all the same.
        at_once: whether the next start need not wait.
    """

    failures: int = 0
    deaths_s: tuple[float, ...] = ()
    crash_loop: bool = False
    at_once: bool = True

    def after_health(self, healthy_s: float) -> "Restarts":
        """The daemon has been healthy for so long: its earlier deaths are forgiven or not."""
        return FORGIVEN if healthy_s >= FORGIVEN_AFTER_S else self

    def after_death(self, now_s: float, healthy_s: float) -> "Restarts":
        """The daemon died.

        Args:
            now_s: when.
            healthy_s: how long it had been healthy without a break when it died, 0 for one that never was.
        """
        before = self.after_health(healthy_s)
        deaths = (*before.deaths_s, now_s)[-CRASH_LOOP_DEATHS:]
        close = len(deaths) == CRASH_LOOP_DEATHS and deaths[-1] - deaths[0] <= CRASH_LOOP_WINDOW_S
        crash_loop = before.crash_loop or close
        at_once = healthy_s >= HEALTHY_S and not crash_loop
        return Restarts(before.failures + (not at_once), deaths, crash_loop, at_once)

    def delay_s(self, backoff: Backoff, spread: float) -> float:
        """The pause before the next start, in seconds.

        Args:
            backoff: how long the first pause is, and how pauses grow.
            spread: where in the jitter's range to be, -1 to 1.
        """
        return 0.0 if self.at_once else backoff.delay_s(self.failures, spread)


FORGIVEN: Final = Restarts()
"""No death counts: before the first one, and after a long healthy time."""
