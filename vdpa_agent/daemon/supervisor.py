"""Supervisor: keeps the daemon running while devices are wanted."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import structlog

from vdpa_agent.config import DaemonConfig
from vdpa_agent.daemon.child import describe_exit
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.program import Program
from vdpa_agent.daemon.pump import Dropped, LogPump
from vdpa_agent.daemon.reaper import Reaper
from vdpa_agent.daemon.spawned import HELD, Spawned, spawn_connected
from vdpa_agent.daemon.stopping import asked, unless
from vdpa_agent.errors import DaemonError, DaemonLost, DaemonUnusable, SocketDirUnusable, leaf
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import (
    TRANSITIONS,
    Cause,
    DaemonEvent,
    DaemonState,
    DaemonStatus,
    Device,
    Statistics,
    Stop,
)
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.restarts import FORGIVEN, FORGIVEN_AFTER_S
from vdpa_agent.node.worker import Stuck

_EXIT_USAGE: Final = 2
"""What a daemon ends with when it refuses its arguments."""

_SIGNALLED: Final = 128
"""What a shell adds to the number of the signal that ended a process."""

_DEATH_S: Final = 1.0
"""How long the death of a process may be noticed after that of its control channel."""

_OUTPUT_S: Final = 1.0
"""How long its last output is read after its end, should somebody else hold the pipe."""

_MACHINE_RETRY_S: Final = 3.0
"""The longest pause, but for its jitter, where the machine lacked something: within 5 s of the mend it is tried."""

_TURN_S: Final = 5.0
"""How long a start keeps others from theirs; one that takes longer hangs, and the others are not to wait for it."""

_STARTS_NEED: Final = (
    "give the agent what the reason names: memory, processes (pids, nproc), open files (nofile), a mount that answers"
)

log = structlog.get_logger(__name__)


class _End(NamedTuple):
    """How a life of the daemon ended.

    Attributes:
        reason: in words.
        cause: what ended it; means nothing where it was planned.
        code: its exit code, as a shell would have it; None if it never ran.
        planned: whether it is to start again at once.
        healthy_s: how long it had been healthy without a break when its end was noticed, in seconds.
    """

    reason: str = "it could not be started"
    cause: Cause = Cause.NOT_STARTED
    code: int | None = None
    planned: bool = False
    healthy_s: float = 0.0


class Supervisor:
    """Starts the daemon while devices are wanted, starts it again when it dies, stops it in order.

    Attributes:
        status: what is known of the daemon; nothing else writes it.
        restarts: how often it was started again, by what had ended it.
        dropped: how much of its output was not logged, over all its lives.
    """

    def __init__(
        self,
        config: DaemonConfig,
        program: Program,
        *,
        role: Latest[Role],
        wanted: Latest[Loaded[DeviceList]],
        retire_mapping: Callable[[], Awaitable[None]],
        reaper: Reaper,
        restarts: Counter[Cause],
        starts: asyncio.Semaphore | None = None,
        device: str = "",
        changed: Callable[[], None] | None = None,
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - jitter, not a secret
    ) -> None:
        """Starts nothing yet.

        Args:
            config: how to run the daemon.
            program: what kind of daemon it is.
            role: whether the agent manages a daemon at all.
            wanted: the devices to run, as the list says.
            retire_mapping: takes the mapping file away; called before each start and after each end.
            reaper: is told of the daemon, so that it leaves its end alone, and ends what it leaves.
            restarts: where its restarts are counted.
            starts: bounds how many daemons start at the same time; None: there is only this one.
            device: the only device of the daemon, which each event then carries; empty: it has several.
            changed: called right after each change of `status`.
            spread: where in its jitter a backoff is, -1 to 1.
        """
        self.status = Latest(DaemonStatus(), changed)
        self.restarts = restarts
        self.dropped = Dropped()
        self._config = config
        self._program = program
        self._device = device
        self._log = log.bind(device=device) if device else log
        self._starts = starts
        self._has_turn = False
        self._role = role
        self._wanted = wanted
        self._retire_mapping = retire_mapping
        self._reaper = reaper
        self._spread = spread
        self._restarts = FORGIVEN
        self._healthy_since_s: float | None = None
        self._unusable: DaemonUnusable | None = None
        self._killed_at_stop = False
        self._last: Spawned | None = None

    @property
    def devices(self) -> Latest[Mapping[PciAddress, Device]]:
        """The devices of the daemon, as it acknowledged them."""
        return self._program.devices

    async def statistics(self, address: PciAddress) -> Statistics:
        """Asks the running daemon for the counters of a device's virtqueues; nothing where there are none."""
        return await self._program.statistics(address)

    async def run(self, stop: Latest[Stop]) -> None:
        """Supervises until the agent stops and the daemon has ended. Cancellation kills the daemon at once.

        Raises:
            DaemonUnusable: the daemon can never start as configured.
            DaemonError: the daemon had to be killed at the end.
        """
        while await unless(stop, self._due()):
            try:
                end = await self._live(stop)
            finally:
                self._give_turn()
            if self.status.value.state is DaemonState.STOPPED:
                self._refuse_kill()
                return
            if end.planned:
                continue
            delay_s = self._delay_s(end)
            self._publish(backoff_s=delay_s)
            self._log.warning(
                "daemon_restart_waits", delay_s=round(delay_s, 2), deaths_in_a_row=self._restarts.failures
            )
            waited = await unless(stop, asyncio.sleep(delay_s))
            self._publish(backoff_s=0.0)
            if not waited:
                break
            self.restarts[end.cause] += 1
            self._publish(restarts=self.status.value.restarts + 1)
        self._give_turn()
        self._move(DaemonEvent.STOP)

    def _delay_s(self, end: _End) -> float:
        """The pause before the next start; what the machine lacked may be there again soon."""
        backoff = self._config.backoff
        if end.cause is Cause.NOT_STARTED:
            backoff = backoff._replace(cap_s=min(backoff.cap_s, _MACHINE_RETRY_S))
        return self._restarts.delay_s(backoff, self._spread())

    async def _due(self) -> None:
        """Waits until the daemon is to start, and for its turn."""
        await self._role.wait_for(lambda role: role is Role.MANAGING)
        await self._wanted.wait_for(lambda loaded: bool(loaded.value))
        if self._starts is not None:
            await self._starts.acquire()
            self._has_turn = True

    def _give_turn(self) -> None:
        """The next daemon may start."""
        if self._starts is not None and self._has_turn:
            self._has_turn = False
            self._starts.release()

    async def _live(self, stop: Latest[Stop]) -> _End:
        """One life of the daemon, from before its spawn until after its end."""
        await self._retire_mapping()
        self._move(DaemonEvent.START)
        self._healthy_since_s = None
        pump = LogPump(self.dropped, self._program.name, self._device)
        end = _End()
        try:
            process = await self._start(pump)
            try:
                end = await self._run(process, stop)
            finally:
                if not await process.kill():
                    remedy = "see to the mounts that it uses"
                    self._log.error("daemon_not_ended", pid=process.pid, reason=HELD, remedy=remedy)
            await pump.finish(_OUTPUT_S)
            self._refuse_unusable(process, pump)
            if end.cause is Cause.EXIT and not (end.planned or stop.value) and pump.last_error:
                end = end._replace(reason=f"{end.reason}: {pump.last_error}")
            tell = self._log.info if end.planned or stop.value else self._log.warning
            tell("daemon_ended", reason=end.reason, last_lines=pump.last_lines)
        except DaemonUnusable as error:
            end = _End(str(error))
            raise
        except DaemonLost as error:
            end = _End(str(error))
            self._log.error("daemon_not_started", reason=end.reason, remedy=_STARTS_NEED)
        finally:
            self._publish(pid=None, started_at_s=None, last_exit=end.reason, last_exit_code=end.code, unhealthy="")
            self._move(DaemonEvent.ENDED)
            self._program.forget(f"the daemon ended: {end.reason}")
            await self._retire_mapping()
            await self._program.tidy()
        if not end.planned and not stop.value:
            self._died(end)
        return end

    def _died(self, end: _End) -> None:
        self._restarts = self._restarts.after_death(asyncio.get_running_loop().time(), end.healthy_s)
        if self._restarts.crash_loop and not self.status.value.crash_loop:
            self._log.error("daemon_crash_loop", remedy="see daemon_ended and daemon_output; retries go on")
        self._publish(crash_loop=self._restarts.crash_loop)

    def _forgive(self) -> None:
        self._restarts = self._restarts.after_health(self._healthy_s())
        self._publish(crash_loop=self._restarts.crash_loop)

    def _healthy_s(self) -> float:
        since_s = self._healthy_since_s
        return 0.0 if since_s is None else asyncio.get_running_loop().time() - since_s

    async def _start(self, pump: LogPump) -> Spawned:
        """Spawns what becomes the daemon.

        Raises:
            DaemonLost: it cannot be started now.
        """
        if self._last is not None and not self._last.exited.done():
            message = f"process {self._last.pid} of before was killed and has not ended: {HELD}"
            raise DaemonLost(message)
        try:
            await self._program.prepare()
            self._last = await spawn_connected(self._program, pump, self._reaper)
        except OSError as error:
            message = f"{error.filename or self._config.program}: {os.strerror(error.errno or 0).lower()}"
            raise DaemonLost(message) from error
        except SocketDirUnusable as error:
            raise DaemonLost(str(error)) from error
        except Stuck as error:
            message = f"--socket-dir {self._config.socket_dir}: {error}"
            raise DaemonLost(message) from error
        return self._last

    async def _run(self, process: Spawned, stop: Latest[Stop]) -> _End:
        """Goes along with a spawned process from its launch."""
        if await process.launched(stop):
            self._publish(pid=process.pid, started_at_s=time.time())
            self._log.info("daemon_started", program=process.program, pid=process.pid)
            return await self._accompany(process, stop)
        self._move(DaemonEvent.STOP)
        return _End("it was stopped before it had started")

    async def _accompany(self, process: Spawned, stop: Latest[Stop]) -> _End:
        """Goes along with a spawned daemon until it is gone."""
        turn = asyncio.get_running_loop().call_later(_TURN_S, self._give_turn)
        healthy = asyncio.get_running_loop().call_later(FORGIVEN_AFTER_S + self._config.start_timeout_s, self._forgive)
        try:
            async with asyncio.TaskGroup() as tasks:
                driving = tasks.create_task(self._drive(process.control), name="daemon")
                stopping = tasks.create_task(asked(stop), name="stop")
                ends: list[asyncio.Future[Any]] = [driving, stopping, process.exited]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                lost = driving.result() if driving.done() else ""
                planned = driving.done() and not lost
                driving.cancel()
                stopping.cancel()
        finally:
            turn.cancel()
            healthy.cancel()
        healthy_s = self._healthy_s()
        if stop.value:
            self._move(DaemonEvent.STOP)
        self._program.forget("the daemon is ending")  # before any wait: none of its sockets is promised now
        if lost and await process.ended_within(_DEATH_S):
            lost = ""  # it died, and its channel told first
        elif lost:
            self._log.warning("daemon_killed", reason=lost)
        elif not process.exited.done() and not await process.ask_to_end(self._config.stop_grace_s, stop):
            self._killed_at_stop = bool(stop.value)
            self._log.warning("daemon_killed", reason="it ended neither when asked nor by SIGTERM")
        if not await process.kill():
            return _End(f"it was killed and does not end: {HELD}", Cause.UNRESPONSIVE, None, planned, healthy_s)
        code = process.exited.result()
        ended = describe_exit(code, core_dumped=process.core_dumped)
        shell_code = code if code >= 0 else _SIGNALLED - code
        if lost:
            return _End(f"{lost} ({ended})", Cause.UNRESPONSIVE, shell_code, planned, healthy_s)
        return _End(ended, Cause.EXIT if code >= 0 else Cause.SIGNAL, shell_code, planned, healthy_s)

    async def _drive(self, control: Control) -> str:
        """Returns why the daemon is lost, empty if it must be started again."""
        try:
            await self._program.accompany(control, running=self._running, unhealthy=self._unhealthy)
        except BaseExceptionGroup as group:
            errors, defects = group.split(DaemonError)
            if errors is None or defects is not None:
                raise
            error = leaf(errors)
            self._unusable = error if isinstance(error, DaemonUnusable) else None
            return str(error)
        return ""

    def _running(self) -> None:
        self._move(DaemonEvent.ANSWERED)
        self._give_turn()
        self._healthy_since_s = asyncio.get_running_loop().time()

    def _unhealthy(self, reason: str) -> None:
        if reason == self.status.value.unhealthy:
            return
        self._healthy_since_s = None if reason else asyncio.get_running_loop().time()
        if reason:
            self._log.warning("daemon_unhealthy", reason=reason)
        else:
            self._log.info("daemon_healthy")
        self._publish(unhealthy=reason)

    def _refuse_unusable(self, process: Spawned, pump: LogPump) -> None:
        if self._unusable is not None:
            raise self._unusable
        usage = process.exited.done() and process.exited.result() == _EXIT_USAGE
        if self.status.value.state is DaemonState.STARTING and usage:
            said = "; ".join(pump.last_lines[-3:])
            message = f"{self._config.program} refused its arguments: {said}"
            raise DaemonUnusable(message)

    def _refuse_kill(self) -> None:
        if self._killed_at_stop:
            message = (
                "the daemon did not end in order and was killed; see its last lines, or give a longer --stop-grace"
            )
            raise DaemonError(message)

    def _move(self, event: DaemonEvent) -> None:
        self._publish(state=TRANSITIONS[self.status.value.state, event])

    def _publish(self, **changes: Any) -> None:
        self.status.set(self.status.value._replace(**changes))
