"""Opens the gRPC socket: one agent per path, its final mode from the first moment, taken away at the end."""

import errno
import fcntl
import os
import socket
import weakref
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog
from grpclib.protocol import H2Protocol
from grpclib.reflection.service import ServerReflection
from grpclib.server import Server

from vdpa_agent.config import ServeConfig
from vdpa_agent.errors import AlreadyRunning, ListenError

_BACKLOG: Final = 4096
"""asyncio's default of 100 refuses half of 1,000 simultaneous connects; the kernel lowers this to its somaxconn."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def listening(config: ServeConfig, services: Collection[Any]) -> AsyncIterator[None]:
    """Serves `services` and their reflection on the socket while the context lasts.

    Raises:
        AlreadyRunning: another instance holds the socket.
        ListenError: the socket cannot be opened there.
    """
    with _held(config.listen), _bound(config) as bound:
        server = _Server(ServerReflection.extend(services))
        await server.start(sock=bound, backlog=_BACKLOG)
        log.info("listening", socket=str(config.listen), mode=f"{config.listen_mode:04o}")
        try:
            yield
        finally:
            await server.end()


class _Server(Server):
    """grpclib's server, which can also part from clients that stay connected."""

    def __init__(self, services: Collection[Any]) -> None:
        super().__init__(services)
        self._protocols: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    async def end(self) -> None:
        """Takes no new connection, ends running requests, and closes every connection."""
        self.close()
        for protocol in list(self._protocols):
            if hasattr(protocol, "connection"):  # absent until the connection is made
                with suppress(Exception):
                    protocol.connection.close()
        await self.wait_closed()


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
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fresh.unlink(missing_ok=True)
        bound.bind(str(fresh))
        fresh.chmod(config.listen_mode)
        identity = _identity(fresh)
        bound.listen(_BACKLOG)
        if path.exists() and not path.is_socket():
            raise FileExistsError(errno.EEXIST, "something that is not a socket is there, move it away", str(path))
        fresh.rename(path)
    except OSError as error:
        bound.close()
        raise _listen_error(path, error) from error
    try:
        yield bound
    finally:
        bound.close()
        with suppress(OSError):
            if _identity(path) == identity:
                path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _listen_error(path: Path, error: OSError) -> ListenError:
    reason = error.strerror if error.errno == errno.EEXIST else os.strerror(error.errno or 0).lower()
    return ListenError(f"--listen: {path}: {reason}; the agent needs a directory that it can write to")
