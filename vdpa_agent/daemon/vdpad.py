"""Vdpad: how this project's own daemon is started, accompanied and asked to end."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from vdpa_agent.config import DaemonConfig, Memory, VhostMode
from vdpa_agent.daemon.answers import parse_statistics, parse_version
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.errors import DaemonError
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Device, Statistics
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.preflight import forbidden
from vdpa_agent.node.sockets import make_directory, remove_stale_sockets
from vdpa_agent.node.sysfs import read_hugepages
from vdpa_agent.node.worker import Worker

_PING_S: Final = 2.0
"""How often a running daemon is asked for its version."""

_UNHEALTHY_AFTER_S: Final = 8.0
"""A question unanswered for this long makes it unhealthy: with the pause between questions, 10 s after it hung."""

_LOST_AFTER_S: Final = 28.0
"""A question unanswered for this long makes it lost, likewise 30 s after it hung."""

_DISK_S: Final = 2.0
"""How long the file system of the sockets may take to answer."""

_STATISTICS_S: Final = 1.0
"""How long the answer to a question for statistics may take."""

log = structlog.get_logger(__name__)


class Vdpad:
    """The daemon of `native/vdpad`, which is told of each device over its control channel."""

    name = "vdpad"
    can_be_asked = True

    def __init__(self, config: DaemonConfig, socket_list: Path, devices: Devices, steps: DestructiveSteps) -> None:
        self._config = config
        self._socket_list = socket_list
        self._devices = devices
        self._steps = steps
        self._worker = Worker("stale-sockets")
        self._control: Control | None = None

    async def prepare(self) -> None:
        """Makes the directory of its sockets, and leaves none of an earlier daemon in its way."""
        await self._worker.run(partial(make_directory, self._config.socket_dir), timeout_s=_DISK_S)
        if self._config.vhost_mode is VhostMode.SERVER:
            remove = partial(remove_stale_sockets, self._config.socket_dir)
            for path in await self._worker.run(remove, timeout_s=_DISK_S):
                self._steps[Destructive.STALE_SOCKET_REMOVED] += 1
                log.warning("stale_socket_removed", socket=path)

    def argv(self, control_fd: int) -> list[str]:
        """Its command line: it starts with no device."""
        config = self._config
        argv = [
            config.program,
            f"--control-fd={control_fd}",
            f"--socket-list={self._socket_list}",
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
            argv.append("--simulate")
        return argv

    def _memory(self) -> Memory:
        """What it is to take its memory from: by itself it goes by the free hugepages, and does not see the cgroup."""
        config = self._config
        limit = forbidden(read_hugepages(config.sysfs, Path("/proc/self"))) if config.memory is Memory.AUTO else None
        if limit is None:
            return config.memory
        log.warning("hugepages_forbidden", reason=limit.reason, remedy=limit.remedy)
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
            running()
            log.info("daemon_running", version=version.version)
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
                log.info("daemon_shutdown_unanswered", reason=str(error))
            listening.cancel()

    def notified(self, method: str, params: dict[str, Any]) -> None:
        """Takes a notification of the daemon."""
        address = params.get("device")
        if not isinstance(address, str):
            return
        if method == "device.connected":
            self._devices.front_end(address, connected=True)
        elif method == "device.disconnected":
            self._devices.front_end(address, connected=False)

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
