"""What is served, and live and ready, with every reason."""

from types import MappingProxyType
from typing import Any

import pytest

from vdpa_agent.model.daemon import SERVED, DaemonState, DaemonStatus, Device, DeviceState, VhostMode
from vdpa_agent.model.health import ReadyWhen, Role, Standing
from vdpa_agent.model.loaded import ABSENT, Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.served import Facts, serve

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
MAPPED = Loaded(Mapping(MappingProxyType({A: "/v/a", B: "/v/b"})))


def _managed(*states: DeviceState, wanted: Any = (A, B), **daemon: Any) -> Facts:
    devices = {address: Device(address, f"/v/{address}", state) for address, state in zip((A, B), states, strict=False)}
    status = DaemonStatus(**{"state": DaemonState.RUNNING, **daemon})
    return Facts(role=Role.MANAGING, wanted=Loaded(wanted), daemon=status, devices=MappingProxyType(devices))


@pytest.mark.parametrize("state", list(DaemonState))
@pytest.mark.parametrize("device_state", list(DeviceState))
def test_only_a_ready_device_of_a_running_daemon_is_served(state: DaemonState, device_state: DeviceState) -> None:
    usable = device_state in {DeviceState.READY, DeviceState.CONNECTED}
    facts = _managed(device_state, wanted=(A,), state=state)
    expected = {A: f"/v/{A}"} if state is DaemonState.RUNNING and usable else {}
    assert dict(serve(facts).sockets) == expected
    assert not serve(facts._replace(daemon=facts.daemon._replace(unhealthy="it hangs"))).sockets
    assert not serve(facts._replace(stopping=True)).sockets
    assert not serve(facts._replace(devices=MappingProxyType({}))).sockets


def test_a_device_that_left_the_list_is_not_promised_although_the_daemon_still_has_it() -> None:
    served = serve(_managed(DeviceState.READY, DeviceState.CONNECTED, wanted=(A,)))
    assert list(served.sockets) == [A]
    assert served.devices[B].state is DeviceState.REMOVING
    assert not served.is_awaited(B)


def test_a_device_that_came_back_while_it_goes_says_so() -> None:
    served = serve(_managed(DeviceState.REMOVING, wanted=(A,)))
    assert "came back" in served.devices[A].reason
    assert served.is_awaited(A)


def test_an_unhealthy_daemons_devices_are_failed_for_its_reason() -> None:
    served = serve(_managed(DeviceState.READY, wanted=(A,), unhealthy="it hangs"))
    assert served.devices[A][2:4] == (DeviceState.FAILED, "it hangs")
    assert served.health.reasons == ("it hangs",)
    assert served.is_awaited(A)


@pytest.mark.parametrize("state", list(DeviceState))
def test_a_directory_of_the_sockets_that_does_not_answer_is_one_reason_for_all(state: DeviceState) -> None:
    silent = "the socket directory /v does not answer"
    facts = _managed(state, state)._replace(socket_dir=silent)
    served = serve(facts)
    usable = state in {DeviceState.READY, DeviceState.CONNECTED}
    assert not served.sockets
    assert served.health.reasons == (silent,)
    assert served.health.live
    assert served.health.degraded == ()
    assert served.devices[A][2:4] == (DeviceState.FAILED if usable else state, silent)
    broken = {**facts.devices, B: Device(B, "/v/b", DeviceState.FAILED, "bind it to vfio-pci")}
    one = serve(facts._replace(devices=MappingProxyType(broken)))
    assert [check.reason for check in one.health.degraded] == [f"{B} is failed: bind it to vfio-pci"]
    # Front ends open these, each in a directory of its own.
    theirs = {address: device._replace(mode=VhostMode.CLIENT) for address, device in facts.devices.items()}
    assert len(serve(facts._replace(devices=MappingProxyType(theirs))).sockets) == 2 * usable
    # A daemon that does not run is the reason then.
    down = serve(facts._replace(daemon=DaemonStatus(DaemonState.BACKOFF))).health.reasons
    assert down == ("the daemon is in state backoff",)
    # Nobody looks at it where nothing is wanted.
    assert serve(facts._replace(wanted=Loaded(()))).health.ready


def test_a_single_device_is_degraded_and_holds_up_nothing_unless_that_is_asked_for() -> None:
    facts = _managed(DeviceState.READY)
    devices = {**facts.devices, B: Device(B, "", DeviceState.FAILED, "bind it to vfio-pci")}
    facts = facts._replace(devices=MappingProxyType(devices))
    reason = "0000:82:00.3 is failed: bind it to vfio-pci"
    health = serve(facts).health
    assert (health.ready, health.reasons, [check.reason for check in health.degraded]) == (True, (), [reason])
    strict = serve(facts._replace(ready_when=ReadyWhen.ALL_DEVICES)).health
    assert (strict.ready, strict.reasons, strict.degraded) == (False, (reason,), ())
    assert len(strict.unserved) == len(health.unserved) == 1  # how many there are hangs on no option


@pytest.mark.parametrize(
    ("facts", "reasons", "waits"),
    [
        (Facts(), (), "a device list at L, or a mapping at M"),
        (Facts(wanted=Loaded(None, ABSENT), mapping=Loaded(None, ABSENT)), (), "a device list at L, or a mapping at M"),
        (
            Facts(wanted=Loaded(None, "line 9: 'x' is odd", refused=True)),
            ("no device list is loaded: L: line 9: 'x' is odd",),
            "a device list at L, or a mapping at M",
        ),
        (
            Facts(mapping=Loaded(None, "not JSON", refused=True)),
            ("no mapping is loaded: M: not JSON",),
            "a device list at L, or a mapping at M",
        ),
        (_managed(wanted=None, state=DaemonState.IDLE), (), "a device list at L"),
        (_managed(wanted=(), state=DaemonState.IDLE), (), ""),
        (_managed(DeviceState.READY, wanted=(A,)), (), ""),
        (_managed(wanted=(A,), state=DaemonState.STARTING), ("the daemon is in state starting",), ""),
        (
            _managed(wanted=(A,), state=DaemonState.BACKOFF, last_exit="exit code 7: no memory", crash_loop=True),
            ("the daemon is in state backoff, in a crash loop: exit code 7: no memory",),
            "",
        ),
        (Facts(role=Role.SERVING, mapping=MAPPED), (), ""),
        (Facts(stopping=True), ("the agent stops",), "a device list at L, or a mapping at M"),
        (
            Facts(role=Role.SERVING, mapping=MAPPED, standing=Standing("another agent holds it")),
            ("another agent holds it",),
            "",
        ),
    ],
)
def test_ready_and_why_not(facts: Facts, reasons: tuple[str, ...], waits: str) -> None:
    health = serve(facts._replace(pci_list="L", socket_list="M")).health
    assert (health.live, health.ready, health.reasons, health.waiting_for) == (True, not reasons, reasons, waits)


def test_only_what_a_new_container_alone_can_help_is_not_live() -> None:
    health = serve(Facts(standing=Standing("gone", "the directory has no link"))).health
    assert (health.live, health.not_live) == (False, "the directory has no link")


def test_an_external_mapping_is_the_truth() -> None:
    facts = Facts(role=Role.SERVING, mapping=MAPPED, dead=MappingProxyType({"/v/a": "nobody listens"}))
    served = serve(facts)
    assert dict(served.sockets) == {A: "/v/a", B: "/v/b"}
    device = served.devices[A]
    assert (device.state, device.reason, device.remark) == (DeviceState.READY, "", "nobody listens")
    assert served.health.unserved == ()
    assert served.awaited == frozenset()
    assert dict(serve(facts._replace(stopping=True)).sockets) == {A: "/v/a", B: "/v/b"}


def test_where_sockets_are_required_a_dead_one_is_not_promised_and_waited_for() -> None:
    dead = MappingProxyType({"/v/a": "nobody listens"})
    served = serve(Facts(role=Role.SERVING, mapping=MAPPED, dead=dead, require_sockets=True))
    assert dict(served.sockets) == {B: "/v/b"}
    assert served.awaited == frozenset((A,))
    assert served.health.reasons == ("0000:82:00.2 is failed: nobody listens",)
    assert served.health.degraded == ()  # the same is not told twice
    assert (served.devices[A].reason, served.devices[A].remark) == ("nobody listens", "")


def test_a_mapping_counts_only_in_the_role_that_serves_it() -> None:
    assert not serve(Facts(mapping=MAPPED)).sockets
    assert not serve(Facts(role=Role.MANAGING, mapping=MAPPED, wanted=Loaded((A,)))).sockets


def test_before_any_list_every_address_is_waited_for() -> None:
    assert serve(Facts()).awaited is None
    assert serve(Facts(role=Role.MANAGING)).awaited is None
    assert serve(Facts(stopping=True)).awaited == frozenset()


def test_what_left_a_moment_ago_is_waited_for() -> None:
    served = serve(_managed(DeviceState.READY, wanted=(A,))._replace(left=frozenset((B,))))
    assert served.awaited == frozenset((B,))


def _alone(**states: DaemonState) -> Facts:
    """Two devices that were ready, each with a daemon of its own."""
    daemons = {
        A: DaemonStatus(states["a"], last_exit="killed by SIGKILL"),
        B: DaemonStatus(states["b"], last_exit="exit code 1"),
    }
    facts = _managed(DeviceState.READY, DeviceState.CONNECTED, state=DaemonState.IDLE, restarts=3)
    return facts._replace(daemons=MappingProxyType(daemons))


@pytest.mark.parametrize("state", [state for state in DaemonState if state is not DaemonState.RUNNING])
def test_of_two_daemons_the_one_that_is_down_degrades_its_device_alone(state: DaemonState) -> None:
    served = serve(_alone(a=state, b=DaemonState.RUNNING))
    assert dict(served.sockets) == {B: f"/v/{B}"}
    assert served.health.ready
    assert [check.name for check in served.health.degraded] == [f"device {A}"]
    assert served.devices[A].reason
    if state is not DaemonState.IDLE:
        assert "killed by SIGKILL" in served.devices[A].reason
    assert served.is_awaited(A)
    assert served.facts.daemon.state is DaemonState.RUNNING
    assert served.facts.daemon.restarts == 3


def test_without_a_daemon_that_runs_the_agent_is_not_ready() -> None:
    served = serve(_alone(a=DaemonState.BACKOFF, b=DaemonState.STOPPING))
    assert not served.sockets
    assert served.health.reasons == (f"none of 2 daemons serves: the daemon is in state backoff: {B}: exit code 1",)
    assert not serve(_alone(a=DaemonState.RUNNING, b=DaemonState.RUNNING)._replace(stopping=True)).sockets


def test_a_daemon_of_a_device_that_left_does_not_make_the_others_ready() -> None:
    facts = _alone(a=DaemonState.BACKOFF, b=DaemonState.RUNNING)
    assert not serve(facts._replace(wanted=Loaded((A,)))).health.ready


@pytest.mark.parametrize("state", [state for state in DeviceState if state not in SERVED])
@pytest.mark.parametrize("daemon", list(DaemonState))
@pytest.mark.parametrize("wanted", [(A,), ()])
def test_every_device_that_is_not_ready_says_why(
    state: DeviceState, daemon: DaemonState, wanted: tuple[PciAddress, ...]
) -> None:
    assert serve(_managed(state, wanted=wanted, state=daemon)).devices[A].reason


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (DeviceState.WANTED, "the daemon has not been asked for it yet"),
        (DeviceState.STARTING, "the daemon was asked for it and has not answered yet"),
        (DeviceState.FAILED, "the daemon refused it and gave no reason"),
    ],
)
def test_of_what_nothing_else_is_known_its_state_is_told_in_words(state: DeviceState, reason: str) -> None:
    served = serve(_managed(state, wanted=(A,)))
    assert served.devices[A].reason == reason
    assert served.health.degraded[0].reason == f"{A} is {state}: {reason}"


def test_a_device_that_was_never_asked_for_has_the_daemons_reason() -> None:
    served = serve(_managed(wanted=(A,), state=DaemonState.BACKOFF, last_exit="no space"))
    assert served.devices[A].reason == "the daemon is in state backoff: no space"
