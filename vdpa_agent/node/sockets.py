"""Which unix sockets are alive: the kernel is asked by a datagram connect, which no listener notices."""

import errno
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_DEAD: Final = {
    errno.ECONNREFUSED: "nobody listens on {}",
    errno.ENOENT: "the socket file {} is gone",
    errno.ENOTDIR: "the socket file {} is gone",
}
"""What connect(2) says where no socket is bound; any other error leaves open whether one is."""

_NAME: Final = b"vdpa-"
"""How the names of the sockets begin that a daemon of this project or its predecessor makes."""


def dead_sockets(paths: Iterable[str]) -> dict[str, str]:
    """Of these socket paths, those that nobody can connect to, each with the reason.

    A datagram socket is connected to each path: EPROTOTYPE means that a stream socket is bound there, in whatever
    network namespace; ECONNREFUSED that none is. A path that the kernel gives no verdict on, for want of a permission
    or of a descriptor, is not called dead. It may block where the path is on a file system that does not answer.
    """
    dead: dict[str, str] = {}
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError:
        return dead
    with probe:
        for path in paths:
            if reason := _DEAD.get(_verdict(probe, os.fsencode(path))):
                dead[path] = reason.format(path)
    return dead


def make_directory(directory: Path) -> None:
    """Makes the directory of the sockets, should it be gone; pods search it, so its mode is 0755.

    Raises:
        OSError: it cannot be made.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)


def remove_stale_sockets(directory: str | os.PathLike[str], name: str | None = None) -> list[str]:
    """Removes the `vdpa-*` sockets of a directory, or the one of a name, that nobody listens on; returns their paths.

    Everything else in it is left alone. What cannot be removed stays: only the device that needs its path fails, and
    reports why.
    """
    removed = []
    for path in _sockets_in(os.fsencode(directory)):
        if name is not None and os.path.basename(path) != os.fsencode(name):  # noqa: PTH119 - of bytes
            continue
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
                if _verdict(probe, path) != errno.ECONNREFUSED:
                    continue
            Path(os.fsdecode(path)).unlink()
        except OSError:
            continue
        removed.append(os.fsdecode(path))
    return removed


def _sockets_in(directory: bytes) -> list[bytes]:
    try:
        with os.scandir(directory) as entries:
            return [
                entry.path
                for entry in entries
                if entry.name.startswith(_NAME) and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
            ]
    except OSError:
        return []


def _verdict(probe: socket.socket, path: bytes) -> int:
    """The error number of a connect to a path; 0 where it succeeds."""
    try:
        probe.connect(path)
    except OSError as error:
        return error.errno or errno.ENAMETOOLONG  # Python itself refuses a path that is too long, without a number
    except ValueError:
        return errno.ENOENT  # a NUL in it: nothing can have that name
    return 0
