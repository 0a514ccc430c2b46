"""The files that Multus reads, as the Device Information Specification 1.1.0 has them, and what others have beside."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from vdpa_agent.kubelet.device_info import DeviceInfo, file_name
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceState, VhostMode
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.pools import Members, Pool, Pools
from vdpa_agent.model.served import Facts, Served, serve

pytestmark = pytest.mark.anyio

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
NET: Final = Pool("intel.com/vdpa_ifc")
NAME_A, NAME_B = f"intel.com-vdpa_ifc-{A}-device.json", f"intel.com-vdpa_ifc-{B}-device.json"
OTHERS: Final = {
    # Of the SR-IOV network device plugin, of another program with vhost-user sockets, and what nobody can read.
    "intel.com-sriov-0000:82:00.7-device.json": {
        "type": "pci",
        "version": "1.1.0",
        "pci": {"pci-address": "0000:82:00.7"},
    },
    "example.com-ovs-port7-device.json": {
        "type": "vhost-user",
        "version": "1.1.0",
        "vhost-user": {"mode": "client", "path": "/var/run/ovs/port7"},
    },
    f"example.com-net-{A}-device.json": {"vhost-user": {"path": f"/run/vdpa/{B}/vhost.sock"}},
    f"example.com-list-{A}-device.json": [[[["vhost-user"]]]],
    f"example.com-text-{A}-device.json": {"vhost-user": "/run/vdpa"},
}


class World:
    """What is served, and a directory of files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "devinfo" / "dp"
        self.devices = {address: Device(address, f"/run/{address}", DeviceState.READY) for address in (A, B)}
        self.pools: Loaded[Pools] = Loaded(Pools((Members(NET, (A, B)),)))
        self.revision = Latest(0)
        self.info = self.begin()

    def begin(self) -> DeviceInfo:
        return DeviceInfo(self.directory, self.served, self.revision)

    def served(self) -> Served:
        return serve(
            Facts(
                role=Role.MANAGING,
                wanted=Loaded((A, B)),
                pools=self.pools,
                daemon=DaemonStatus(DaemonState.RUNNING),
                devices=MappingProxyType(dict(self.devices)),
            )
        )

    def put(self, address: PciAddress, state: DeviceState, mode: VhostMode = VhostMode.SERVER) -> None:
        self.devices[address] = Device(address, f"/run/{address}", state, mode=mode)
        self.revision.set(self.revision.value + 1)

    def files(self) -> dict[str, Any]:
        there = self.directory.iterdir() if self.directory.exists() else ()
        return {path.name: json.loads(path.read_bytes()) for path in there}


@pytest.fixture
def world(run_dir: Path) -> World:
    return World(run_dir)


@asynccontextmanager
async def running(info: DeviceInfo) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(info.run())
        yield
        task.cancel()


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def said(address: PciAddress, mode: str) -> dict[str, Any]:
    """The file of a device in the words of the specification."""
    socket = {"mode": mode, "path": f"/run/vdpa/{address}/vhost.sock"}
    return {"type": "vhost-user", "version": "1.1.0", "vhost-user": socket}


async def test_each_device_has_a_file_that_says_which_end_the_container_is(world: World) -> None:
    world.put(B, DeviceState.READY, VhostMode.CLIENT)
    await world.info.sync()
    # "client": the host makes the socket. "server": the application in the container does.
    assert world.files() == {NAME_A: said(A, "client"), NAME_B: said(B, "server")}
    assert file_name(NET.resource, A) == NAME_A
    assert stat.S_IMODE((world.directory / NAME_A).stat().st_mode) == 0o444


async def test_the_files_go_with_the_agent_and_those_of_others_stay(world: World) -> None:
    world.directory.mkdir(parents=True)
    for name, content in OTHERS.items():
        (world.directory / name).write_text(json.dumps(content))
    (world.directory / "torn-device.json").write_text("{")
    (world.directory / "deep-device.json").write_text("[" * 4000)
    (world.directory / "link-device.json").symlink_to("/etc/hostname")
    before = sorted(path.name for path in world.directory.iterdir())
    async with running(world.info):
        await until(lambda: len(list(world.directory.iterdir())) == len(before) + 2)
    assert sorted(path.name for path in world.directory.iterdir()) == before


async def test_what_an_earlier_life_left_goes_and_what_is_true_of_it_stays(world: World) -> None:
    await world.info.sync()
    stale = world.directory / f"intel.com-other-{A}-device.json"
    stale.write_text(json.dumps(said(A, "client")))
    # The daemon of the new life does not serve the devices yet, and Multus may be about to read of them.
    world.devices = {}
    await world.begin().sync()
    assert sorted(world.files()) == [NAME_A, NAME_B]
    # Nothing is known of the pools yet: nothing is judged.
    world.pools = Loaded()
    await world.begin().sync()
    assert sorted(world.files()) == [NAME_A, NAME_B]


async def test_they_follow_what_changes(world: World) -> None:
    async with running(world.info):
        await until(lambda: len(world.files()) == 2)
        world.put(A, DeviceState.FAILED)
        world.put(B, DeviceState.READY, VhostMode.CLIENT)
        await until(lambda: world.files()[NAME_B] == said(B, "server"))
        assert world.files()[NAME_A] == said(A, "client")  # a restart of the daemon is no news
        world.pools = Loaded(Pools((Members(Pool("vdpa.io/net"), (B,)),)))
        world.put(A, DeviceState.REMOVING)
        await until(lambda: world.files() == {f"vdpa.io-net-{B}-device.json": said(B, "server")})
    assert world.files() == {}


async def test_a_device_that_was_never_served_has_none(world: World) -> None:
    world.put(A, DeviceState.STARTING)
    await world.info.sync()
    assert sorted(world.files()) == [NAME_B]


async def test_what_somebody_changed_is_right_again_without_any_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdpa_agent.kubelet.device_info._LOOK_S", 0.05)
    async with running(world.info):
        await until(lambda: len(world.files()) == 2)
        (world.directory / NAME_A).unlink()
        (world.directory / NAME_B).unlink()
        (world.directory / NAME_B).symlink_to("/etc/hostname")
        await until(lambda: (world.directory / NAME_A).exists() and not (world.directory / NAME_B).is_symlink())
        assert world.files() == {NAME_A: said(A, "client"), NAME_B: said(B, "client")}


async def test_a_directory_that_cannot_be_made_is_one_warning_and_tried_again(world: World) -> None:
    world.directory.parent.write_text("a file")
    with capture_logs() as logs:
        await world.info.sync()
        await world.info.sync()
    assert [(log["event"], log["reason"]) for log in logs] == [("device_info_failed", "not a directory")]
    world.directory.parent.unlink()
    await world.info.sync()
    assert len(world.files()) == 2
