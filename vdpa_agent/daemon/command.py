"""Command: how any other program that writes the mapping is started, accompanied and asked to end."""

import asyncio
import shlex
from collections.abc import Callable
from collections.abc import Mapping as ReadOnly
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from vdpa_agent.config import DaemonConfig
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Device, DeviceState, Statistics, VhostMode
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.node.sockets import dead_sockets
from vdpa_agent.node.worker import Stuck, Worker

_LOOK_S: Final = 1.0
"""How often the sockets are looked at without any event."""

_DISK_S: Final = 2.0
"""How long the file system of the sockets may take to answer."""

log = structlog.get_logger(__name__)


class Command:
    """A program that gets its devices as arguments, knows nothing of a control channel, and writes the mapping."""

    option = "--daemon-command"
    remedy = "correct --daemon-command"
    can_be_asked = False
    cpus = None

    def __init__(
        self,
        config: DaemonConfig,
        socket_list: Path,
        wanted: Latest[Loaded[DeviceList]],
        mapping: Latest[Loaded[Mapping]],
        directory: SocketDirectory,
    ) -> None:
        self.devices: Latest[ReadOnly[PciAddress, Device]] = Latest(MappingProxyType({}))
        self.name = Path(shlex.split(config.command)[0]).name
        self._config = config
        self._socket_list = socket_list
        self._wanted = wanted
        self._mapping = mapping
        self._directory = directory
        self._worker = Worker("sockets")
        self._started_with: DeviceList = ()

    async def prepare(self) -> None:
        """Makes the directory of its sockets; what it finds there is its own business."""
        await self._directory.make()

    def argv(self, control_fd: int) -> list[str]:  # noqa: ARG002 - it is not told of the channel
        """Its command line for the devices of now."""
        self._started_with = self._wanted.value.value or ()
        return command_argv(self._config, self._socket_list, self._started_with)

    async def accompany(
        self,
        control: Control,  # noqa: ARG002
        *,
        running: Callable[[], None],
        unhealthy: Callable[[str], None],  # noqa: ARG002
    ) -> None:
        """Watches which devices it has mapped, until the list is another one: then it must start again."""
        self.forget("the daemon has not mapped it yet")
        running()
        async with asyncio.TaskGroup() as tasks:
            wake = asyncio.Event()
            watches = [
                tasks.create_task(_wake_on_change(latest, wake))
                for latest in (self._wanted, self._mapping, self._directory.touched)
            ]
            while (self._wanted.value.value or ()) == self._started_with:
                wake.clear()
                await self._look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await wake.wait()
            for watch in watches:
                watch.cancel()
        log.info("daemon_list_changed", devices=len(self._wanted.value.value or ()))

    async def ask_to_end(self, control: Control, timeout_s: float) -> None:
        """There is no way to ask but SIGTERM, which comes next."""

    def notified(self, method: str, params: dict[str, Any]) -> None:
        """There is no channel for it."""

    def forget(self, reason: str) -> None:
        """Nothing of it may be promised: every device of the list is wanted, for the given reason."""
        devices = {
            address: Device(address, "", DeviceState.WANTED, reason) for address in self._wanted.value.value or ()
        }
        self.devices.set(MappingProxyType(devices))

    async def tidy(self) -> None:
        """What it leaves is its own business."""

    async def statistics(self, address: PciAddress) -> Statistics:  # noqa: ARG002
        """There is nobody to ask."""
        return {}

    async def _look(self) -> None:
        mapped = self._mapping.value.value or Mapping()
        paths = {address: mapped.sockets[address] for address in self._started_with if address in mapped.sockets}
        dead: dict[str, str] = {}
        if self._config.vhost_mode is VhostMode.SERVER:
            try:
                dead = await self._worker.run(lambda: dead_sockets(paths.values()), timeout_s=_DISK_S)
            except Stuck as error:
                dead = {path: f"{path}: {error}" for path in paths.values()}
        devices = {}
        for address in self._started_with:
            path = paths.get(address, "")
            reason = dead.get(path, "") if path else "the daemon has not mapped it yet"
            state = DeviceState.STARTING if reason else DeviceState.READY
            devices[address] = Device(address, path, state, reason)
        self.devices.set(MappingProxyType(devices))


def command_argv(config: DaemonConfig, socket_list: Path, devices: DeviceList) -> list[str]:
    """Splits the command as a shell would and substitutes.

    A word that is `{devices}` alone becomes one word per device; inside of a word they are joined by commas.
    `{socket_dir}` and `{socket_list}` stand for the paths.
    """
    argv: list[str] = []
    for word in shlex.split(config.command):
        if word == "{devices}":
            argv += devices
        else:
            substituted = word.replace("{devices}", ",".join(devices))
            substituted = substituted.replace("{socket_dir}", str(config.socket_dir))
            argv.append(substituted.replace("{socket_list}", str(socket_list)))
    return argv


async def _wake_on_change(latest: "Latest[Any]", wake: asyncio.Event) -> None:
    async for _ in latest.changes():
        wake.set()
