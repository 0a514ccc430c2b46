"""HTTP: a small server of pages that nobody can keep from the others, whatever they send or do not read."""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import h11
import structlog

from vdpa_agent.config import HostPort
from vdpa_agent.errors import ListenError
from vdpa_agent.node.worker import Stuck, Worker
from vdpa_agent.rpc.acceptor import Acceptor

_PIECE_BYTES: Final = 64 * 1024
"""How much of a page is handed to the kernel at once."""

_READ_BYTES: Final = 4096

_BACKLOG: Final = 128

_FORGIVEN: Final = 0.1
"""How much of the time that passes is given back to a client that was slow to read."""

_NAME_S: Final = 20.0
"""How long the servers of names may take."""

_PART_S: Final = 1.0
"""How long what a refused client still sends is read."""

_WRAPPED: Final = re.compile(r"bytearray\(b(.*)\)", re.DOTALL)
"""How h11 shows what it refuses; what is inside is printable."""

log = structlog.get_logger(__name__)


class HttpLimits(NamedTuple):
    """How much anybody may take of the server.

    Attributes:
        connections: how many may be open; one more makes another one leave.
        connections_per_address: how many of one address may be; one more makes another one of it leave.
        head_bytes: the longest request.
        head_s: how long a request may take to come, and a new connection to begin with one, in seconds.
        idle_s: how long a connection may wait for its next request, in seconds.
        send_s: how long all answers of a connection may take to be read, in seconds; a tenth of the time is given back.
    """

    connections: int = 32
    connections_per_address: int = 16
    head_bytes: int = 8192
    head_s: float = 5.0
    idle_s: float = 90.0
    send_s: float = 30.0


class Query(NamedTuple):
    """What a page gets to know of its request.

    Attributes:
        accept: the media types that the client takes.
        words: the names in the query string.
    """

    accept: str
    words: frozenset[str]


class Answer(NamedTuple):
    """A page as it is sent."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[Query], Awaitable[Answer]]


@asynccontextmanager
async def serving(
    listen: HostPort, pages: Mapping[str, Page], limits: HttpLimits | None = None
) -> AsyncIterator[HostPort]:
    """Serves pages, by their path, while the context lasts; yields where, with the port that was taken for port 0.

    Raises:
        ListenError: the address cannot be listened on.
    """
    bound = await _bind(listen)
    where = HostPort(*bound.getsockname()[:2])
    server = _Server(bound, pages, limits or HttpLimits())
    server.start()
    log.info("http_listening", address=str(where))
    try:
        yield where
    finally:
        await server.end()
        bound.close()


async def _bind(listen: HostPort) -> socket.socket:
    try:
        family, _, _, _, address = await _resolved(listen)
        # [::] alone stands for all addresses of both kinds.
        both = family == socket.AF_INET6 and address[0] == "::"
        bound = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except Stuck as error:
        message = f"--http-listen {listen}: {error}"
        raise ListenError(message) from error
    except OSError as error:
        # What getaddrinfo gives is no errno.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else str(error.strerror)
        message = f"--http-listen {listen}: {reason.lower()}; name an address of this machine and a free port"
        raise ListenError(message) from error
    bound.settimeout(0)
    return bound


async def _resolved(listen: HostPort) -> Any:
    """What getaddrinfo(3) makes of an address.

    Raises:
        Stuck: no thread can be started for a name, which a server may be asked for, or none answers.
        OSError: there is no such address.
    """
    find = partial(socket.getaddrinfo, listen.host, listen.port, type=socket.SOCK_STREAM)
    try:
        return find(flags=socket.AI_NUMERICHOST)[0]
    except socket.gaierror:
        return (await Worker("names").run(find, timeout_s=_NAME_S))[0]


class _Server:
    """The open connections, each with the task that serves it."""

    def __init__(self, bound: socket.socket, pages: Mapping[str, Page], limits: HttpLimits) -> None:
        self._acceptor = Acceptor(bound, self._let_in, at_once=1, most=1)
        self._pages = pages
        self._limits = limits
        self._open: dict[asyncio.Task[None], _Connection] = {}
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Takes connections."""
        self._acceptor.start()

    async def end(self) -> None:
        """Takes no new connection, and ends every one."""
        self._acceptor.end()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    def _let_in(self, connected: socket.socket) -> bool:
        try:
            address = str(connected.getpeername()[0])
        except OSError:  # it is gone already
            connected.close()
            return False
        self._make_room(address)
        connection = _Connection(self._pages, self._limits, address)
        task = self._loop.create_task(connection.serve(connected))
        self._open[task] = connection
        task.add_done_callback(partial(self._done, connected))
        return True

    def _done(self, connected: socket.socket, task: "asyncio.Task[None]") -> None:
        self._open.pop(task, None)
        connected.close()  # also of a task that was cancelled before its first step

    def _make_room(self, address: str) -> None:
        """Makes another connection leave if there are too many: a probe that comes must always be taken."""
        own = [task for task, connection in self._open.items() if connection.address == address]
        if len(own) >= self._limits.connections_per_address:
            candidates = own
        elif len(self._open) >= self._limits.connections:
            candidates = list(self._open)
        else:
            return
        task = min(candidates, key=lambda task: self._open[task].moved_s)
        del self._open[task]
        task.cancel()


class _Connection:
    """One connection, from request to request.

    Attributes:
        address: whose it is.
        moved_s: when it went on last: when it came, began to wait, had a request, or had a piece of an answer taken.
    """

    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    def __init__(self, pages: Mapping[str, Page], limits: HttpLimits, address: str) -> None:
        self.address = address
        self._clock = asyncio.get_running_loop().time
        self.moved_s = self._clock()
        self._sent_s = self.moved_s
        self._patience_s = limits.send_s
        self._pages = pages
        self._limits = limits
        self._method = b""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)

    async def serve(self, connected: socket.socket) -> None:
        """Serves a connected socket, and closes it."""
        self._reader, self._writer = await asyncio.open_connection(sock=connected, limit=_READ_BYTES)
        # A write then waits until the kernel has taken all of it, so nothing is left in memory between requests.
        self._writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._run()
        finally:
            # Not close(): that would wait for a client that reads nothing.
            self._writer.transport.abort()

    async def _run(self) -> None:
        """Answers requests until the client leaves, misbehaves, or is too slow."""
        patience_s = self._limits.head_s
        with suppress(OSError):  # also TimeoutError
            while await self._exchange(patience_s):
                patience_s = self._limits.idle_s
                self._http.start_next_cycle()

    async def _exchange(self, patience_s: float) -> bool:
        """Takes one request and answers it; whether another one may follow."""
        self.moved_s = self._clock()
        self._method = b""
        try:
            request = await self._receive(patience_s)
            if request is None:
                return False
            self._method = request.method
            has_body = not isinstance(self._http.next_event(), h11.EndOfMessage)
        except TimeoutError:
            if not self._http.trailing_data[0]:
                return False  # it said nothing, so nothing is answered
            return await self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")
        except h11.RemoteProtocolError as error:
            return await self._refuse(HTTPStatus(error.error_status_hint), _WRAPPED.sub(r"\1", str(error)).lower())
        if has_body:
            return await self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no page takes a body")
        self.moved_s = self._clock()
        await self._send(await self._answer(request))
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _receive(self, patience_s: float) -> h11.Request | None:
        """The next request; None if the client has left.

        Raises:
            TimeoutError: it did not begin within `patience_s` seconds, or took too long then.
            RemoteProtocolError: it is no request.
        """
        loop = asyncio.get_running_loop()
        began = bool(self._http.trailing_data[0])
        async with asyncio.timeout(self._limits.head_s if began else patience_s) as limit:
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    return event
                if event is not h11.NEED_DATA:
                    return None
                self._http.receive_data(await self._reader.read(_READ_BYTES))
                if not began:
                    began = True
                    limit.reschedule(loop.time() + self._limits.head_s)

    async def _answer(self, request: h11.Request) -> Answer:
        path, _, query = request.target.decode("ascii").partition("?")
        page = self._pages.get(path)
        if page is None:
            return _told(HTTPStatus.NOT_FOUND, f"there is no such page; there are {', '.join(sorted(self._pages))}")
        if request.method not in {b"GET", b"HEAD"}:
            return _told(HTTPStatus.METHOD_NOT_ALLOWED, "pages are read only, by GET or HEAD")
        accept = b",".join(value for name, value in request.headers if name == b"accept").decode("latin-1")
        words = frozenset(word.partition("=")[0] for word in query.split("&") if word)
        try:
            return await page(Query(accept, words))
        except Stuck as error:
            return _told(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception as error:
            log.error("page_failed", page=path, exc_info=error)
            return _told(HTTPStatus.INTERNAL_SERVER_ERROR, "the agent failed, its log tells how")

    async def _refuse(self, status: HTTPStatus, reason: str) -> bool:
        """Answers what was no request, or not all of one; the connection ends then."""
        await self._send(_told(status, reason), last=True)
        # What the client still sends has to be read: else the kernel takes the answer back from it (RFC 9112, 9.6).
        self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PART_S):
                while await self._reader.read(_PIECE_BYTES):
                    pass
        return False

    async def _send(self, answer: Answer, *, last: bool = False) -> None:
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "GET, HEAD"))
        if last:
            headers.append(("Connection", "close"))
        response = h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase)
        body = b"" if self._method == b"HEAD" else answer.body
        began_s = self._clock()
        patience_s = min(self._limits.send_s, self._patience_s + (began_s - self._sent_s) * _FORGIVEN)
        async with asyncio.timeout(patience_s):
            out = self._http.send(response) or b""
            for at in range(0, len(body), _PIECE_BYTES):
                self._writer.write(out + (self._http.send(h11.Data(body[at : at + _PIECE_BYTES])) or b""))
                out = b""
                await self._writer.drain()
                self.moved_s = self._clock()
            self._writer.write(out + (self._http.send(h11.EndOfMessage()) or b""))
            await self._writer.drain()
        self._sent_s = self._clock()
        self._patience_s = patience_s - (self._sent_s - began_s)


def _told(status: HTTPStatus, reason: str) -> Answer:
    return Answer(f"{reason}\n".encode(), status)
