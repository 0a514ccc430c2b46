"""What the kubelet is offered."""

import json

import pytest

from vdpa_agent.model.daemon import DeviceState, VhostMode
from vdpa_agent.model.offer import FAILED_S, UNSERVED_S, environment, is_healthy, preferred, unhealthy_after_s
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.pools import Pool, VfFacts


@pytest.mark.parametrize(
    ("state", "unserved_s", "healthy"),
    [
        (DeviceState.READY, 0.0, True),
        (DeviceState.CONNECTED, 0.0, True),
        (DeviceState.REMOVING, 0.0, False),
        (DeviceState.FAILED, FAILED_S - 0.1, True),
        (DeviceState.FAILED, FAILED_S, False),
        (DeviceState.WANTED, UNSERVED_S - 0.1, True),
        (DeviceState.WANTED, UNSERVED_S, False),
        (DeviceState.STARTING, UNSERVED_S, False),
        (None, 0.0, True),
        (None, UNSERVED_S, False),
    ],
)
def test_health_has_patience(state: DeviceState | None, *, unserved_s: float, healthy: bool) -> None:
    assert is_healthy(state, unserved_s) is healthy


@pytest.mark.parametrize("state", [DeviceState.FAILED, DeviceState.WANTED, None])
def test_it_ends_when_it_is_said_to_end(state: DeviceState | None) -> None:
    end_s = unhealthy_after_s(state)
    assert is_healthy(state, end_s - 0.001)
    assert not is_healthy(state, end_s)


def vf(name: str, pf: str, node: int | None) -> VfFacts:
    return VfFacts(PciAddress(name), pf=PciAddress(pf), numa_node=node)


VFS = {
    facts.address: facts
    for facts in (
        *(vf(f"a{n}", "pf-a", 0) for n in range(3)),
        *(vf(f"b{n}", "pf-b", 0) for n in range(2)),
        *(vf(f"c{n}", "pf-c", 1) for n in range(4)),
        vf("d0", "pf-d", None),
    )
}


def choose(size: int, available: str, must: str) -> list[str]:
    free = [PciAddress(name) for name in available.split()]
    return [str(name) for name in preferred(free, [PciAddress(name) for name in must.split()], size, VFS)]


@pytest.mark.parametrize(
    ("size", "available", "must", "chosen"),
    [
        (0, "", "", []),
        (1, "a0 a1 b0", "", ["a0"]),  # of the PF that has the most left
        (2, "a0 a1 a2 b0 b1", "", ["a0", "b0"]),
        (2, "a0 a1 a2 b0 b1", "b0", ["b0", "a0"]),
        (4, "a0 a1 b0 b1", "", ["a0", "b0", "a1", "b1"]),
        (3, "a0 a1 c0 c1 c2", "", ["c0", "c1", "c2"]),  # the node that has enough
        (2, "a0 a1 c0 c1 c2", "", ["a0", "a1"]),  # the smaller of two: large requests come too
        (4, "a0 a1 c0 c1 c2", "", ["c0", "c1", "c2", "a0"]),  # none has enough
        (2, "a0 a1 c0 c1", "c1", ["c1", "c0"]),  # beside what must be given
        (3, "a0 b0 c0", "a0 a0", ["a0", "b0", "c0"]),
        (1, "d0 a0", "", ["d0"]),
        (9, "a0 c0", "", ["a0", "c0"]),
        (2, "x0 x1", "", ["x0", "x1"]),  # of which nothing is known
    ],
)
def test_devices_are_near_each_other_and_of_many_pfs(size: int, available: str, must: str, chosen: list[str]) -> None:
    assert choose(size, available, must) == chosen


def test_the_environment_is_that_of_the_sriov_plugin_and_more() -> None:
    a, b = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
    pool = Pool("intel.com/fast-net.v2", info={"*": {"token": "x", "kept": "1"}, b: {"token": "y"}})
    variables = environment(pool, {a: VhostMode.SERVER, b: VhostMode.CLIENT})
    info = json.loads(variables.pop("PCIDEVICE_INTEL_COM_FAST_NET_V2_INFO"))
    assert variables == {
        "PCIDEVICE_INTEL_COM_FAST_NET_V2": f"{a},{b}",
        "VDPA_FAST_NET_V2_SOCKET": f"/run/vdpa/{a}/vhost.sock",
        "VDPA_FAST_NET_V2_0_SOCKET": f"/run/vdpa/{a}/vhost.sock",
        "VDPA_FAST_NET_V2_1_SOCKET": f"/run/vdpa/{b}/vhost.sock",
    }
    assert info == {
        a: {
            "extraInfo": {"token": "x", "kept": "1"},
            "generic": {"deviceID": a},
            "vhost-user": {"mode": "client", "path": f"/run/vdpa/{a}/vhost.sock"},
        },
        b: {
            "extraInfo": {"token": "y", "kept": "1"},
            "generic": {"deviceID": b},
            "vhost-user": {"mode": "server", "path": f"/run/vdpa/{b}/vhost.sock"},
        },
    }
