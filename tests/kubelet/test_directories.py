"""The directories of devices, with real sockets and whatever else may be in their place."""

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
from structlog.testing import capture_logs

from tests.hung import hung
from vdpa_agent.kubelet.directories import Directories
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceFacts, DeviceState, VhostMode
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.served import Facts, Served, serve

pytestmark = pytest.mark.anyio

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")


class World:
    """Directories beside the sockets of a daemon, which are those of the test."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "devices"
        self.vhost = directory / "vhost"
        self.vhost.mkdir()
        self.devices: dict[PciAddress, Device] = {}
        self.role = Role.MANAGING
        self.mapping = Mapping()
        self.revision = Latest(0)
        self.directories = Directories(self.root, self.served, self.revision)
        self.sockets: list[socket.socket] = []

    def served(self) -> Served:
        return serve(
            Facts(
                role=self.role,
                wanted=Loaded(tuple(self.devices)),
                mapping=Loaded(self.mapping),
                daemon=DaemonStatus(DaemonState.RUNNING),
                devices=MappingProxyType(dict(self.devices)),
            )
        )

    def listen(self, address: PciAddress, name: str) -> Path:
        """The daemon opens a new socket for a device."""
        path = self.vhost / name
        path.unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(path))
        bound.listen()
        self.sockets.append(bound)
        status = path.stat()
        facts = DeviceFacts(file=(status.st_dev, status.st_ino))
        self.devices[address] = Device(address, str(path), DeviceState.READY, facts=facts)
        return path

    def client(self, address: PciAddress) -> None:
        path = str(self.link(address))
        self.devices[address] = Device(address, path, DeviceState.READY, mode=VhostMode.CLIENT)

    def link(self, address: PciAddress) -> Path:
        return self.root / address / "vhost.sock"


@pytest.fixture
def world(run_dir: Path) -> Iterator[World]:
    made = World(run_dir)
    yield made
    for bound in made.sockets:
        bound.close()


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_socket_has_a_second_name_in_a_directory_of_its_own(world: World) -> None:
    path = world.listen(A, "vdpa-0")
    world.listen(B, "vdpa-1")
    await world.directories.sync()
    assert world.link(A).samefile(path)
    assert names(world.root) == [A, B]
    assert (mode(world.root), mode(world.root / A)) == (0o700, 0o755)
    with socket.socket(socket.AF_UNIX) as front:
        front.connect(str(world.link(A)))
    assert world.directories.problem(A) == ""


async def test_the_directory_outlives_its_sockets_and_shows_the_new_one(world: World) -> None:
    world.listen(A, "vdpa-0")
    await world.directories.sync()
    before = (world.root / A).stat().st_ino
    world.devices[A] = world.devices[A]._replace(state=DeviceState.WANTED)
    await world.directories.sync()
    path = world.listen(A, "vdpa-0")
    await world.directories.sync()
    assert world.link(A).samefile(path)
    assert (world.root / A).stat().st_ino == before
    world.devices.clear()
    await world.directories.sync()
    assert (world.root / A).stat().st_ino == before  # a pod may have it mounted


async def test_it_follows_what_is_served(world: World) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.directories.run())
        for turn in range(3):
            path = world.listen(A, "vdpa-0")
            world.revision.set(turn + 1)
            async with asyncio.timeout(20):
                while not (world.link(A).exists() and world.link(A).samefile(path)):
                    await asyncio.sleep(0.001)
        running.cancel()


async def test_what_is_taken_away_is_made_again_without_any_event(world: World) -> None:
    path = world.listen(A, "vdpa-0")
    await world.directories.sync()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.directories.run())
        for _ in range(2):  # the first one may be found at the start
            world.link(A).unlink()
            (world.root / A).rmdir()
            async with asyncio.timeout(20):
                while not world.link(A).exists():
                    await asyncio.sleep(0.01)
        running.cancel()
    assert world.link(A).samefile(path)


@pytest.mark.parametrize("kind", ["directory", "link", "file", "in the place of the directory", "root"])
async def test_whatever_is_in_its_place_goes_and_what_a_link_leads_to_stays(
    world: World, kind: str, tmp_path: Path
) -> None:
    path = world.listen(A, "vdpa-0")
    await world.directories.sync()
    beyond = tmp_path / "beyond"
    beyond.mkdir()
    (beyond / "kept").write_text("kept")
    if kind == "in the place of the directory":
        world.link(A).unlink()
        (world.root / A).rmdir()
        (world.root / A).symlink_to(beyond)
    elif kind == "root":
        world.root.chmod(0o777)
    else:
        world.link(A).unlink()
        if kind == "directory":
            (world.link(A) / "full").mkdir(parents=True)
            (world.link(A) / "full" / "link").symlink_to(beyond)
        elif kind == "link":
            world.link(A).symlink_to(beyond / "kept")
        else:
            world.link(A).write_text("x")
    await world.directories.sync()
    assert world.link(A).lstat().st_ino == path.stat().st_ino
    assert (mode(world.root), mode(world.root / A)) == (0o700, 0o755)
    assert (beyond / "kept").read_text() == "kept"
    assert names(beyond) == ["kept"]
    assert names(world.root) == [A]


async def test_a_socket_that_another_process_put_there_gets_no_second_name(world: World) -> None:
    path = world.listen(A, "vdpa-0")
    ours = path.with_name("aside")
    path.rename(ours)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        with capture_logs() as logs:
            await world.directories.sync()
            await world.directories.sync()
    assert not world.link(A).exists()
    reason = f"{path} is a socket of another process"
    assert world.directories.problem(A) == reason
    assert [(log["event"], log["reason"]) for log in logs] == [("device_directory_failed", reason)]
    ours.rename(path)
    await world.directories.sync()
    assert world.link(A).samefile(path)
    assert world.directories.problem(A) == ""


async def test_a_link_in_the_sockets_place_is_not_followed(world: World) -> None:
    path = world.listen(A, "vdpa-0")
    other = world.listen(B, "vdpa-1")
    world.devices[A] = world.devices[A]._replace(facts=DeviceFacts())  # the daemon did not say which file it is
    path.unlink()
    path.symlink_to(other)
    await world.directories.sync()
    assert not world.link(A).exists()
    assert world.link(B).samefile(other)
    assert "is a symbolic link of another process" in world.directories.problem(A)


async def test_a_front_end_of_any_user_may_make_its_socket_in_its_directory(world: World) -> None:
    world.client(A)
    await world.directories.sync()
    assert (mode(world.root), mode(world.root / A)) == (0o700, 0o777)
    with socket.socket(socket.AF_UNIX) as front:
        front.bind(str(world.link(A)))
        await world.directories.sync()
        assert world.link(A).is_socket()  # it is the front end's


async def test_a_new_directory_has_nothing_of_the_pod_before(world: World, tmp_path: Path) -> None:
    beyond = tmp_path / "beyond"
    beyond.mkdir()
    (beyond / "kept").write_text("kept")
    world.client(A)
    await world.directories.sync()
    before = os.open(world.root / A, os.O_PATH)
    try:
        world.link(A).symlink_to(beyond)
        (world.root / A / "deep").mkdir()
        (world.root / A / "deep" / "file").write_text("x")
        assert await world.directories.renew(A) == ""
        assert names(world.root / A) == []
        assert mode(world.root / A) == 0o777
        assert os.fstat(before).st_ino != (world.root / A).stat().st_ino
        with pytest.raises(FileNotFoundError):  # whoever still has it can make nothing there any more
            Path(f"/proc/self/fd/{before}/new").write_text("x")
    finally:
        os.close(before)
    assert names(beyond) == ["kept"]
    assert names(world.root) == [A]


async def test_a_directory_whose_mode_changes_is_the_same(world: World) -> None:
    world.client(A)
    await world.directories.sync()
    before = (world.root / A).stat().st_ino
    path = world.listen(A, "vdpa-0")
    await world.directories.sync()
    assert (mode(world.root / A), (world.root / A).stat().st_ino) == (0o755, before)
    assert world.link(A).samefile(path)


async def test_where_another_process_owns_the_sockets_nothing_is_made(world: World) -> None:
    path = world.listen(A, "vdpa-0")
    world.role = Role.SERVING
    world.mapping = Mapping(MappingProxyType({A: str(path)}))
    assert world.served().devices
    await world.directories.sync()
    assert not world.root.exists()
    assert world.directories.problem(A) == "another process owns its socket"


async def test_a_file_system_that_does_not_answer_is_a_problem_and_no_more(world: World) -> None:
    world.listen(A, "vdpa-0")
    world.root.mkdir()
    with hung(world.root):
        await world.directories.sync()
        assert world.directories.problem(A) == f"the file system of {world.root} does not answer"
        assert "does not answer" in await world.directories.renew(A)
