"""HTTP against raw sockets: what clients may ask, and what they cannot do to each other."""

import asyncio
import fcntl
import resource
import socket
import termios
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vdpa_agent.config import HostPort
from vdpa_agent.errors import ListenError
from vdpa_agent.serve.http.server import Answer, HttpLimits, Page, Query, serving

pytestmark = pytest.mark.anyio

LOOPBACK = HostPort("127.0.0.1", 0)
QUICK = HttpLimits(connections=4, head_s=0.3, idle_s=0.6, send_s=0.5)
BIG = b"x" * 32 * 1024 * 1024
"""More than the kernel keeps for a client that reads nothing."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _hello(query: Query) -> Answer:
    return Answer(f"{query.accept}|{','.join(sorted(query.words))}".encode())


async def _big(_query: Query) -> Answer:
    return Answer(BIG)


async def _broken(_query: Query) -> Answer:
    message = "a defect"
    raise ZeroDivisionError(message)


@asynccontextmanager
async def _server(limits: HttpLimits = QUICK, **more: Page) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    """A server; what it gives opens a connection to it."""
    pages = {"/hello": _hello, "/big": _big, "/broken": _broken, **{f"/{name}": page for name, page in more.items()}}
    before = asyncio.all_tasks()
    async with AsyncExitStack() as closed, serving(LOOPBACK, pages, limits) as where:

        async def connect() -> Streams:
            reader, writer = await asyncio.open_connection(where.host, where.port)
            closed.callback(writer.close)
            return reader, writer

        yield connect
    assert asyncio.all_tasks() == before


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _said(streams: Streams, request: bytes = b"") -> bytes:
    """Sends a request; all that comes until the server closes."""
    reader, writer = streams
    writer.write(request)
    async with asyncio.timeout(10):
        return await reader.read()


def _get(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: a", "Connection: close", *headers)
    return "\r\n".join((*lines, "", "")).encode()


async def test_a_page_is_served_with_its_query() -> None:
    async with _server() as connect:
        answer = await _said(await connect(), _get("/hello?b&a=1", "Accept: text/plain", "Accept: */*"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 18\r\n" in head
    assert body == b"text/plain,*/*|a,b"


async def test_head_has_no_body() -> None:
    async with _server() as connect:
        answer = await _said(await connect(), _get("/hello", method="HEAD"))
    assert b"Content-Length: 1\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_a_connection_is_kept_and_requests_may_come_at_once() -> None:
    first = b"GET /hello?1 HTTP/1.1\r\nHost: a\r\n\r\n"
    async with _server() as connect:
        reader, writer = await connect()
        writer.write(first)
        await reader.readuntil(b"|1")
        answer = await _said((reader, writer), first + b"HEAD /big HTTP/1.1\r\nHost: a\r\n\r\n" + _get("/hello?3"))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.endswith(b"\r\n\r\n|3")


async def test_an_old_client_gets_its_answer_and_the_end() -> None:
    async with _server() as connect:
        assert (await _said(await connect(), b"GET /hello HTTP/1.0\r\n\r\n")).endswith(b"|")


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (_get("/"), b"404 Not Found", b"there are /big, /broken, /hello\n"),
        (_get("/hello", method="POST"), b"405 Method Not Allowed", b"\r\nAllow: GET, HEAD\r\n"),
        (_get("/hello", "Content-Length: 3") + b"abc", b"413 ", b"no page takes a body\n"),
        (_get("/hello", "Content-Length: 3", method="POST"), b"413 ", b"no page takes a body\n"),
        (_get("/hello", "Transfer-Encoding: chunked"), b"413 ", b"no page takes a body\n"),
        (_get("/hello", "Transfer-Encoding: chunked") + b"zz\r\n\r\n", b"400 ", b"illegal chunk header"),
        (_get("/hello", "Transfer-Encoding: gzip"), b"501 ", b"chunked"),
        (b"GET /hello HTTP/1.1\r\n\r\n", b"400 Bad Request", b"missing mandatory host"),
        (b"\x16\x03\x01\r\n\r\n", b"400 Bad Request", b"illegal request line: '\\x16\\x03\\x01'\n"),
        (_get("/hello", "no colon"), b"400 Bad Request", b"illegal header line: 'no colon'\n"),
        (_get("/hello", "X'\x01Y: 1"), b"400 Bad Request", b"illegal header line: "),
        (_get("/" + "a" * 20_000), b"431 Request Header Fields Too Large", b"too long"),
        (_get("/hello", "X: " + "a" * 1_000_000), b"431 Request Header Fields Too Large", b"too long"),
        (b"GET /hello HT", b"408 Request Timeout", b"took too long"),
        (_get("/broken"), b"500 Internal Server Error", b"its log tells how"),
    ],
)
async def test_refusals(request_: bytes, status: bytes, said: bytes) -> None:
    with capture_logs() as logs:
        async with _server() as connect:
            answer = await _said(await connect(), request_)
            assert (await _said(await connect(), _get("/hello"))).endswith(b"|")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert said in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert [log["page"] for log in logs if log["event"] == "page_failed"] == ["/broken"] * (status[:3] == b"500")


async def test_a_client_that_says_nothing_has_to_leave() -> None:
    async with _server(QUICK._replace(idle_s=3600.0)) as connect:
        assert await _said(await connect()) == b""
    async with _server() as connect:
        kept = await _said(await connect(), b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.endswith(b"|")


async def test_a_request_in_small_pieces_has_no_more_time() -> None:
    async with _server() as connect:
        reader, writer = await connect()
        answer = asyncio.ensure_future(reader.read())
        pieces = iter(_get("/hello") * 100)
        for byte in pieces:
            writer.write(bytes([byte]))
            if (await asyncio.wait({answer}, timeout=0.02))[0]:
                break
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        assert next(pieces)  # it was not waited for


async def test_one_who_does_not_read_delays_nobody_and_has_to_leave() -> None:
    async with _server() as connect:
        before = _open_files()
        reader, writer = await connect()
        writer.write(_get("/big"))
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(5):
            assert (await _said(await connect(), _get("/hello"))).endswith(b"|")
        async with asyncio.timeout(10):
            while _open_files() > before + 6:  # only the ends of the six clients are left
                await asyncio.sleep(0.002)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(len(BIG))


async def test_one_who_reads_slowly_gets_all_of_a_big_page() -> None:
    async with serving(LOOPBACK, {"/big": _big}) as where:
        reader, writer = await asyncio.open_connection(where.host, where.port, limit=1024)
        writer.write(_get("/big"))
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while piece := await reader.read(4096):
            got += len(piece)
            await asyncio.sleep(0)
        writer.close()
    assert got == len(BIG)


async def test_a_new_client_takes_the_place_of_the_oldest_that_is_silent() -> None:
    async with _server(HttpLimits(connections=4)) as connect:
        kept = [await connect() for _ in range(4)]
        for reader, writer in kept:
            writer.write(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"|")
        assert (await _said(await connect(), _get("/hello"))).endswith(b"|")
        assert await _said(kept[0]) == b""
        assert (await _said(kept[1], _get("/hello?again"))).endswith(b"|again")


async def _stall(connect: Callable[[], Awaitable[Streams]], requests: int = 1) -> Streams:
    """A client that asks for more than it reads, and begins to be answered."""
    reader, writer = await connect()
    writer.write(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n" * requests)
    await reader.readuntil(b"\r\n\r\n")
    # Until both ends' buffers are full it still goes on.
    came, before = _unread(writer), -1
    while came != before:
        await asyncio.sleep(0.1)
        came, before = _unread(writer), came
    return reader, writer


def _unread(writer: asyncio.StreamWriter) -> int:
    """How many bytes wait in the kernel for a client that does not read."""
    count = array("i", [0])
    fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize("limits", [HttpLimits(connections=4), HttpLimits(connections_per_address=4)])
async def test_a_new_client_takes_the_place_of_the_one_that_went_on_least_lately(limits: HttpLimits) -> None:
    async with _server(limits) as connect:
        stalled = [await _stall(connect) for _ in range(4)]
        kept = await connect()  # the first has to leave
        for _ in range(8):
            assert (await _said(await connect(), _get("/hello"))).endswith(b"|")
            kept[1].write(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
            await kept[0].readuntil(b"|")
        for reader, _ in stalled[:2]:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(len(BIG))


async def test_no_address_takes_the_places_of_all() -> None:
    async with serving(HostPort("0.0.0.0", 0), {"/hello": _hello}, HttpLimits(connections_per_address=4)) as where:
        others = [await asyncio.open_connection("127.0.0.1", where.port) for _ in range(4)]
        for _ in range(40):
            _, writer = await asyncio.open_connection("127.0.0.1", where.port, local_addr=("127.0.0.2", 0))
            others.append((_, writer))
        for reader, writer in others[:4]:
            writer.write(_get("/hello"))
            assert (await reader.read()).endswith(b"|")
        for _, writer in others:
            writer.close()


async def test_all_answers_of_a_connection_have_the_patience_of_one() -> None:
    page = b"x" * 1024 * 1024
    served = 0

    async def counted(_query: Query) -> Answer:
        nonlocal served
        served += 1
        return Answer(page)

    async with _server(QUICK, counted=counted) as connect:
        reader, writer = await connect()
        writer.write(b"GET /counted HTTP/1.1\r\nHost: a\r\n\r\n" * 4_000)
        async with asyncio.timeout(60):
            with suppress(ConnectionResetError):
                while await reader.read(len(page) // 2):  # ever a bit, before its patience is over
                    await asyncio.sleep(0.05)
        assert served < 200


async def test_who_comes_while_there_is_no_descriptor_is_served_later() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with capture_logs() as logs:
        async with serving(LOOPBACK, {"/hello": _hello}) as where:
            client = socket.socket()
            client.settimeout(0)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
                await asyncio.get_running_loop().sock_connect(client, (where.host, where.port))
                async with asyncio.timeout(10):
                    while len(logs) < 2:
                        await asyncio.sleep(0.002)
                began_s = time.process_time()
                await asyncio.sleep(0.2)
                assert time.process_time() - began_s < 0.1  # it rests, although the socket stays readable
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            reader, writer = await asyncio.open_connection(sock=client)
            assert (await _said((reader, writer), _get("/hello"))).endswith(b"|")
            writer.close()
    assert [log["event"] for log in logs] == ["http_listening", "connections_not_accepted"]
    assert logs[1]["reason"] == "too many open files"


async def test_the_end_of_the_server_ends_every_connection() -> None:
    async with asyncio.timeout(2), _server(HttpLimits()) as connect:
        silent = await connect()
        kept = await connect()
        kept[1].write(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
        await kept[0].readuntil(b"|")
    assert await _said(silent) == await _said(kept) == b""


@pytest.mark.parametrize("host", ["::", "::1", "localhost"])
async def test_other_forms_of_an_address(host: str) -> None:
    async with serving(HostPort(host, 0), {"/hello": _hello}) as where:
        for target in ("127.0.0.1", "::1") if host == "::" else (host,):
            streams = await asyncio.open_connection(target, where.port)
            assert (await _said(streams, _get("/hello"))).endswith(b"|")
            streams[1].close()


async def test_an_address_that_cannot_be_had() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for listen, reason in (
            (HostPort("127.0.0.1", port), f"127.0.0.1:{port}: address already in use"),
            (HostPort("192.0.2.1", 0), "192.0.2.1:0: cannot assign requested address"),
            (HostPort("no-such-host.invalid", 0), "no-such-host.invalid:0: name or service not known"),
        ):
            with pytest.raises(ListenError) as refusal:
                async with serving(listen, {}):
                    pytest.fail("it listens")
            assert str(refusal.value) == (f"--http-listen {reason}; name an address of this machine and a free port")
