"""The plan for one device, step by step."""

import pytest

from vdpa_agent.model.daemon import NOTHING_KNOWN, Device, DeviceFacts, DeviceState, VhostMode
from vdpa_agent.model.front_end import CONNECTED, NO_FRONT_END, configured
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.plan import Record, Step, next_look_s, next_step

CONFIGURED = configured(2)
NEW = Record(Device(PciAddress("0000:82:00.2"), "/v/vdpa-0", DeviceState.WANTED))
SERVED = NEW.asked().served(DeviceFacts("mlx5"))
USED = SERVED.used(CONFIGURED)
DRAINING = USED.leaving(30.0, "it left the list")
DEAD = SERVED.refused("nobody listens", 10.0, 0.0)


@pytest.mark.parametrize(
    ("record", "wanted", "now_s", "step"),
    [
        (NEW, True, 0.0, Step.ADD),
        (NEW, False, 0.0, Step.FORGET),
        (SERVED, True, 0.0, Step.NOTHING),
        (SERVED, False, 0.0, Step.REMOVE),
        (USED, True, 0.0, Step.NOTHING),
        (USED, False, 0.0, Step.DRAIN),
        (DRAINING, False, 29.9, Step.NOTHING),
        (DRAINING, False, 30.0, Step.REMOVE),
        (DRAINING, True, 0.0, Step.RESTORE),
        (DRAINING.used(NO_FRONT_END), False, 0.0, Step.REMOVE),
        (NEW.refused("no", 10.0, 0.0), True, 10.9, Step.NOTHING),
        (NEW.refused("no", 10.0, 0.0), True, 11.0, Step.ADD),
        (DEAD, True, 10.9, Step.NOTHING),
        (DEAD, True, 11.0, Step.RENEW),
        (DEAD.given_up(), True, 11.0, Step.ADD),
        (USED.refused("nobody listens", 10.0, 0.0), True, 99.0, Step.NOTHING),
        (USED.refused("nobody listens", 10.0, 0.0).used(NO_FRONT_END), True, 99.0, Step.RENEW),
        (SERVED.leaving(None, "left").refused("busy", 10.0, 0.0), False, 10.9, Step.NOTHING),
        (SERVED.leaving(None, "left").refused("busy", 10.0, 0.0), False, 11.0, Step.REMOVE),
        (SERVED.leaving(None, "left").given_up(), True, 0.0, Step.ADD),
        (USED.lost("the daemon ended"), True, 0.0, Step.ADD),
        (NEW.moved(VhostMode.CLIENT, "/d/vhost.sock"), True, 0.0, Step.ADD),
        (SERVED.moved(VhostMode.CLIENT, "/d/vhost.sock"), True, 0.0, Step.RENEW),
        (SERVED.moved(VhostMode.SERVER, "/v/vdpa-0"), True, 0.0, Step.NOTHING),
        (USED.moved(VhostMode.CLIENT, "/d/vhost.sock"), True, 0.0, Step.NOTHING),
        (DRAINING.moved(VhostMode.CLIENT, "/d/vhost.sock"), True, 0.0, Step.RESTORE),
        (DEAD.moved(VhostMode.CLIENT, "/d/vhost.sock"), True, 10.0, Step.RENEW),
        (SERVED.leaving(None, "left").moved(VhostMode.CLIENT, "/d/vhost.sock"), True, 0.0, Step.RENEW),
    ],
)
def test_next_step(record: Record, *, wanted: bool, now_s: float, step: Step) -> None:
    assert next_step(record, wanted=wanted, now_s=now_s) is step


def test_a_socket_that_is_to_be_another_one_stays_as_long_as_a_front_end_uses_it() -> None:
    assert USED.moved(VhostMode.CLIENT, "/d/vhost.sock") is USED
    left = USED.used(NO_FRONT_END).moved(VhostMode.CLIENT, "/d/vhost.sock")
    assert (left.device.mode, left.device.socket, left.device.state) == (
        VhostMode.CLIENT,
        "/d/vhost.sock",
        DeviceState.WANTED,
    )


def test_the_mode_of_a_device_outlives_its_daemon() -> None:
    client = NEW.moved(VhostMode.CLIENT, "/d/vhost.sock")
    assert client.lost("the daemon ended").device == client.device._replace(reason="the daemon ended")


def test_states() -> None:
    assert NEW.asked().device.state is DeviceState.STARTING
    assert (SERVED.device.state, SERVED.added, SERVED.device.facts.driver) == (DeviceState.READY, True, "mlx5")
    assert USED.device.state is DeviceState.CONNECTED
    assert USED.used(NO_FRONT_END).device.state is DeviceState.READY
    assert USED.device.front_end == CONFIGURED
    assert (USED.in_use, SERVED.used(CONNECTED).in_use, SERVED.in_use) == (True, True, False)
    assert USED.used(CONNECTED).device == USED.device._replace(front_end=CONNECTED)
    assert DRAINING.used(CONNECTED).drained_s == DRAINING.drained_s
    counted = USED._replace(device=USED.device._replace(refusals={"form": 1}))
    assert counted.given_up().device == USED.device._replace(front_end=NO_FRONT_END)
    assert DEAD.used(CONFIGURED).device.state is DeviceState.FAILED
    assert DEAD.served().device == SERVED.device
    assert DRAINING.refused("busy", 0.0, 0.0).device.state is DeviceState.REMOVING
    restored = DRAINING.served()
    assert (restored.device.state, restored.drained_s) == (DeviceState.CONNECTED, None)
    lost = USED.lost("the daemon ended")
    assert lost == Record(NEW.device._replace(reason="the daemon ended"))
    assert lost.device.facts == NOTHING_KNOWN


def test_refusals_wait_longer_each_time_up_to_five_seconds_and_are_forgiven() -> None:
    record, pauses = NEW, []
    for _ in range(6):
        record = record.refused("no", 100.0, 1.0)
        pauses.append(record.due_s - 100.0)
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(1.2)
    assert pauses[-1] < 5.0
    assert record.served().refusals == 0


@pytest.mark.parametrize(
    ("record", "look_s"),
    [
        (NEW, None),
        (SERVED, None),
        (DRAINING, 30.0),
        (NEW.refused("no", 10.0, 0.0), 11.0),
        (DRAINING.refused("busy", 40.0, 0.0), 41.0),
        (USED.refused("nobody listens", 10.0, 0.0), None),
    ],
)
def test_next_look(record: Record, look_s: float | None) -> None:
    assert next_look_s(record) == look_s
