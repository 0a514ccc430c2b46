"""Registration: serves a device plugin for each pool in the kubelet's directory, and has the kubelet know of them."""

import asyncio
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import structlog
from grpclib.client import Channel
from grpclib.exceptions import GRPCError, StreamTerminatedError

from vdpa_agent.config import LimitsConfig
from vdpa_agent.kubelet.device_plugin import OPTIONS, DevicePlugin, Devices
from vdpa_agent.kubelet.pb import device_plugin_pb2 as pb
from vdpa_agent.kubelet.pb.device_plugin_grpc import RegistrationStub
from vdpa_agent.latest import Latest
from vdpa_agent.model.mapping import SOCKET_PATH_MAX_BYTES
from vdpa_agent.node.guarded import refuse_descriptors
from vdpa_agent.node.sockets import FileId
from vdpa_agent.node.worker import Stuck, Worker
from vdpa_agent.rpc.connections import Connections
from vdpa_agent.rpc.peers import Peers
from vdpa_agent.rpc.repeats import Repeats

_VERSION: Final = "v1beta1"
_KUBELET: Final = "kubelet.sock"
_DIRECTORY: Final = "device-plugins"

_LOOK_S: Final = 0.25
"""How often the kubelet's directory is looked at: one that starts anew empties it."""

_DISK_S: Final = 2.0
_REGISTER_S: Final = 5.0
"""How long the kubelet may take to answer."""

_WATCH_S: Final = 5.0
"""How long after it has answered it may take to ask for the devices; and how long it may leave off asking."""

_BACKLOG: Final = 16

_LIMITS: Final = LimitsConfig()
"""The kubelet is root, as the agent is that may write to its directory; nobody else may call."""

log = structlog.get_logger(__name__)


class _Seen(NamedTuple):
    """What is in the kubelet's directory.

    Attributes:
        kubelet: the kubelet's own socket; None: it is not there.
        endpoints: the sockets of the plugins that are there, by name.
        removed: whether no directory has it any more.
    """

    kubelet: FileId | None
    endpoints: Mapping[str, FileId]
    removed: bool


class Registration:
    """Has a plugin for each pool that there is."""

    def __init__(self, kubelet_dir: Path, devices: Devices, lost: Latest[str]) -> None:
        """Serves nothing yet.

        Args:
            kubelet_dir: the kubelet's directory, normally /var/lib/kubelet.
            devices: what the plugins speak of.
            lost: why only a new container finds the kubelet, empty if this one does; nothing else writes it.
        """
        self._directory = kubelet_dir / _DIRECTORY
        self._devices = devices
        self._lost = lost
        self._worker = Worker("kubelet")
        self._endpoints: dict[str, _Endpoint] = {}
        self._repeats = Repeats(asyncio.get_running_loop().time, at_once=1, every_s=60.0, of_all=20)

    async def run(self) -> None:
        """Serves and registers, again whenever the kubelet has forgotten, until cancelled."""
        try:
            while True:
                self._follow_pools()
                seen = await self._look()
                if seen is not None:
                    for endpoint in self._endpoints.values():
                        await self._keep(endpoint, seen)
                await asyncio.sleep(_LOOK_S)
        finally:
            self._devices.offers.end()
            for endpoint in self._endpoints.values():
                endpoint.drop()
            with suppress(Stuck, OSError):
                names = list(self._endpoints)
                await self._worker.run(partial(_remove, self._directory, names), timeout_s=_DISK_S)
            await asyncio.gather(*(endpoint.connections.end() for endpoint in self._endpoints.values()))

    def _follow_pools(self) -> None:
        """Has an endpoint for each resource; one whose resource is gone stays, with no device."""
        for resource in self._devices.offers.offered.value:
            name = endpoint_name(self._directory, resource)
            if name not in self._endpoints:
                plugin = DevicePlugin(resource, self._devices)
                peers = Peers(_LIMITS, asyncio.get_running_loop().time)
                self._endpoints[name] = _Endpoint(name, resource, plugin, Connections([plugin], peers))

    async def _look(self) -> _Seen | None:
        """What is in the directory; None: it is not there, or does not answer."""
        try:
            seen = await self._worker.run(partial(_see, self._directory, list(self._endpoints)), timeout_s=_DISK_S)
        except (Stuck, OSError, RuntimeError) as error:
            reason = _words(error)
            if self._repeats.due(("lost", reason)):
                remedy = "is this the kubelet's directory, and mounted? it is looked at again and again"
                log.warning("kubelet_not_found", directory=str(self._directory), reason=reason, remedy=remedy)
            return None
        if not seen.removed:
            self._lost.set("")
            return seen
        # It is a mount whose source was removed: whatever the kubelet has made since is not seen here.
        directory, remedy = self._directory, "only a new container can fix that"
        self._lost.set(f"the kubelet's directory {directory} was removed while it is mounted; {remedy}")
        if self._repeats.due("removed"):
            log.warning("kubelet_not_found", directory=str(directory), reason="it was removed", remedy=remedy)
        return None

    async def _keep(self, endpoint: "_Endpoint", seen: _Seen) -> None:
        """Has an endpoint listen, and the kubelet know it."""
        now_s = asyncio.get_running_loop().time()
        if endpoint.file is None or seen.endpoints.get(endpoint.name) != endpoint.file:
            endpoint.drop()
            try:
                bound, file = await self._worker.run(partial(_bind, self._directory, endpoint.name), timeout_s=_DISK_S)
            except (Stuck, OSError, RuntimeError) as error:
                self._report(endpoint, _words(error))
                return
            endpoint.adopt(bound, file)
        if seen.kubelet is None:
            endpoint.registered_with = None
        elif endpoint.registered_with != seen.kubelet or endpoint.is_forgotten(now_s):
            await self._register(endpoint, seen.kubelet)

    async def _register(self, endpoint: "_Endpoint", kubelet: FileId) -> None:
        request = pb.RegisterRequest(
            version=_VERSION, endpoint=endpoint.name, resource_name=endpoint.resource, options=OPTIONS
        )
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(_REGISTER_S), Channel(path=str(self._directory / _KUBELET)) as channel:
                await RegistrationStub(channel).Register(request)
        except (TimeoutError, OSError, StreamTerminatedError, GRPCError) as error:
            # grpclib wakes a task by a cancel that stays counted.
            if task and task.cancelling() > cancels:
                task.uncancel()
            self._report(endpoint, _words(error))
            return
        endpoint.registered_with = kubelet
        endpoint.registered_s = asyncio.get_running_loop().time()
        log.info("kubelet_registered", resource=endpoint.resource, endpoint=str(self._directory / endpoint.name))

    def _report(self, endpoint: "_Endpoint", reason: str) -> None:
        if count := self._repeats.due((endpoint.resource, reason)):
            log.warning("kubelet_not_registered", resource=endpoint.resource, reason=reason, count=count)


class _Endpoint:
    """One plugin's socket, and what the kubelet knows of it.

    Attributes:
        file: its socket in the directory; None: it has none.
        registered_with: the kubelet's socket at which it was registered; None: nowhere.
        registered_s: when that was.
    """

    def __init__(self, name: str, resource: str, plugin: DevicePlugin, connections: Connections) -> None:
        self.name = name
        self.resource = resource
        self.plugin = plugin
        self.connections = connections
        self.file: FileId | None = None
        self.registered_with: FileId | None = None
        self.registered_s = 0.0

    def adopt(self, bound: socket.socket, file: FileId) -> None:
        """Serves at a socket that listens; the kubelet does not know it yet."""
        self.connections.listen(bound)
        self.file = file
        self.registered_with = None

    def drop(self) -> None:
        """Nobody finds it any more."""
        self.file = self.registered_with = None

    def is_forgotten(self, now_s: float) -> bool:
        """Whether the kubelet should have asked for the devices by now and does not."""
        if self.plugin.watched.value:
            self.registered_s = now_s
        return now_s - self.registered_s > _WATCH_S


def endpoint_name(directory: Path, resource: str) -> str:
    """The name of a resource's socket: its own where that fits into a path."""
    name = f"vdpa-agent-{resource.replace('/', '_')}.sock"
    if len(f"{directory}/{name}".encode()) <= SOCKET_PATH_MAX_BYTES:
        return name
    return f"vdpa-agent-{crc32(resource.encode()):08x}.sock"


def _see(directory: Path, names: list[str]) -> _Seen:
    """What is there.

    Raises:
        OSError: the directory is not there.
    """
    removed = directory.stat().st_nlink == 0
    found = {name: file for name in names if (file := _socket_at(directory / name)) is not None}
    return _Seen(_socket_at(directory / _KUBELET), found, removed)


def _socket_at(path: Path) -> FileId | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def _bind(directory: Path, name: str) -> tuple[socket.socket, FileId]:
    """A socket that listens in the kubelet's directory, in place of one of an earlier life.

    Raises:
        OSError: it cannot be made.
    """
    path = directory / name
    with suppress(FileNotFoundError):
        path.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        bound.bind(str(path))
        path.chmod(0o600)
        refuse_descriptors(bound)
        bound.listen(_BACKLOG)
        status = path.lstat()
    except BaseException:
        bound.close()
        raise
    return bound, (status.st_dev, status.st_ino)


def _remove(directory: Path, names: list[str]) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError | Stuck):
        return "no answer in time"
    if isinstance(error, GRPCError):
        return f"{error.status.name}: {error.message}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error).lower() or type(error).__name__
