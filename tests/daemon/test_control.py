"""The control channel's client end, with the other end in the test's hands."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import PATIENCE_S
from vdpa_agent.daemon.answers import parse_facts, parse_front_ends, parse_statistics, parse_version
from vdpa_agent.daemon.control import Control, open_control
from vdpa_agent.daemon.messages import ErrorCode
from vdpa_agent.errors import DaemonLost, RequestRefused, Unanswered
from vdpa_agent.model.daemon import NOTHING_KNOWN

pytestmark = pytest.mark.anyio

CONTRACT: Final = Path(__file__).parent.parent / "contract" / "control"
"""Examples of the channel: a request with its answer or error, or a notification; also read by the tests in C."""


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
        async with asyncio.timeout(PATIENCE_S):
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
    ("line", "why"),
    [
        (b"no json", "not JSON"),
        (b"{}", "neither an answer"),
        (b'{"id": 1, "error": {"code": 1e999, "message": "x"}}', "an error whose code"),
        (b'{"id": null, "error": {"code": -32700, "message": "not JSON"}}', "could not read a request: not JSON"),
        (b'"' + b"x" * (5 * 1024 * 1024) + b'"', "a line of more than 4194304 bytes"),
    ],
    ids=["text", "empty", "odd-code", "unread", "long"],
)
async def test_nonsense_from_the_daemon_is_a_loss_with_its_reason_and_no_crash(line: bytes, why: str) -> None:
    async with _connected() as (control, peer, running):
        call = asyncio.ensure_future(control.call("version", timeout_s=5))
        await peer.request()
        peer.send(line)
        with pytest.raises(DaemonLost, match=f"broke its control channel: .*{why}"):
            await running
        with pytest.raises(DaemonLost, match=why):
            await call


async def test_a_line_without_end_is_a_loss_before_it_ends() -> None:
    async with _connected() as (_, peer, running):
        for _ in range(80):
            peer.writer.write(b"x" * 65536)
        with pytest.raises(DaemonLost, match="a line of more than"):
            await running


async def test_a_line_may_come_in_pieces_and_many_in_one() -> None:
    async with _connected() as (control, peer, _):
        call = asyncio.ensure_future(control.call("version", timeout_s=5))
        identifier = (await peer.request())["id"]
        note = b'{"method":"device.connected","params":{"device":"a"}}\n'
        stream = note * 3 + b'{"id":%d,"result":"b"}\n' % identifier
        for byte in stream:
            peer.writer.write(bytes([byte]))
            await peer.writer.drain()
        assert await call == "b"
        assert peer.notified == [("device.connected", {"device": "a"})] * 3


async def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    async with _connected() as (control, peer, _):
        peer.answer(99, result=1)
        call = asyncio.ensure_future(control.call("version", timeout_s=5))
        peer.answer((await peer.request())["id"], result=2)
        assert await call == 2


async def test_a_caller_that_gave_up_as_the_channel_closed_hurts_nobody() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        _, writer = await asyncio.open_connection(sock=ours)
        reader = asyncio.StreamReader()
        control = Control(reader, writer, lambda *_: None)
        running = asyncio.ensure_future(control.run())
        call = asyncio.ensure_future(control.call("version", timeout_s=5))
        other = asyncio.ensure_future(control.call("version", timeout_s=5))
        while len(control._waiting) < 2:
            await asyncio.sleep(0)
        reader.feed_eof()  # run() has its turn before the call, which is cancelled after this
        call.cancel()
        with pytest.raises(DaemonLost, match="closed its control channel"):
            await running
        with pytest.raises(DaemonLost, match="closed its control channel"):
            await other
        with pytest.raises(asyncio.CancelledError):
            await call
        control.close()


async def test_a_flood_leaves_the_loop_to_others_and_makes_the_daemon_wait() -> None:
    line = b'{"method":"device.connected","params":{"device":"0000:82:00.2"}}\n'
    async with _connected() as (control, peer, running):
        call = asyncio.ensure_future(control.call("version", timeout_s=PATIENCE_S))
        await peer.request()
        peer.writer.write(line * 100_000)
        turns = 0
        while len(peer.notified) < 4096:
            seen = len(peer.notified)
            await asyncio.sleep(0)
            turns += 1
            assert len(peer.notified) - seen <= 1  # nobody waits for more than one line
        assert turns >= 4096
        # What is left waits, most of it at the daemon: it comes at a rate, and is read no faster.
        began, seen = asyncio.get_running_loop().time(), len(peer.notified)
        while len(peer.notified) < seen + 500:
            await asyncio.sleep(0.001)
        assert asyncio.get_running_loop().time() - began >= 0.2
        unsent = peer.writer.transport.get_write_buffer_size()
        assert unsent > len(line) * 80_000
        assert not call.done()
        assert not running.done()
        call.cancel()


async def test_a_request_that_a_later_answer_overtakes_says_so_once_and_is_waited_for_still() -> None:
    async with _connected() as (control, peer, _):
        said: list[str] = []
        calls = {
            method: asyncio.ensure_future(
                control.call(method, timeout_s=PATIENCE_S, passed=lambda method=method: said.append(method))  # type: ignore[misc]
            )
            for method in ("a", "b", "c")
        }
        later = asyncio.ensure_future(control.call("version", timeout_s=PATIENCE_S))
        asked = {request["method"]: request["id"] for request in [await peer.request() for _ in range(4)]}
        peer.answer(asked["b"], result="b")
        assert (await calls["b"], said) == ("b", ["a"])
        peer.answer(asked["version"], result="v")
        assert (await later, said) == ("v", ["a", "c"])
        for method in ("c", "a"):
            peer.answer(asked[method], result=method)
            assert await calls[method] == method
        assert said == ["a", "c"]
        assert not control._passed


async def test_a_request_that_is_not_answered_is_forgotten_and_its_late_answer_too() -> None:
    async with _connected() as (control, peer, running):
        with pytest.raises(Unanswered, match=r"vdpad did not answer a within 0\.01 s"):
            await control.call("a", timeout_s=0.01, passed=lambda: None)
        peer.answer((await peer.request())["id"], result="late")
        call = asyncio.ensure_future(control.call("b", timeout_s=PATIENCE_S))
        peer.answer((await peer.request())["id"], result="b")
        assert await call == "b"
        assert not running.done()
        assert not control._passed


async def test_an_answer_that_was_asked_for_costs_nothing() -> None:
    async with _connected() as (control, peer, _):
        for _ in range(3):
            call = asyncio.ensure_future(control.call("device.stats", timeout_s=PATIENCE_S))
            peer.answer((await peer.request())["id"], result="x" * 4_000_000)
            assert len(await call) == 4_000_000
        assert control._allowance.left() == 4096


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("*.json")), ids=lambda path: path.stem)
async def test_the_examples_of_the_contract(path: Path) -> None:
    example = json.loads(path.read_text())
    async with _connected() as (control, peer, _):
        if "notification" in example:
            peer.send(json.dumps(example["notification"]).encode())
        request = example.get("request", {"id": 1, "method": "version", "params": {}})
        call = asyncio.ensure_future(control.call(request["method"], request["params"], timeout_s=PATIENCE_S))
        asked = await peer.request()
        assert asked == {"jsonrpc": "2.0", **request, "id": asked["id"]}
        answer = example.get("answer", {"result": {}})
        peer.send(json.dumps({**answer, "id": asked["id"]}).encode())
        if error := answer.get("error"):
            with pytest.raises(RequestRefused) as refusal:
                await call
            assert (refusal.value.code, str(refusal.value)) == (error["code"], error["message"])
            assert error["code"] in iter(ErrorCode)
        else:
            assert await call == answer["result"]
        if "notification" in example:
            assert peer.notified == [(example["notification"]["method"], example["notification"]["params"])]


def test_the_examples_are_understood() -> None:
    results = {
        path.stem: json.loads(path.read_text()).get("answer", {}).get("result") for path in CONTRACT.glob("*.json")
    }
    assert parse_version(results["version"]).protocol == 2
    assert parse_facts(results["device.add"]).queue_pairs == 1
    assert NOTHING_KNOWN not in [parse_facts(device) for device in results["device.list"]["devices"]]
    assert parse_front_ends(results["device.list"])["0000:82:00.2"].refusals == {"memory": 1}
    assert parse_statistics(results["device.stats"]) == {
        0: {"packets": 10, "bytes": 600},
        1: {"packets": 7, "bytes": 420},
    }
