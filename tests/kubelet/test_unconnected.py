"""Pods that have a device and no front end at it are logged once, in time."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import pytest
from structlog.testing import capture_logs

from vdpa_agent.kubelet.unconnected import Unconnected
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceState, VhostMode
from vdpa_agent.model.front_end import CONNECTED, NO_FRONT_END
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.owner import Owner
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.served import Facts, Served, serve

pytestmark = pytest.mark.anyio

A = PciAddress("0000:82:00.2")
OWNER = Owner("apps", "web-0", "dpdk")


class World:
    """One device, with who has it."""

    def __init__(self) -> None:
        self.owners: dict[PciAddress, Owner] = {A: OWNER}
        self.device = Device(A, "/run/a", DeviceState.READY)
        self.revision = Latest(0)

    def served(self) -> Served:
        return serve(
            Facts(
                role=Role.MANAGING,
                wanted=Loaded((A,)),
                daemon=DaemonStatus(DaemonState.RUNNING),
                devices=MappingProxyType({A: self.device}),
                owners=MappingProxyType(dict(self.owners)),
            )
        )

    def put(self, **facts: Any) -> None:
        self.device = self.device._replace(**facts)
        self.revision.set(self.revision.value + 1)


@asynccontextmanager
async def looking(world: World) -> AsyncIterator[list[MutableMapping[str, Any]]]:
    """Looks at the world; yields what is logged of it."""
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(Unconnected(world.served, world.revision).run())
            yield logs
            task.cancel()


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdpa_agent.kubelet.unconnected.AFTER_S", 0.05)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("mode", VhostMode)
async def test_a_pod_that_stays_without_is_named_once(mode: VhostMode) -> None:
    world = World()
    world.put(mode=mode)
    async with looking(world) as logs:
        await until(lambda: logs)
        for _ in range(3):
            world.put(refusals={})
            await asyncio.sleep(0.05)
    (line,) = logs
    said = {key: line[key] for key in ("event", "device", "namespace", "pod", "container", "vhost_mode")}
    assert said == {"event": "pod_without_front_end", "device": A, **OWNER._asdict(), "vhost_mode": mode}
    assert ("start the pod again" in line["remedy"]) is (mode is VhostMode.SERVER)


@pytest.mark.usefixtures("_soon")
async def test_it_is_named_again_after_it_was_connected_and_so_is_the_next_pod() -> None:
    world = World()
    async with looking(world) as logs:
        await until(lambda: len(logs) == 1)
        world.put(state=DeviceState.CONNECTED, front_end=CONNECTED)
        await asyncio.sleep(0.02)
        world.put(state=DeviceState.READY, front_end=NO_FRONT_END)
        await until(lambda: len(logs) == 2)
        world.owners = {A: OWNER._replace(pod="web-1")}
        world.put()
        await until(lambda: len(logs) == 3)
    assert [line["pod"] for line in logs] == ["web-0", "web-0", "web-1"]


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("what", ["connected", "not served", "nobody's"])
async def test_others_are_left_alone(what: str) -> None:
    world = World()
    if what == "connected":
        world.put(state=DeviceState.CONNECTED, front_end=CONNECTED)
    elif what == "not served":
        world.put(state=DeviceState.FAILED)
    else:
        world.owners = {}
    async with looking(world) as logs:
        await asyncio.sleep(0.3)
    assert logs == []


async def test_a_pod_has_its_time() -> None:
    world = World()
    async with looking(world) as logs:
        await asyncio.sleep(0.3)
    assert logs == []
