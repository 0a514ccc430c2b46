"""Spawned: one process with its control channel and its output, from its launch to its end."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from signal import SIGTERM
from typing import Any, Final

from vdpa_agent.daemon.child import Child, refuse_failed, spawn
from vdpa_agent.daemon.control import Control, open_control
from vdpa_agent.daemon.program import Program
from vdpa_agent.daemon.pump import LogPump
from vdpa_agent.daemon.reaper import Reaper
from vdpa_agent.daemon.stopping import asked, unless
from vdpa_agent.errors import DaemonLost
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Stop

_LAUNCH_S: Final = 5.0
"""How long a process may take to become the daemon: some milliseconds, unless the program's file system hangs."""

_KILLED_S: Final = 1.0
"""How long a killed process may take to end: the kernel keeps one that waits for a file system that hangs."""

HELD: Final = "the kernel holds it, as a file system does that does not answer"
"""Why a killed process has not ended."""


class Spawned:
    """A process that is to become the daemon, and then is.

    Attributes:
        program: what it is to become, a name or a path.
        pid: its process id.
        control: its control channel.
        exited: becomes its return code.
    """

    def __init__(self, child: Child, control: Control, kind: Program, program: str) -> None:
        self.program = program
        self.pid = child.pid
        self.control = control
        self.exited = child.exited
        self._child = child
        self._kind = kind

    @property
    def core_dumped(self) -> bool:
        """Whether it left a core dump when it ended."""
        return self._child.core_dumped

    async def launched(self, stop: Latest[Stop]) -> bool:
        """Waits until it has become the daemon; False if the agent stops before.

        Raises:
            DaemonUnusable: there is no such program, or it cannot be executed.
            DaemonLost: it cannot be started now, or its file system does not answer.
        """
        launched = self._child.launched
        stopping = asyncio.ensure_future(asked(stop))
        try:
            ends: set[asyncio.Future[Any]] = {launched, stopping}
            await asyncio.wait(ends, timeout=_LAUNCH_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if launched.done():
            refuse_failed(launched.result(), self.program, self._kind.remedy)
            return True
        if stop.value:
            return False
        message = (
            f"the program {self.program} of {self._kind.option} does not start: its file system does not answer within"
            f" {_LAUNCH_S:g} s; see to the mount below it"
        )
        raise DaemonLost(message)

    async def ask_to_end(self, grace_s: float, stop: Latest[Stop]) -> bool:
        """Asks in the program's way if it has one, then by SIGTERM; whether it ended within the grace.

        Args:
            grace_s: how long it may take, in seconds; the ways share it.
            stop: whether anything is waited for.
        """
        ways: list[Callable[[float], Awaitable[object]]] = [self._terminate]
        if self._kind.can_be_asked:
            ways.insert(0, lambda timeout_s: self._kind.ask_to_end(self.control, timeout_s))
        share_s = grace_s / len(ways)
        for ask in ways:
            if await unless(stop, self._ask_and_wait(ask, share_s), Stop.NOW) and self.exited.done():
                return True
        return False

    async def kill(self) -> bool:
        """Ends it and its group at once, if it has not ended, and closes its channel; whether the kernel let it go."""
        self.control.close()
        if not self.exited.done():
            self._child.kill_group()
        return await self.ended_within(_KILLED_S)

    async def ended_within(self, seconds: float) -> bool:
        """Waits for its end; whether it ended."""
        await asyncio.wait({self.exited}, timeout=seconds)
        return self.exited.done()

    async def _terminate(self, _timeout_s: float) -> None:
        self._child.send_signal(SIGTERM)

    async def _ask_and_wait(self, ask: Callable[[float], Awaitable[object]], seconds: float) -> None:
        await ask(seconds)
        await self.ended_within(seconds)


async def spawn_connected(program: Program, pump: LogPump, reaper: Reaper) -> Spawned:
    """Spawns what becomes a daemon with its control channel and its output connected.

    Raises:
        OSError: it cannot be connected.
        DaemonLost: it cannot be started now.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        control = await open_control(ours, program.notified)
        output = await _read_pipe(pump)
        try:
            argv = program.argv(theirs.fileno())
            child = spawn(argv, output=output, control=theirs.fileno(), cpus=program.cpus)
            return Spawned(reaper.own(child), control, program, argv[0])
        except BaseException:
            control.close()
            raise
        finally:
            os.close(output)


async def _read_pipe(protocol: asyncio.Protocol) -> int:
    """Connects a new pipe's read end to `protocol`; returns its write end, which the caller closes."""
    read_end, write_end = os.pipe()
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", 0))
    except BaseException:
        os.close(write_end)
        raise
    return write_end
