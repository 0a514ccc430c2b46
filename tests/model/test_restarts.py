"""Deaths of a daemon, on virtual time."""

from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.model.backoff import Backoff
from vdpa_agent.model.restarts import FORGIVEN, Restarts


def _after(*deaths_s: float) -> Restarts:
    restarts = FORGIVEN
    for death_s in deaths_s:
        restarts = restarts.after_death(death_s)
    return restarts


def test_five_deaths_in_a_minute_are_a_crash_loop_and_four_are_not() -> None:
    assert not _after(0, 1, 2, 3).crash_loop
    assert _after(0, 1, 2, 3, 60).crash_loop
    assert not _after(0, 1, 2, 3, 60.1).crash_loop


def test_old_deaths_do_not_count() -> None:
    assert not _after(0, 1, 2, 3, 100, 101, 102, 103).crash_loop
    assert _after(0, 1, 2, 3, 100, 101, 102, 103, 104).crash_loop


def test_a_crash_loop_lasts_until_it_is_forgiven() -> None:
    assert _after(0, 1, 2, 3, 4, 500).crash_loop
    assert not FORGIVEN.crash_loop
    assert FORGIVEN.failures == 0


def test_a_daemon_that_always_dies_at_once_is_in_a_crash_loop_at_its_fifth_death() -> None:
    backoff = Backoff()
    for spread in (-1.0, 0.0, 1.0):
        now_s, restarts = 0.0, FORGIVEN
        for _ in range(5):
            restarts = restarts.after_death(now_s)
            now_s += backoff.delay_s(restarts.failures, spread)
        assert restarts.crash_loop


@given(st.lists(st.floats(0, 1000), max_size=200))
def test_memory_is_bounded_and_failures_are_counted(pauses: list[float]) -> None:
    now_s, restarts = 0.0, FORGIVEN
    for pause in pauses:
        now_s += pause
        restarts = restarts.after_death(now_s)
    assert restarts.failures == len(pauses)
    assert len(restarts.deaths_s) <= 5
