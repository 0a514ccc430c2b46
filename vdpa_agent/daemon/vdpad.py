"""Vdpad: how this project's own daemon is started, accompanied and asked to end."""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from vdpa_agent.config import DaemonConfig, Memory
from vdpa_agent.daemon.answers import parse_front_end, parse_statistics, parse_version
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.names import Names
from vdpa_agent.errors import DaemonError, DaemonLost
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Device, Statistics, VhostMode
from vdpa_agent.model.pci import PciAddress, function_number, shown
from vdpa_agent.model.preflight import forbidden
from vdpa_agent.node.sysfs import read_hugepages, read_near_cpus
from vdpa_agent.node.worker import Stuck

_PING_S: Final = 2.0
"""How often a running daemon is asked for its version."""

_UNHEALTHY_AFTER_S: Final = 8.0
"""A question unanswered for this long makes it unhealthy: with the pause between questions, 10 s after it hung."""

_LOST_AFTER_S: Final = 28.0
"""A question unanswered for this long makes it lost, likewise 30 s after it hung."""

_STATISTICS_S: Final = 1.0
"""How long the answer to a question for statistics may take."""

log = structlog.get_logger(__name__)


class Vdpad:
    """The daemon of `native/vdpad`, which is told of each device over its control channel."""

    name = "vdpad"
    option = "--vdpad"
    remedy = "install vdpad or name it with --vdpad"
    can_be_asked = True

    def __init__(
        self,
        config: DaemonConfig,
        *,
        devices: Devices,
        directory: SocketDirectory,
        names: Names,
        socket_list: Path | None,
        alone: PciAddress | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            config: how to run it.
            devices: its devices.
            directory: that of the sockets.
            names: gives the socket names.
            socket_list: the mapping file that it writes; None: none.
            alone: the only device that it ever serves; None: it serves all.
        """
        self.cpus: frozenset[int] | None = None
        self._config = config
        self._devices = devices
        self._directory = directory
        self._names = names
        self._socket_list = socket_list
        self._alone = alone
        self._control: Control | None = None
        self._log = log if alone is None else log.bind(device=alone)

    async def prepare(self) -> None:
        """Makes the directory of its sockets, and leaves none of an earlier daemon in its way."""
        await self._directory.make()
        if self._alone is not None:
            self.cpus = read_near_cpus(self._alone, os.sched_getaffinity(0), self._config.sysfs)
        if self._config.vhost_mode is VhostMode.CLIENT:
            return
        if self._alone is None:
            await self._directory.remove_stale()
        elif name := (await self._names.give()).get(self._alone):
            await self._directory.remove_stale((name,))

    async def tidy(self) -> None:
        """Removes the sockets that the daemon, which has ended, left behind."""
        with suppress(Stuck):  # the next start looks again
            await self._directory.remove_stale(self._devices.take_opened())

    def argv(self, control_fd: int) -> list[str]:
        """Its command line: it starts with no device."""
        config = self._config
        argv = [
            config.program,
            f"--control-fd={control_fd}",
            f"--socket-list={self._socket_list}" if self._socket_list else "--no-socket-list",
            f"--socket-dir={config.socket_dir}",
            f"--socket-mode={config.socket_mode:04o}",
            f"--vhost-mode={config.vhost_mode}",
            f"--memory={self._memory()}",
            f"--log-level={config.log_level}",
        ]
        if config.socket_owner is not None:
            argv.append(f"--socket-owner={config.socket_owner}")
        if config.socket_group is not None:
            argv.append(f"--socket-group={config.socket_group}")
        if config.simulate:
            argv += ["--simulate", f"--simulate-network={config.simulate_network}"]
        if self._alone is not None:
            # Neighbours take turns at the CPUs; the memory comes from the node of the CPU that asks for it.
            cpus = sorted(self.cpus or os.sched_getaffinity(0))
            argv.append(f"--lcore={cpus[function_number(self._alone) % len(cpus)]}")
            argv.append(f"--file-prefix=vdpad-{self._alone.replace(':', '-')}")
        return argv

    def _memory(self) -> Memory:
        """What it is to take its memory from: by itself it goes by the free hugepages, and does not see the cgroup."""
        config = self._config
        limit = forbidden(read_hugepages(config.sysfs, Path("/proc/self"))) if config.memory is Memory.AUTO else None
        if limit is None:
            return config.memory
        self._log.warning("hugepages_forbidden", reason=limit.reason, remedy=limit.remedy)
        return Memory.NONE

    @property
    def devices(self) -> Latest[Mapping[PciAddress, Device]]:
        """Its devices, as it acknowledged them."""
        return self._devices.published

    async def accompany(
        self, control: Control, *, running: Callable[[], None], unhealthy: Callable[[str], None]
    ) -> None:
        """Keeps a spawned daemon's devices at what the list says and watches that it answers, until cancelled.

        Args:
            control: its control channel.
            running: called once it answers.
            unhealthy: called with a reason when it stops answering, and with an empty one when it answers again.

        Raises:
            DaemonError: it cannot be relied on any more.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(control.run(), name="control")
            version = parse_version(await control.call("version", timeout_s=self._config.start_timeout_s))
            if version.vhost_mode not in {self._config.vhost_mode, ""}:
                message = (
                    f"vdpad runs as vhost {shown(version.vhost_mode)}, and was started as {self._config.vhost_mode}"
                )
                raise DaemonLost(message)
            running()
            self._log.info("daemon_running", version=version.version)
            self._control = control
            tasks.create_task(self._devices.follow(control), name="devices")
            tasks.create_task(_ping(control, unhealthy, self._devices.look), name="ping")

    async def ask_to_end(self, control: Control, timeout_s: float) -> None:
        """Asks it to end and waits for the answer."""
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(_quietly(control.run()))
            try:
                await control.call("shutdown", timeout_s=timeout_s)
            except DaemonError as error:
                self._log.info("daemon_shutdown_unanswered", reason=str(error))
            listening.cancel()

    def notified(self, method: str, params: dict[str, Any]) -> None:
        """Takes a notification of the daemon."""
        address = params.get("device")
        front_end = parse_front_end(method, params)
        if isinstance(address, str) and front_end is not None:
            self._devices.front_end(address, front_end)

    def forget(self, reason: str) -> None:
        """It is gone or going: nothing of it may be promised any more."""
        self._control = None
        self._devices.forget(reason)

    async def statistics(self, address: PciAddress) -> Statistics:
        """Asks for the counters of a device's virtqueues; nothing where there are none, or nobody to ask."""
        if self._control is None:
            return {}
        try:
            request = {"device": address}
            return parse_statistics(await self._control.call("device.stats", request, timeout_s=_STATISTICS_S))
        except DaemonError:
            return {}


async def _ping(control: Control, unhealthy: Callable[[str], None], answered: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_PING_S)
        late = asyncio.get_running_loop().call_later(
            _UNHEALTHY_AFTER_S, unhealthy, f"vdpad has not answered for {_UNHEALTHY_AFTER_S:g} s"
        )
        try:
            await control.call("version", timeout_s=_LOST_AFTER_S)
        finally:
            late.cancel()
        unhealthy("")
        answered()


async def _quietly(listening: Any) -> None:
    try:
        await listening
    except DaemonError:
        return
