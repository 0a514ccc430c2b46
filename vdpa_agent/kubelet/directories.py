"""Directories: a directory for each device, with its socket and nothing else, which outlives every restart."""

import asyncio
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import structlog

from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED, VhostMode
from vdpa_agent.model.health import Role
from vdpa_agent.model.naming import DEVICE_SOCKET
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.served import Served
from vdpa_agent.node.kinds import kind_of
from vdpa_agent.node.sockets import FileId
from vdpa_agent.node.worker import Stuck, Worker

_LOOK_S: Final = 4.0
"""How often they are looked at without any event."""

_DISK_S: Final = 2.0
"""How long the file system may take to answer."""

_ROOT_MODE: Final = 0o700
"""Nobody comes to a directory but by a mount of it, whose maker is root."""

_SERVER_MODE: Final = 0o755
_CLIENT_MODE: Final = 0o777
"""A front end of any user makes its socket there."""

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE: Final = ".gone-"

T = TypeVar("T")

log = structlog.get_logger(__name__)


class _Wanted(NamedTuple):
    """What a directory is to be.

    Attributes:
        mode: which end opens the socket.
        socket: the path of the daemon's socket; empty where the front end opens it, or there is none now.
        file: which file that is, where it is known.
    """

    mode: VhostMode
    socket: str = ""
    file: FileId | None = None


class Directories:
    """Keeps `<root>/<address>/vhost.sock` the socket of each device that is served.

    Where the daemon opens the socket, it is a second name (a hard link) of it, made anew with each new socket: a pod
    that has the directory mounted finds it there. Where the front end opens it, the directory is the front end's alone.
    No directory is ever removed while its device is known, since a pod may have it mounted.

    Attributes:
        root: the directory of the directories.
    """

    def __init__(self, root: Path, served: Callable[[], Served], revision: Latest[int]) -> None:
        """Makes nothing yet.

        Args:
            root: the directory of the directories.
            served: what is served now.
            revision: changes with it.
        """
        self.root = root
        self._served = served
        self._revision = revision
        self._worker = Worker("directories")
        self._turn = asyncio.Lock()
        self._problems: Mapping[PciAddress, str] = {}
        self._linked: Mapping[PciAddress, FileId] = {}

    async def run(self) -> None:
        """Follows what is served, until cancelled."""
        while True:
            revision = self._revision.value
            await self.sync()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._revision.wait_for(partial(_differs, revision))

    async def sync(self) -> None:
        """Makes all of them what they are to be now."""
        served = self._served()
        if served.facts.role is not Role.MANAGING:
            self._problems = dict.fromkeys(served.devices, "another process owns its socket")
            return
        wanted = {
            address: _Wanted(
                device.mode,
                device.socket if device.mode is VhostMode.SERVER and device.state in SERVED else "",
                device.facts.file,
            )
            for address, device in served.devices.items()
        }
        dead = {
            address: file
            for address, file in self._linked.items()
            if address not in wanted or not wanted[address].socket
        }
        try:
            problems = await self._do(partial(_sync, self.root, wanted, dead))
            self._linked = {address: one.file for address, one in wanted.items() if one.socket and one.file}
        except Stuck:
            problems = dict.fromkeys(wanted, f"the file system of {self.root} does not answer")
        for address, problem in problems.items():
            if self._problems.get(address) != problem:
                remedy = "vdpa-agent needs a directory that it can write to, and keeps what it makes there"
                log.warning("device_directory_failed", device=address, reason=problem, remedy=remedy)
        self._problems = problems

    def problem(self, address: PciAddress) -> str:
        """Why the directory of a device is not what it is to be; empty if it is."""
        return self._problems.get(address, "")

    async def renew(self, address: PciAddress) -> str:
        """Gives a device whose front end opens the socket a new directory: nothing of the pod before is in it.

        Returns:
            Why it could not; empty if it did.
        """
        try:
            await self._do(partial(_renew, self.root, address))
        except OSError as error:
            return _words(error)
        except Stuck:
            return f"the file system of {self.root} does not answer"
        return ""

    async def _do(self, job: Callable[[], T]) -> T:
        async with self._turn:
            return await self._worker.run(job, timeout_s=_DISK_S)


def _differs(before: int, now: int) -> bool:
    return now != before


def _sync(root: Path, wanted: Mapping[PciAddress, _Wanted], dead: Mapping[PciAddress, FileId]) -> dict[PciAddress, str]:
    """Makes directories and links, and takes links away whose sockets are dead; returns what could not be done."""
    problems: dict[PciAddress, str] = {}
    if not wanted and not dead:
        return problems
    try:
        with _opened_root(root) as top:
            for address, file in dead.items():
                with suppress(OSError):
                    _unlink(top, address, file)
            for address, one in wanted.items():
                try:
                    _make(top, address, one)
                except OSError as error:
                    problems[address] = _words(error)
    except OSError as error:
        return dict.fromkeys(wanted, _words(error))
    return problems


@contextmanager
def _opened_root(root: Path) -> Iterator[int]:
    with suppress(FileExistsError):
        root.mkdir(mode=_ROOT_MODE, parents=True)
    with _opened(root) as top:
        _set_mode(top, _ROOT_MODE)
        yield top


@contextmanager
def _opened(path: str | Path, directory: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _OPEN, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _set_mode(descriptor: int, mode: int) -> None:
    """By the descriptor: a path may lead elsewhere by now."""
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)


def _unlink(top: int, address: PciAddress, file: FileId) -> None:
    """Takes a link away if it is still the one that was made: a front end may have a socket of its own there by now."""
    with _opened(address, top) as directory:
        found = os.stat(DEVICE_SOCKET, dir_fd=directory, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == file:
            os.unlink(DEVICE_SOCKET, dir_fd=directory)


def _make(top: int, address: PciAddress, wanted: _Wanted) -> None:
    try:
        _make_once(top, address, wanted)
    except (NotADirectoryError, IsADirectoryError, FileExistsError):
        # What a front end of another time has left there, or another process.
        _put_aside(top, address)
        _make_once(top, address, wanted)


def _make_once(top: int, address: PciAddress, wanted: _Wanted) -> None:
    with suppress(FileExistsError):
        os.mkdir(address, dir_fd=top)
    with _opened(address, top) as directory:
        _set_mode(directory, _CLIENT_MODE if wanted.mode is VhostMode.CLIENT else _SERVER_MODE)
        if wanted.socket:
            _link(directory, wanted)


def _link(directory: int, wanted: _Wanted) -> None:
    """Has the name lead to the socket, in one step, by the descriptor of the very file."""
    source = os.open(wanted.socket, _FILE)
    try:
        found = os.fstat(source)
        identity = (found.st_dev, found.st_ino)
        if not stat.S_ISSOCK(found.st_mode) or wanted.file not in {None, identity}:
            message = f"{wanted.socket} is {kind_of(found)} of another process"
            raise OSError(0, message)
        with suppress(FileNotFoundError):
            present = os.stat(DEVICE_SOCKET, dir_fd=directory, follow_symlinks=False)
            if (present.st_dev, present.st_ino) == identity:
                return
        new = f".{DEVICE_SOCKET}.new"
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)
        os.link(f"/proc/self/fd/{source}", new, dst_dir_fd=directory, follow_symlinks=True)
        os.rename(new, DEVICE_SOCKET, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(source)


def _renew(root: Path, address: PciAddress) -> None:
    with _opened_root(root) as top:
        with suppress(FileNotFoundError):
            _put_aside(top, address)
        _make_once(top, address, _Wanted(VhostMode.CLIENT))


def _put_aside(top: int, address: PciAddress) -> None:
    """Takes a directory away, with what is in it: whoever has it mounted keeps what nobody else sees any more."""
    aside = f"{_GONE}{os.urandom(8).hex()}"
    os.rename(address, aside, src_dir_fd=top, dst_dir_fd=top)
    with suppress(OSError, RecursionError):
        if stat.S_ISDIR(os.stat(aside, dir_fd=top, follow_symlinks=False).st_mode):
            shutil.rmtree(aside, dir_fd=top)
        else:
            os.unlink(aside, dir_fd=top)


def _words(error: OSError) -> str:
    reason = os.strerror(error.errno).lower() if error.errno else str(error.strerror)
    return f"{error.filename}: {reason}" if isinstance(error.filename, str) else reason
