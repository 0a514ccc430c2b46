"""DeviceInfo: a file for each device of a pool, by which Multus has CNI plugins and pods know its socket."""

import asyncio
import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from vdpa_agent.errors import AddressError
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED
from vdpa_agent.model.offer import socket_in_container, vhost_user_info
from vdpa_agent.model.pci import PciAddress, parse_pci_address
from vdpa_agent.model.served import Served
from vdpa_agent.node.worker import Stuck, Worker

VERSION: Final = "1.1.0"
"""Of the Device Information Specification of the Network Plumbing Working Group, which names the files too (4.1)."""

_SUFFIX: Final = "-device.json"
_LOOK_S: Final = 10.0
"""How often the files are looked at without any event."""

_DISK_S: Final = 2.0
_SIZE_MAX: Final = 4096
"""A file of ours is far smaller."""

_NEW: Final = ".vdpa-agent-device-info.new"
_MODE: Final = 0o444
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_Wanted = Mapping[str, bytes | None]
"""The content of each file, by its name; None: what is there stays, since the device is not served yet."""

log = structlog.get_logger(__name__)


class DeviceInfo:
    """Keeps the files what is true of the devices, and takes away what an earlier life left.

    Files of other device plugins are in the same directory; ours are those that say what only this agent says.
    """

    def __init__(self, directory: Path, served: Callable[[], Served], revision: Latest[int]) -> None:
        """Writes nothing yet.

        Args:
            directory: where they are, normally /var/run/k8s.cni.cncf.io/devinfo/dp; made if it is not there.
            served: what is served now.
            revision: changes with it.
        """
        self._directory = directory
        self._served = served
        self._revision = revision
        self._worker = Worker("device-info")
        self._turn = asyncio.Lock()
        self._kept: _Wanted = MappingProxyType({})
        self._done: _Wanted | None = None
        self._problem = ""

    async def run(self) -> None:
        """Follows what is served, until cancelled; then there is no file of ours any more."""
        try:
            while True:
                revision = self._revision.value
                await self.sync()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._revision.wait_for(partial(_differs, revision))
                        continue
                self._done = None
        finally:
            with suppress(Stuck, OSError):
                await self._worker.run(partial(_sync, self._directory, {}), timeout_s=_DISK_S)

    async def sync(self) -> None:
        """Makes all files what they are to be now."""
        async with self._turn:
            wanted = self._wanted()
            if wanted is None or wanted == self._done:
                return
            try:
                await self._worker.run(partial(_sync, self._directory, wanted), timeout_s=_DISK_S)
            except Stuck as error:
                self._report(str(error))
            except OSError as error:
                self._report(os.strerror(error.errno).lower() if error.errno else str(error))
            else:
                self._done, self._problem = wanted, ""

    def _wanted(self) -> _Wanted | None:
        """What the files are to say; None: no pool is known yet."""
        served = self._served()
        pools = served.facts.pools.value
        if pools is None:
            return None
        wanted: dict[str, bytes | None] = {}
        for members in pools.members:
            for address in members.devices:
                device = served.devices.get(address)
                name = file_name(members.pool.resource, address)
                known = device is not None and device.state in SERVED
                wanted[name] = _content(vhost_user_info(device.mode, address)) if device and known else None
                if wanted[name] is None:  # a restart of the daemon is no news
                    wanted[name] = self._kept.get(name)
        self._kept = wanted
        return wanted

    def _report(self, reason: str) -> None:
        if reason != self._problem:
            remedy = "mount it writable, or drop --device-info-dir: without the files Multus passes on no socket"
            log.warning("device_info_failed", directory=str(self._directory), reason=reason, remedy=remedy)
        self._problem = reason


def file_name(resource: str, address: PciAddress) -> str:
    """The name of a device's file."""
    return f"{resource.replace('/', '-')}-{address}{_SUFFIX}"


def _content(vhost_user: Mapping[str, str]) -> bytes:
    return json.dumps({"type": "vhost-user", "version": VERSION, "vhost-user": vhost_user}).encode()


def _differs(before: int, now: int) -> bool:
    return now != before


def _sync(directory: Path, wanted: _Wanted) -> None:
    """Writes what differs, and removes what is ours and not wanted.

    Raises:
        OSError: the directory cannot be made or read, or a file not be written.
    """
    if wanted:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    elif not directory.is_dir():
        return
    top = os.open(directory, _DIRECTORY)
    try:
        for name in os.listdir(top):  # noqa: PTH208 - of the very directory that was opened
            if name.endswith(_SUFFIX) and name not in wanted and _is_ours(name, _read(top, name)):
                os.unlink(name, dir_fd=top)
        for name, content in wanted.items():
            if content is not None and _read(top, name) != content:
                _write(top, name, content)
    finally:
        os.close(top)


def _read(top: int, name: str) -> bytes | None:
    """A file, as far as one of ours may be long; None: it is none."""
    try:
        descriptor = os.open(name, _READ, dir_fd=top)
    except OSError:
        return None
    try:
        return os.read(descriptor, _SIZE_MAX) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)


def _write(top: int, name: str, content: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(_NEW, dir_fd=top)
    descriptor = os.open(_NEW, _MAKE, _MODE, dir_fd=top)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
    os.rename(_NEW, name, src_dir_fd=top, dst_dir_fd=top)


def _is_ours(name: str, content: bytes | None) -> bool:
    """Whether a file says what only this agent says: its name ends with the address whose socket it names."""
    said: Any = None
    with suppress(ValueError, RecursionError):
        said = json.loads(content or b"")
    info = said.get("vhost-user") if isinstance(said, dict) else None
    path = info.get("path") if isinstance(info, dict) else None
    if not isinstance(path, str):
        return False
    with suppress(AddressError, IndexError):
        address = parse_pci_address(path.split("/")[-2])
        return path == socket_in_container(address) and name.endswith(f"-{address}{_SUFFIX}")
    return False
