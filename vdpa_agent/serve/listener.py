"""Opens the gRPC socket: one agent per path, its final mode from the first moment, taken away at the end."""

import asyncio
import errno
import fcntl
import os
import socket
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

_LAST_WORDS_S: Final = 0.2
"""How long running calls may take to end by themselves before they are cancelled."""

_CLOSE_S: Final = 1.0
"""How long the closing of connections may take; a client that reads nothing holds its own up."""

_OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What asyncio's accepting stumbles over and tries again."""

_TELL_AGAIN_S: Final = 10.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def listening(config: ServeConfig, services: Collection[Any]) -> AsyncIterator[None]:
    """Serves `services` and their reflection on the socket while the context lasts.

    Raises:
        AlreadyRunning: another instance holds the socket.
        ListenError: the socket cannot be opened there.
    """
    with _held(config.listen), _bound(config) as bound, _accept_errors_told():
        server = _Server(ServerReflection.extend(services), bound)
        await server.start(sock=bound, backlog=_BACKLOG)
        log.info("listening", socket=str(config.listen), mode=f"{config.listen_mode:04o}")
        try:
            yield
        finally:
            await server.end()


class _Server(Server):
    """grpclib's server, which can also part from clients that stay connected."""

    def __init__(self, services: Collection[Any], bound: socket.socket) -> None:
        super().__init__(services)
        self._bound = bound
        self._open: set[_Protocol] = set()
        self._ended = False
        self._none_open = asyncio.Event()

    def _protocol_factory(self) -> H2Protocol:
        handler = super()._protocol_factory().handler
        protocol = _Protocol(handler, self._config, self._h2_config, self)
        self._open.add(protocol)
        return protocol

    def made(self, protocol: "_Protocol") -> None:
        """A connection was made; one that was accepted before the end and made after it is closed at once."""
        if self._ended:
            protocol.connection.close()

    def lost(self, protocol: "_Protocol") -> None:
        """A connection is gone."""
        self._open.discard(protocol)
        if not self._open:
            self._none_open.set()

    async def end(self) -> None:
        """Takes no new connection, ends running requests, and closes every connection."""
        self._ended = True
        # asyncio fails on a connection that is accepted but not made yet when its server closes: let it make them.
        asyncio.get_running_loop().remove_reader(self._bound)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # Who was told at the last moment still gets to send it.
        calls = [task for handler in self._handlers for task in handler._tasks.values()]  # noqa: SLF001
        if calls:
            await asyncio.wait(calls, timeout=_LAST_WORDS_S)
        self.close()
        for protocol in list(self._open):
            if hasattr(protocol, "connection"):  # absent until the connection is made
                protocol.connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                while self._open:
                    self._none_open.clear()
                    await self._none_open.wait()


class _Protocol(H2Protocol):
    """grpclib's protocol, which tells the server when its connection begins and ends."""

    def __init__(self, handler: Any, config: Any, h2_config: Any, server: _Server) -> None:
        super().__init__(handler, config, h2_config)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._server.lost(self)


@contextmanager
def _accept_errors_told() -> Iterator[None]:
    """Tells once that connections cannot be accepted; asyncio tries again each second, with thousands of tracebacks."""
    loop = asyncio.get_running_loop()
    earlier = loop.get_exception_handler()
    told_s = -_TELL_AGAIN_S

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told_s
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _OUT_OF:
            (earlier or asyncio.AbstractEventLoop.default_exception_handler)(loop, context)
        elif loop.time() - told_s >= _TELL_AGAIN_S:
            told_s = loop.time()
            log.error(
                "connections_not_accepted",
                reason=os.strerror(error.errno or 0).lower(),
                remedy="raise the limit of open files, or see who keeps so many connections open",
            )

    loop.set_exception_handler(tell)
    try:
        yield
    finally:
        loop.set_exception_handler(earlier)


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
        bound.listen(_BACKLOG)
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
