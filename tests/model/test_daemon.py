"""The table of the daemon's states."""

from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.model.daemon import TRANSITIONS, DaemonEvent, DaemonState, DaemonStatus, together
from vdpa_agent.model.pci import PciAddress


def _reach(start: DaemonState) -> set[DaemonState]:
    seen = {start}
    while True:
        found = {after for (before, _), after in TRANSITIONS.items() if before in seen} | seen
        if found == seen:
            return seen
        seen = found


def test_every_state_can_be_reached_and_every_state_can_be_stopped() -> None:
    assert _reach(DaemonState.IDLE) == set(DaemonState)
    for state in DaemonState:
        assert (state, DaemonEvent.STOP) in TRANSITIONS
        assert DaemonState.STOPPED in _reach(state)


def test_stopped_is_for_good() -> None:
    assert _reach(DaemonState.STOPPED) == {DaemonState.STOPPED}


def test_a_process_that_may_exist_may_end() -> None:
    for state in (DaemonState.STARTING, DaemonState.RUNNING, DaemonState.STOPPING):
        assert (state, DaemonEvent.ENDED) in TRANSITIONS


@given(st.lists(st.sampled_from(list(DaemonEvent))))
def test_no_order_of_events_breaks_the_promises_of_the_table(events: list[DaemonEvent]) -> None:
    state = DaemonState.IDLE
    alive = False
    stopped = False
    for event in events:
        if (state, event) not in TRANSITIONS:
            continue  # it cannot happen here
        before, state = state, TRANSITIONS[state, event]
        alive = alive or event is DaemonEvent.START
        if event is DaemonEvent.ENDED:
            assert alive
            alive = False
        stopped = stopped or event is DaemonEvent.STOP
        # A process is there in exactly these states, and only one at a time.
        assert alive == (state in {DaemonState.STARTING, DaemonState.RUNNING, DaemonState.STOPPING})
        assert not (event is DaemonEvent.START and before in {DaemonState.STARTING, DaemonState.RUNNING})
        if stopped:
            assert state in {DaemonState.STOPPING, DaemonState.STOPPED}


A, B, C = (PciAddress(f"0000:82:00.{function}") for function in range(3))
DIED = DaemonStatus(DaemonState.BACKOFF, last_exit="killed by SIGKILL", last_exit_code=137, restarts=2, backoff_s=4.0)


def test_several_daemons_run_as_long_as_one_of_them_runs_and_answers() -> None:
    runs = DaemonStatus(DaemonState.RUNNING, pid=7, started_at_s=3.0)
    hangs = DaemonStatus(DaemonState.RUNNING, pid=8, started_at_s=2.0, unhealthy="it hangs", crash_loop=True)
    whole = together({A: DIED, B: hangs, C: runs})
    assert (whole.state, whole.unhealthy, whole.pid, whole.started_at_s) == (DaemonState.RUNNING, "", None, 2.0)
    assert (whole.last_exit, whole.last_exit_code) == (f"{A}: killed by SIGKILL", 137)
    assert (whole.restarts, whole.backoff_s, whole.crash_loop) == (2, 4.0, True)
    assert together({A: DIED, B: hangs})[0::8] == (DaemonState.RUNNING, "it hangs")
    assert together({A: DIED}).state is DaemonState.BACKOFF


def test_a_daemon_that_ends_with_its_device_does_not_end_the_whole() -> None:
    for state in (DaemonState.STOPPING, DaemonState.STOPPED, DaemonState.IDLE):
        assert together({A: DaemonStatus(state)}).state is DaemonState.IDLE
    assert together({}) == DaemonStatus()
