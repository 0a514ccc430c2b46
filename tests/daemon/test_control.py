"""The control channel's client end, with the other end in the test's hands."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from vdpa_agent.daemon.control import Control, open_control
from vdpa_agent.errors import DaemonLost, RequestRefused

pytestmark = pytest.mark.anyio


class _Peer:
    """vdpad's end."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.notified: list[tuple[str, dict[str, Any]]] = []
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def request(self) -> dict[str, Any]:
        return dict(json.loads(await self.reader.readline()))

    def send(self, line: bytes) -> None:
        self.writer.write(line + b"\n")

    def answer(self, identifier: int, **member: Any) -> None:
        self.send(json.dumps({"jsonrpc": "2.0", "id": identifier, **member}).encode())


@asynccontextmanager
async def _connected() -> AsyncIterator[tuple[Control, _Peer, "asyncio.Task[None]"]]:
    ours, theirs = socket.socketpair()
    peer = _Peer(theirs)
    control = await open_control(ours, lambda method, params: peer.notified.append((method, params)))
    peer.reader, peer.writer = await asyncio.open_connection(sock=theirs)
    running = asyncio.ensure_future(control.run())
    try:
        async with asyncio.timeout(10):
            yield control, peer, running
    finally:
        control.close()
        peer.writer.close()
        running.cancel()
        with suppress(asyncio.CancelledError, DaemonLost):
            await running


async def test_answers_find_their_questions_in_any_order() -> None:
    async with _connected() as (control, peer, _):
        first = asyncio.ensure_future(control.call("version", timeout_s=5))
        second = asyncio.ensure_future(control.call("device.add", {"device": "0000:82:00.2"}, timeout_s=5))
        asked = [await peer.request(), await peer.request()]
        assert asked[1] == {
            "jsonrpc": "2.0",
            "id": asked[1]["id"],
            "method": "device.add",
            "params": {"device": "0000:82:00.2"},
        }
        peer.answer(asked[1]["id"], result="b")
        peer.answer(asked[0]["id"], result="a")
        assert (await first, await second) == ("a", "b")


async def test_an_error_is_raised_with_its_code_and_words() -> None:
    async with _connected() as (control, peer, _):
        call = asyncio.ensure_future(control.call("device.add", timeout_s=5))
        peer.answer((await peer.request())["id"], error={"code": -32003, "message": "dpdk refused"})
        with pytest.raises(RequestRefused, match="dpdk refused") as refusal:
            await call
        assert refusal.value.code == -32003


async def test_notifications_are_handed_on() -> None:
    async with _connected() as (control, peer, _):
        peer.send(b'{"jsonrpc":"2.0","method":"device.connected","params":{"device":"0000:82:00.2"}}')
        peer.send(b'{"jsonrpc":"2.0","method":"odd","params":7}')
        call = asyncio.ensure_future(control.call("version", timeout_s=5))
        peer.answer((await peer.request())["id"], result={})
        await call
        assert peer.notified == [("device.connected", {"device": "0000:82:00.2"}), ("odd", {})]


async def test_a_closed_channel_ends_every_waiting_call() -> None:
    async with _connected() as (control, peer, running):
        calls = [asyncio.ensure_future(control.call("version", timeout_s=5)) for _ in range(3)]
        await peer.request()
        peer.writer.close()
        for call in calls:
            with pytest.raises(DaemonLost, match="closed its control channel"):
                await call
        with pytest.raises(DaemonLost):
            await running


async def test_no_answer_in_time_is_a_loss() -> None:
    async with _connected() as (control, _, _running):
        with pytest.raises(DaemonLost, match=r"did not answer version within 0\.05 s"):
            await control.call("version", timeout_s=0.05)


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"[]",
        b"\xff\xfe",
        b'{"id": [1], "result": 1}',
        b'{"id": 1, "error": {"code": "x"}}',
        b"[" * 100_000,
        b'"' + b"x" * (5 * 1024 * 1024) + b'"',
    ],
    ids=["text", "array", "bytes", "odd-id", "odd-code", "deep", "long"],
)
async def test_nonsense_from_the_daemon_is_a_loss_and_no_crash(line: bytes) -> None:
    async with _connected() as (control, peer, running):
        call = asyncio.ensure_future(control.call("version", timeout_s=5))
        await peer.request()
        peer.send(line)
        with pytest.raises(DaemonLost, match="broke its control channel"):
            await running
        with pytest.raises(DaemonLost):
            await call


async def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    async with _connected() as (control, peer, _):
        peer.answer(99, result=1)
        call = asyncio.ensure_future(control.call("version", timeout_s=5))
        peer.answer((await peer.request())["id"], result=2)
        assert await call == 2
