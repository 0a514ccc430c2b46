"""Opens the gRPC socket: one agent per path, its final mode from the first moment, taken away at the end."""

import asyncio
import errno
import fcntl
import os
import resource
import socket
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog
from grpclib.reflection.service import ServerReflection

from vdpa_agent.config import ServeConfig
from vdpa_agent.errors import AlreadyRunning, ListenError
from vdpa_agent.serve.connections import Connections
from vdpa_agent.serve.handled import Handled
from vdpa_agent.serve.peers import Peers

_OTHER_FILES: Final = 256
"""Descriptors that the agent needs beside those of its connections."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def listening(config: ServeConfig, services: Collection[Any]) -> AsyncIterator[tuple[Peers, Handled]]:
    """Serves `services` and their reflection on the socket while the context lasts; yields what counts who calls.

    Raises:
        AlreadyRunning: another instance holds the socket.
        ListenError: the socket cannot be opened there.
    """
    _raise_file_limit(config.limits.connections + _OTHER_FILES)
    with _held(config.listen), _bound(config) as bound:
        peers = Peers(config.limits, asyncio.get_running_loop().time)
        connections = Connections(ServerReflection.extend(services), peers, bound)
        connections.start()
        log.info("listening", socket=str(config.listen), mode=f"{config.listen_mode:04o}")
        try:
            yield peers, connections.handled
        finally:
            await connections.end()


def _raise_file_limit(needed: int) -> None:
    """Lets the process have so many descriptors, or as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        log.warning(
            "file_limit_low",
            limit=most,
            needed=needed,
            remedy="raise the hard limit of open files, or lower --max-connections",
        )


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds the lock beside the socket; the kernel frees it when the process ends, however it ends."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _listen_error(lock, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            message = f"another agent, process {holder}, holds {path}; stop it or choose another --listen"
            raise AlreadyRunning(message) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _bound(config: ServeConfig) -> Iterator[socket.socket]:
    """A socket that listens at the path; it appears by rename, complete, in place of a stale one."""
    path = config.listen
    fresh = path.with_name(f"{path.name}.new")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        fresh.unlink(missing_ok=True)
        bound.bind(str(fresh))
        if config.listen_group is not None:
            os.chown(fresh, -1, config.listen_group)
        fresh.chmod(config.listen_mode)
        bound.listen(config.limits.backlog)
        if path.exists() and not path.is_socket():
            raise FileExistsError(errno.EEXIST, "something that is not a socket is there, move it away", str(path))
        fresh.rename(path)
        # While it is open, no other file can get the inode's number.
        held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        bound.close()
        raise _listen_error(path, error) from error
    try:
        yield bound
    finally:
        bound.close()
        with suppress(OSError):
            if os.path.samestat(os.fstat(held), path.lstat()):
                path.unlink()
        os.close(held)


def _listen_error(path: Path, error: OSError) -> ListenError:
    reason = error.strerror if error.errno == errno.EEXIST else os.strerror(error.errno or 0).lower()
    return ListenError(f"--listen: {path}: {reason}; the agent needs a directory that it can write to")
