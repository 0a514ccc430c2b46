"""Which unix sockets are alive: the kernel is asked by a datagram connect, which no listener notices."""

import errno
import os
import socket
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from vdpa_agent.errors import REMEDIES, SocketDirUnusable
from vdpa_agent.node.kinds import kind_of

_DEAD: Final = {
    errno.ECONNREFUSED: "nobody listens on {}",
    errno.ENOENT: "the socket file {} is gone",
    errno.ENOTDIR: "the socket file {} is gone",
}
"""What connect(2) says where no socket is bound; any other error leaves open whether one is."""

_NO_STREAM: Final = {0: "what is bound at {} takes no streams"}
"""What it says where a datagram socket is."""

_REPLACED: Final = "another process replaced the socket file {}"

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

FileId = tuple[int, int]
"""Which file it is: device and inode, as stat(2) gives them."""

_NAME: Final = "vdpa-"
"""How the names of the sockets begin that a daemon of this project or its predecessor makes."""


def dead_sockets(paths: Iterable[str]) -> dict[str, str]:
    """Of these socket paths, those that nobody can connect to, each with the reason.

    A datagram socket is connected to each path: EPROTOTYPE means that a stream socket is bound there, in whatever
    network namespace; ECONNREFUSED that none is. A path that the kernel gives no verdict on, for want of a permission
    or of a descriptor, is not called dead. It may block where the path is on a file system that does not answer.
    """
    return _with_verdict(paths, _DEAD)


def _with_verdict(paths: Iterable[str], verdicts: Mapping[int, str]) -> dict[str, str]:
    """Of these paths, those with one of the verdicts, each with the reason."""
    dead: dict[str, str] = {}
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError:
        return dead
    with probe:
        for path in paths:
            if reason := verdicts.get(_verdict(probe, os.fsencode(path))):
                dead[path] = reason.format(path)
    return dead


def lost_sockets(sockets: Mapping[str, FileId | None]) -> dict[str, str]:
    """Of these socket paths, those that lead to no socket, or to another one than expected, each with the reason.

    Args:
        sockets: the paths, each with the file that it must be; None: it is not known which.
    """
    lost = {
        path: _REPLACED.format(path) for path, file in sockets.items() if file and file_at(path) not in {file, None}
    }
    return lost | _with_verdict((path for path in sockets if path not in lost), _DEAD | _NO_STREAM)


def file_at(path: str) -> FileId | None:
    """The file that a path names, without following a link; None where there is none, or it cannot be looked at."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def make_directory(directory: Path) -> None:
    """Makes the directory of the sockets, should it be gone; pods search it, so its mode is 0755.

    Raises:
        SocketDirUnusable: it cannot be made, or something else has its name.
    """
    try:
        # What is in its place is seen below.
        with suppress(FileExistsError):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        remedy = REMEDIES.get(error.errno or 0, "the agent needs a directory that it can write to")
        where = "" if error.filename in {None, str(directory)} else f"{error.filename}: "
        message = f"--socket-dir {directory}: {where}{reason}; {remedy}"
        raise SocketDirUnusable(message) from error
    if not stat.S_ISDIR(found.st_mode):
        message = f"--socket-dir {directory}: it is {kind_of(found)}; put a directory there, or choose another one"
        raise SocketDirUnusable(message)


def remove_stale_sockets(directory: str | os.PathLike[str], names: Collection[str] | None = None) -> list[str]:
    """Removes the `vdpa-*` sockets of a directory, or those of some names, that nobody listens on; returns their paths.

    Everything else in it is left alone, and a symbolic link in its place is not followed. What cannot be removed
    stays: only the device that needs its path fails, and reports why.
    """
    removed = []
    with suppress(OSError), ExitStack() as undo:
        opened = os.open(directory, _DIRECTORY)
        undo.callback(os.close, opened)
        for found in _sockets_in(opened):
            if names is not None and found not in names:
                continue
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
                # By the descriptor: the directory's name may lead elsewhere by now.
                if _verdict(probe, os.fsencode(f"/proc/self/fd/{opened}/{found}")) == errno.ECONNREFUSED:
                    os.unlink(found, dir_fd=opened)
                    removed.append(f"{os.fsdecode(directory)}/{found}")
    return removed


def _sockets_in(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [
            entry.name
            for entry in entries
            if entry.name.startswith(_NAME) and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
        ]


def _verdict(probe: socket.socket, path: bytes) -> int:
    """The error number of a connect to a path; 0 where it succeeds."""
    try:
        probe.connect(path)
    except OSError as error:
        return error.errno or errno.ENAMETOOLONG  # Python itself refuses a path that is too long, without a number
    except ValueError:
        return errno.ENOENT  # a NUL in it: nothing can have that name
    return 0
