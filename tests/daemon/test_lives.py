"""Single lives of a daemon: a real process, and a program that fails when the test wants it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from vdpa_agent.config import DaemonConfig, DaemonMode
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.reaper import reaping
from vdpa_agent.daemon.supervisor import Supervisor
from vdpa_agent.errors import DaemonLost, DaemonUnusable
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Cause, DaemonState, Device, Statistics, Stop
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import DeviceList, PciAddress

pytestmark = pytest.mark.anyio

A = PciAddress("0000:82:00.2")


class Program:
    """A program whose channel is lost as soon as it runs.

    Attributes:
        forgotten: the states of the process when nothing of it was to be promised any more.
    """

    name = "test"
    option = "--test"
    remedy = "see to it"
    can_be_asked = False
    cpus = None

    def __init__(self, script: str, error: Exception) -> None:
        self.devices: Latest[Mapping[PciAddress, Device]] = Latest(MappingProxyType({}))
        self.forgotten: list[bool] = []
        self.alive: Callable[[], bool] = lambda: False
        self._script = script
        self._error = error

    async def prepare(self) -> None:
        pass

    def argv(self, control_fd: int) -> list[str]:  # noqa: ARG002
        return ["sh", "-c", self._script]

    async def accompany(
        self,
        control: Control,  # noqa: ARG002
        *,
        running: Callable[[], None],
        unhealthy: Callable[[str], None],  # noqa: ARG002
    ) -> None:
        running()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._fail())

    async def _fail(self) -> None:
        raise self._error

    async def ask_to_end(self, control: Control, timeout_s: float) -> None:  # noqa: ARG002
        raise AssertionError

    def notified(self, method: str, params: dict[str, Any]) -> None:
        pass

    def forget(self, reason: str) -> None:  # noqa: ARG002
        self.forgotten.append(self.alive())

    async def tidy(self) -> None:
        pass

    async def statistics(self, address: PciAddress) -> Statistics:  # noqa: ARG002
        return {}


async def _run(directory: Path, program: Program, until: Callable[[Supervisor], bool]) -> Supervisor:
    """Has a supervisor run that program until a condition of its status holds."""
    wanted: Latest[Loaded[DeviceList]] = Latest(Loaded((A,)))
    stop = Latest(Stop.NO)

    async def retire() -> None:
        pass

    async with reaping() as reaper:
        supervisor = Supervisor(
            DaemonConfig(mode=DaemonMode.COMMAND, command="sh", socket_dir=directory / "vhost"),
            program,
            role=Latest(Role.MANAGING),
            wanted=wanted,
            retire_mapping=retire,
            reaper=reaper,
            restarts=Counter(),
        )
        program.alive = lambda: _is_alive(supervisor.status.value.pid)
        running = asyncio.ensure_future(supervisor.run(stop))
        async with asyncio.timeout(60):
            ended = asyncio.ensure_future(supervisor.status.wait_for(lambda _: until(supervisor)))
            await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            stop.set(Stop.NOW)
            await running
    return supervisor


def _is_alive(pid: int | None) -> bool:
    try:
        return pid is not None and " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


async def test_nothing_of_a_lost_daemon_is_promised_while_it_is_waited_for(tmp_path: Path) -> None:
    program = Program("exec sleep 1000", DaemonLost("it broke its channel"))
    supervisor = await _run(tmp_path, program, lambda of: of.status.value.state is DaemonState.BACKOFF)
    assert program.forgotten[0] is True  # while it lived still
    assert supervisor.status.value.last_exit == "it broke its channel (killed by SIGKILL)"


async def test_a_daemon_that_died_is_not_called_lost_because_its_channel_ended_first(tmp_path: Path) -> None:
    program = Program("sleep 0.3; exit 3", DaemonLost("it closed its channel"))
    supervisor = await _run(tmp_path, program, lambda of: of.restarts.total() > 0)
    assert supervisor.status.value.last_exit == "exit code 3"
    assert supervisor.restarts == {Cause.EXIT: 1}


async def test_a_daemon_of_another_protocol_ends_the_agent(tmp_path: Path) -> None:
    program = Program("exec sleep 1000", DaemonUnusable("it speaks protocol 2, this agent speaks 1"))
    with pytest.raises(DaemonUnusable, match="protocol 2"):
        await _run(tmp_path, program, lambda of: of.restarts.total() > 0)
