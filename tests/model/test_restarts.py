"""Deaths of a daemon, on virtual time."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.model.backoff import Backoff
from vdpa_agent.model.restarts import FORGIVEN, Restarts


class Life(NamedTuple):
    """A life of the daemon: how long it ran, how long of that it was healthy at its end, and the pause after it."""

    ran_s: float
    healthy_s: float
    pause_s: float
    crash_loop: bool = False


QUICK = [Life(0.1, 0, pause_s) for pause_s in (1, 2, 4, 8)]

HISTORIES = {
    "a first death after 10 s of health is followed by a start at once": [Life(11, 10, 0)],
    "a first death that comes sooner waits": [Life(11, 9.99, 1)],
    "one that never was healthy waits, however long it ran": [Life(500, 0, 1)],
    "sooner deaths wait twice as long each": [*QUICK, Life(50, 0, 16)],
    "deaths of healthy daemons between them change nothing": [
        Life(1, 0, 1),
        Life(20, 20, 0),
        Life(20, 20, 0),
        Life(1, 0, 2),
    ],
    "only 600 s of health forgive": [
        Life(0.1, 0, 1),
        Life(599, 599, 0),
        Life(0.1, 0, 2),
        Life(600, 600, 0),
        Life(0.1, 0, 1),
    ],
    "the fifth death within 60 s is a crash loop": [*QUICK, Life(0.1, 0, 16, crash_loop=True)],
    "so it is where each daemon was healthy": [*[Life(12, 11, 0)] * 4, Life(12, 11, 1, crash_loop=True)],
    "deaths 16 s apart are none": [Life(16, 15, 0)] * 50,
    "in a crash loop healthy daemons wait too": [
        *QUICK,
        Life(0.1, 0, 16, crash_loop=True),
        Life(599, 599, 32, crash_loop=True),
        Life(599, 599, 60, crash_loop=True),
    ],
    "600 s of health end a crash loop": [*QUICK, Life(0.1, 0, 16, crash_loop=True), Life(601, 600, 0), *QUICK[:3]],
    "pauses are capped": [*QUICK, *(Life(0.1, 0, pause_s, crash_loop=True) for pause_s in (16, 32, 60, 60, 60))],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_histories(history: list[Life]) -> None:
    now_s, restarts, seen = 0.0, FORGIVEN, []
    for life in history:
        now_s += life.ran_s
        restarts = restarts.after_death(now_s, life.healthy_s)
        pause_s = restarts.delay_s(Backoff(), 0)
        seen.append(life._replace(pause_s=pause_s, crash_loop=restarts.crash_loop))
        now_s += pause_s
    assert seen == history


def _after(*deaths_s: float) -> Restarts:
    restarts = FORGIVEN
    for death_s in deaths_s:
        restarts = restarts.after_death(death_s, 0)
    return restarts


def test_a_crash_loop_is_five_deaths_within_exactly_a_minute() -> None:
    assert not _after(0, 1, 2, 3).crash_loop
    assert _after(0, 1, 2, 3, 60).crash_loop
    assert not _after(0, 1, 2, 3, 60.1).crash_loop
    assert not _after(0, 1, 2, 3, 100, 101, 102, 103).crash_loop
    assert _after(0, 1, 2, 3, 100, 101, 102, 103, 104).crash_loop


def test_a_daemon_that_lives_on_is_forgiven_meanwhile() -> None:
    restarts = _after(0, 1, 2, 3, 4)
    assert restarts.after_health(599.9) == restarts
    assert restarts.after_health(600) == FORGIVEN


@pytest.mark.parametrize("spread", [-1.0, 0.0, 1.0])
def test_a_daemon_that_always_dies_at_once_is_in_a_crash_loop_at_its_fifth_death(spread: float) -> None:
    now_s, restarts = 0.0, FORGIVEN
    for _ in range(5):
        restarts = restarts.after_death(now_s, 0)
        now_s += restarts.delay_s(Backoff(), spread)
    assert restarts.crash_loop


def test_pauses_have_the_jitter_of_their_backoff() -> None:
    restarts = FORGIVEN.after_death(0, 0)
    assert [restarts.delay_s(Backoff(), spread) for spread in (-1, 1)] == [0.8, 1.2]


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000)), max_size=200))
def test_memory_is_bounded_and_only_healthy_daemons_start_at_once(lives: list[tuple[float, float]]) -> None:
    now_s, restarts = 0.0, FORGIVEN
    for pause_s, healthy_s in lives:
        now_s += pause_s
        restarts = restarts.after_death(now_s, healthy_s)
        assert len(restarts.deaths_s) <= 5
        assert restarts.at_once == (healthy_s >= 10 and not restarts.crash_loop)
