"""Supervisor: keeps the daemon running while devices are wanted."""

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM
from typing import Any, Final

import structlog

from vdpa_agent.config import DaemonConfig, DaemonMode
from vdpa_agent.daemon.argv import vdpad_argv
from vdpa_agent.daemon.child import Child, describe_exit, spawn
from vdpa_agent.daemon.control import Control, open_control
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.daemon.pump import LogPump
from vdpa_agent.errors import DaemonError, DaemonLost, DaemonUnusable, RequestRefused
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import TRANSITIONS, DaemonEvent, DaemonState, DaemonStatus
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import DeviceList

_EXIT_USAGE: Final = 2
"""What vdpad ends with when it refuses its arguments."""

_HEALTHY_AFTER_S: Final = 600.0
"""A daemon that ran this long starts its backoff anew."""

log = structlog.get_logger(__name__)


class Supervisor:
    """Runs vdpad while devices are wanted: starts it, starts it again when it dies, stops it in order."""

    def __init__(
        self,
        config: DaemonConfig,
        socket_list: Path,
        wanted: Latest[Loaded[DeviceList]],
        retire_mapping: Callable[[], None],
        *,
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - jitter, not a secret
    ) -> None:
        """Starts nothing yet.

        Args:
            config: how to run the daemon.
            socket_list: the mapping file that it writes.
            wanted: the devices to run, as the list says.
            retire_mapping: takes the mapping file away; called before each start and after each end.
            spread: where in its jitter a backoff is, -1 to 1.
        """
        self.status = Latest(DaemonStatus(managed=config.mode is DaemonMode.VDPAD))
        self._config = config
        self._socket_list = socket_list
        self._wanted = wanted
        self._retire_mapping = retire_mapping
        self._spread = spread
        self._devices = Devices(config, wanted, self.status, spread)

    def adopt_role(self) -> None:
        """Decides by what is there whether this agent owns the daemon; once it does, it does for good."""
        if self._config.mode is DaemonMode.AUTO and self._wanted.value.value is not None:
            self._publish(managed=True)

    async def run(self, stop: asyncio.Event) -> None:
        """Supervises until `stop` is set and the daemon has ended. Cancellation kills the daemon at once.

        Raises:
            DaemonUnusable: the daemon can never start as configured.
        """
        failures = 0
        while await _unless(stop, self._devices_wanted()):
            started = asyncio.get_running_loop().time()
            reason = await self._live(stop)
            if self.status.value.state is DaemonState.STOPPED:
                return
            healthy = asyncio.get_running_loop().time() - started >= _HEALTHY_AFTER_S
            failures = 1 if healthy else failures + 1
            delay_s = self._config.backoff.delay_s(failures, self._spread())
            log.warning("daemon_restart_waits", reason=reason, delay_s=round(delay_s, 2), deaths_in_a_row=failures)
            if not await _unless(stop, asyncio.sleep(delay_s)):
                break
            self._publish(restarts=self.status.value.restarts + 1)
        self._move(DaemonEvent.STOP)

    async def _devices_wanted(self) -> None:
        async for loaded in self._wanted.changes():
            self.adopt_role()
            if loaded.value and self.status.value.managed:
                return

    async def _live(self, stop: asyncio.Event) -> str:
        """One life of the daemon, from before its spawn until after its end; returns how it ended."""
        self._retire_mapping()
        self._move(DaemonEvent.START)
        reason = "it was not started"
        try:
            pump = LogPump()
            child, control = await self._start(pump)
            try:
                reason = await self._accompany(child, control, stop)
            finally:
                child.kill_group()
                control.close()
            self._refuse_unusable(child, pump)
            tell = log.info if stop.is_set() else log.warning
            tell("daemon_ended", reason=reason, last_lines=list(pump.last_lines)[-3:])
        except DaemonLost as error:
            reason = str(error)
            log.error("daemon_not_started", reason=reason)
        finally:
            self._publish(pid=None, last_exit=reason)
            self._move(DaemonEvent.ENDED)
            self._devices.forget(f"the daemon ended: {reason}")
            self._retire_mapping()
        return reason

    async def _start(self, pump: LogPump) -> tuple[Child, Control]:
        """Spawns the daemon with its control channel and its output connected.

        Raises:
            DaemonUnusable: there is no such program.
            DaemonLost: it cannot be started now.
        """
        try:
            self._config.socket_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            ours, theirs = socket.socketpair()
            with theirs:
                control = await open_control(ours, self._notified)
                output = await _read_pipe(pump)
                try:
                    argv = vdpad_argv(self._config, self._socket_list, theirs.fileno())
                    child = spawn(argv, output=output, control=theirs.fileno())
                except BaseException:
                    control.close()
                    raise
                finally:
                    os.close(output)
        except OSError as error:
            message = f"{error.filename or self._config.program}: {os.strerror(error.errno or 0).lower()}"
            raise DaemonLost(message) from error
        self._publish(pid=child.pid)
        log.info("daemon_started", program=self._config.program, pid=child.pid)
        return child, control

    async def _accompany(self, child: Child, control: Control, stop: asyncio.Event) -> str:
        """Goes along with a spawned daemon until it is gone; returns how it ended."""
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(_reason(control.run()), name="control")
            driving = tasks.create_task(_reason(self._drive(control)), name="devices")
            stopping = tasks.create_task(stop.wait(), name="stop")
            ends: list[asyncio.Future[Any]] = [listening, driving, stopping, child.exited]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            driving.cancel()
            if stop.is_set():
                self._move(DaemonEvent.STOP)
                await self._ask_to_end(child, control)
            else:
                self._devices.forget("the daemon is ending")  # before any wait: none of its sockets is promised now
                if not await _ended_within(child, self._config.stop_grace_s):
                    log.warning("daemon_killed", reason=_first_reason(listening, driving))
            child.kill_group()
            code = await child.exited
            listening.cancel()
            stopping.cancel()
        if listening.done() and not listening.cancelled() and code == 0 and not stop.is_set():
            return f"{_first_reason(listening, driving)} ({describe_exit(code)})"
        return describe_exit(code)

    async def _drive(self, control: Control) -> None:
        version = await control.call("version", timeout_s=self._config.start_timeout_s)
        self._move(DaemonEvent.ANSWERED)
        log.info("daemon_running", version=version)
        await self._devices.follow(control)

    async def _ask_to_end(self, child: Child, control: Control) -> None:
        """Asks by `shutdown`, then by SIGTERM, each for half of the grace; the caller kills what is left."""
        half_s = self._config.stop_grace_s / 2
        try:
            await control.call("shutdown", timeout_s=half_s)
        except DaemonError as error:
            log.info("daemon_shutdown_unanswered", reason=str(error))
        if await _ended_within(child, half_s):
            return
        child.send_signal(SIGTERM)
        if not await _ended_within(child, half_s):
            log.warning("daemon_killed", reason="it ended neither by shutdown nor by SIGTERM")

    def _refuse_unusable(self, child: Child, pump: LogPump) -> None:
        if self.status.value.state is DaemonState.STARTING and child.exited.result() == _EXIT_USAGE:
            said = "; ".join(list(pump.last_lines)[-3:])
            message = f"{self._config.program} refused its arguments: {said}"
            raise DaemonUnusable(message)

    def _notified(self, method: str, params: dict[str, Any]) -> None:
        log.info("daemon_notified", notification=method, device=params.get("device"))

    def _move(self, event: DaemonEvent) -> None:
        self._publish(state=TRANSITIONS[self.status.value.state, event])

    def _publish(self, **changes: Any) -> None:
        self.status.set(replace(self.status.value, **changes))


async def _reason(part: Awaitable[None]) -> str:
    try:
        await part
    except (DaemonLost, RequestRefused) as error:
        return str(error)
    return "it returned"


def _first_reason(*parts: "asyncio.Task[str]") -> str:
    return next((part.result() for part in parts if part.done() and not part.cancelled()), "no reason given")


async def _unless(stop: asyncio.Event, awaited: Awaitable[None]) -> bool:
    """Waits for something; False if `stop` is set before, which cancels it."""
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(_wait(awaited)), tasks.create_task(_wait(stop.wait()))]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return not stop.is_set()


async def _wait(awaited: Awaitable[object]) -> None:
    await awaited


async def _ended_within(child: Child, seconds: float) -> bool:
    await asyncio.wait({child.exited}, timeout=seconds)
    return child.exited.done()


async def _read_pipe(protocol: asyncio.Protocol) -> int:
    """Connects a new pipe's read end to `protocol`; returns its write end, which the caller closes."""
    read_end, write_end = os.pipe()
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", 0))
    except BaseException:
        os.close(write_end)
        raise
    return write_end
