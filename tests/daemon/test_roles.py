"""The role beside real sockets: an agent's own leftover mapping, and one of another process."""

import asyncio
import fcntl
import os
import socket
from collections import Counter
from pathlib import Path
from types import MappingProxyType

import pytest
from structlog.testing import capture_logs

from tests.memory import Names
from tests.processes import PATIENCE_S
from vdpa_agent.config import DaemonConfig, DaemonMode
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.roles import Roles
from vdpa_agent.errors import AlreadyRunning
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress

pytestmark = pytest.mark.anyio

A = PciAddress("0000:82:00.2")


class World:
    """Roles with all that they are made of; an earlier agent called A vdpa-0."""

    def __init__(
        self, directory: Path, mode: DaemonMode = DaemonMode.AUTO, vhost_mode: VhostMode = VhostMode.SERVER
    ) -> None:
        self.wanted: Latest[Loaded[DeviceList]] = Latest(Loaded())
        self.mapping: Latest[Loaded[Mapping]] = Latest(Loaded())
        self.names = Names()
        self.names.kept = {A: "vdpa-0"}
        self.path = directory / "vdpa-0"
        config = DaemonConfig(mode=mode, vhost_mode=vhost_mode, socket_dir=directory)
        self.socket_list = directory / "socketList.dat"
        self.roles = Roles(
            config,
            wanted=self.wanted,
            mapping=self.mapping,
            names=self.names,
            socket_list=self.socket_list,
            directory=SocketDirectory(directory, Counter(), Latest(0)),
        )

    def map(self, path: Path) -> None:
        self.mapping.set(Loaded(Mapping(MappingProxyType({A: str(path)}))))

    async def decided(self) -> Role:
        await self.roles.decide()
        return self.roles.role.value


async def test_a_dead_mapping_of_this_agents_names_is_a_leftover(run_dir: Path) -> None:
    world = World(run_dir)
    world.map(world.path)
    assert await world.decided() is Role.WAITING
    world.wanted.set(Loaded((A,)))
    assert await world.decided() is Role.MANAGING


async def test_other_names_are_of_another_process(run_dir: Path) -> None:
    world = World(run_dir)
    world.map(run_dir / "vdpa-1")
    assert await world.decided() is Role.SERVING


async def test_living_sockets_are_of_another_process_until_they_die(run_dir: Path) -> None:
    world = World(run_dir)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(world.path))
        listening.listen()
        world.map(world.path)
        assert await world.decided() is Role.SERVING
        running = asyncio.ensure_future(world.roles.run())
    async with asyncio.timeout(20):
        await world.roles.role.wait_for(lambda role: role is Role.WAITING)  # without any event
    running.cancel()


async def test_where_front_ends_open_the_sockets_living_ones_prove_nothing(run_dir: Path) -> None:
    world = World(run_dir, vhost_mode=VhostMode.CLIENT)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(world.path))
        listening.listen()
        world.map(world.path)
        assert await world.decided() is Role.WAITING


async def test_who_never_manages_serves_what_is_there(run_dir: Path) -> None:
    world = World(run_dir, DaemonMode.NONE)
    world.map(world.path)
    assert await world.decided() is Role.SERVING
    world.wanted.set(Loaded((A,)))
    assert await world.decided() is Role.SERVING


async def test_who_always_manages_does_so_from_the_start(run_dir: Path) -> None:
    world = World(run_dir, DaemonMode.VDPAD)
    world.map(run_dir / "vdpa-1")
    assert world.roles.role.value is Role.MANAGING
    assert await world.decided() is Role.MANAGING


async def test_one_agent_manages_the_sockets_of_a_mapping(run_dir: Path) -> None:
    first, second = World(run_dir), World(run_dir)
    for world in (first, second):
        assert await world.decided() is Role.WAITING  # no agent needs the lock yet
        world.wanted.set(Loaded((A,)))
    assert await first.decided() is Role.MANAGING
    holder = f"process {os.getpid()} on {socket.gethostname()}, holds {first.socket_list}"
    with pytest.raises(AlreadyRunning, match=f"^another agent, {holder}; stop it or choose another --socket-list$"):
        await second.decided()
    assert second.roles.role.value is Role.WAITING
    await first.roles.aclose()
    third = World(run_dir, DaemonMode.VDPAD)
    assert await third.decided() is Role.MANAGING
    await third.roles.aclose()
    assert not list(run_dir.iterdir())


async def test_a_lock_that_was_taken_away_is_made_again_and_that_of_another_agent_is_respected(run_dir: Path) -> None:
    world = World(run_dir, DaemonMode.VDPAD)
    lock = run_dir / ".socketList.dat.lock"
    with capture_logs() as logs:
        running = asyncio.ensure_future(world.roles.run())
        async with asyncio.timeout(PATIENCE_S):
            while not lock.exists():
                await asyncio.sleep(0.01)
            lock.unlink()
            while not lock.exists():
                await asyncio.sleep(0.01)
            with (run_dir / "other").open("w") as other:
                fcntl.flock(other, fcntl.LOCK_EX)
                other.write("4711 pod-b\n")
                other.flush()
                (run_dir / "other").rename(lock)
                while not logs or logs[-1]["event"] != "mapping_not_locked":
                    await asyncio.sleep(0.01)
                assert "process 4711 on pod-b" in logs[-1]["reason"]
                assert world.roles.role.value is Role.MANAGING  # what runs goes on
        running.cancel()
    await world.roles.aclose()


async def test_where_no_lock_can_be_made_the_agent_goes_on(run_dir: Path) -> None:
    (run_dir / ".socketList.dat.lock").mkdir()
    world = World(run_dir, DaemonMode.VDPAD)
    with capture_logs() as logs:
        assert await world.decided() is Role.MANAGING
        assert await world.decided() is Role.MANAGING
    (warning,) = [entry for entry in logs if entry["event"] == "mapping_not_locked"]
    assert "move it away" in warning["reason"]
