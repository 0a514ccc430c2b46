"""Live and ready, with every reason."""

from types import MappingProxyType

import pytest

from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceState
from vdpa_agent.model.health import Role, assess, role_of
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import PciAddress

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
NO_MAPPING: Loaded[Mapping] = Loaded()
MAPPED = Loaded(Mapping(MappingProxyType({A: "/v/a"})))


def _managed(state: DaemonState, *devices: Device, **more: object) -> DaemonStatus:
    known = MappingProxyType({device.address: device for device in devices})
    return DaemonStatus(managed=True, state=state, devices=known, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "daemon", "reasons"),
    [
        (Loaded((A,)), _managed(DaemonState.RUNNING, Device(A, "", DeviceState.READY)), ()),
        (Loaded((A,)), _managed(DaemonState.RUNNING, Device(A, "", DeviceState.CONNECTED)), ()),
        (Loaded(()), _managed(DaemonState.IDLE), ()),
        (Loaded(), _managed(DaemonState.IDLE), ("no device list is loaded: nothing was read yet",)),
        (
            Loaded((A,)),
            _managed(DaemonState.BACKOFF, last_exit="exit code 7", crash_loop=True),
            ("the daemon is in state backoff, in a crash loop: exit code 7",),
        ),
        (Loaded((A,)), _managed(DaemonState.RUNNING, unhealthy="it hangs"), ("it hangs",)),
        (
            Loaded((A, B)),
            _managed(DaemonState.RUNNING, Device(A, "", DeviceState.FAILED, "bind it to vfio-pci")),
            ("0000:82:00.2 is failed: bind it to vfio-pci", "0000:82:00.3 is not asked for yet"),
        ),
    ],
)
def test_managing(wanted: Loaded[tuple[PciAddress, ...]], daemon: DaemonStatus, reasons: tuple[str, ...]) -> None:
    health = assess(wanted, NO_MAPPING, daemon, {})
    assert (health.live, health.ready, health.reasons) == (True, not reasons, reasons)


def test_serving() -> None:
    foreign = DaemonStatus(managed=False)
    assert assess(Loaded(), MAPPED, foreign, {}).ready
    assert assess(Loaded(), MAPPED, foreign, {"/v/a": "nobody listens on /v/a"}).reasons == ("nobody listens on /v/a",)
    refused: Loaded[Mapping] = Loaded(None, "line 1: not JSON")
    assert assess(Loaded(), refused, foreign, {}).reasons == ("no mapping is loaded: line 1: not JSON",)


def test_role() -> None:
    assert role_of(DaemonStatus(managed=False), NO_MAPPING) is Role.WAITING
    assert role_of(DaemonStatus(managed=False), MAPPED) is Role.SERVING
    assert role_of(DaemonStatus(managed=True), MAPPED) is Role.MANAGING
