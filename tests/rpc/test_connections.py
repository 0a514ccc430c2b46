"""Connections on real sockets: who gets one, who loses it, and how all of them end."""

import asyncio
import gc
import select
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from grpclib.const import Status
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from tests.abuse.descriptors import lingering, pass_on
from tests.abuse.wire import KNOWN, KNOWN_SOCKET, PATH, PREFACE, Answer, Wire, message, request, with_headers
from tests.served import LIMITS, all_services
from vdpa_agent.config import CONNECTIONS_FOR_ROOT, LimitsConfig
from vdpa_agent.rpc.connections import Connections
from vdpa_agent.rpc.limits import STREAMS, Patience, Reason
from vdpa_agent.rpc.peers import Peer, Peers
from vdpa_agent.rpc.session import Session
from vdpa_agent.serve.pb.vdpadpdk_grpc import VdpaDpdkBase
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathResponse

pytestmark = pytest.mark.anyio

LIST: Final = "/vdpa_agent.v1.DeviceService/ListDevices"
WATCH: Final = "/vdpa_agent.v1.DeviceService/WatchDevices"
HEALTH_WATCH: Final = "/grpc.health.v1.Health/Watch"
REFLECTION: Final = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
NEIGHBOUR: Final = 2_000
_WIDE: Final = (
    SettingsFrame(0, settings={4: 2**31 - 1}).serialize()
    + WindowUpdateFrame(0, window_increment=2**31 - 1 - 65_535).serialize()
)
"""Windows that nothing fills."""

PATIENT: Final = Patience()

ME: Final = Peer(pid=0, uid=1_000, gid=0, allowed=True)


class _Peers(Peers):
    """Peers in a time that the test sets, of users that it names."""

    def __init__(self, limits: LimitsConfig) -> None:
        super().__init__(limits, lambda: self.now_s)
        self.uid = 1_000

    now_s = 0.0

    def identify(self, connected: Any) -> Peer:
        return super().identify(connected)._replace(uid=self.uid)


class _Place:
    """Connections that can be made to one socket."""

    def __init__(self, run_dir: Path, limits: LimitsConfig, services: Collection[Any], patience: Patience) -> None:
        self.path = run_dir / "s.sock"
        self.peers = _Peers(limits)
        self.connections = Connections(services, self.peers, patience)
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(self.path))
        bound.listen(100)
        self.connections.listen(bound)
        self.wires: list[Wire] = []

    async def connect(self, uid: int = 1_000, *, greet: bool = True) -> Wire:
        """A connection of a user, after it was let in or turned away."""
        turned_away, open_before = self.peers.turned_away.total(), self.peers.connections
        self.peers.uid = uid
        wire = await asyncio.to_thread(lambda: Wire(str(self.path), greet=greet))
        self.wires.append(wire)
        await eventually(lambda: self.peers.connections > open_before or self.peers.turned_away.total() > turned_away)
        return wire


@asynccontextmanager
async def _place(
    run_dir: Path,
    limits: LimitsConfig = LIMITS,
    services: Collection[Any] | None = None,
    patience: Patience = PATIENT,
) -> AsyncIterator[_Place]:
    place = _Place(run_dir, limits, all_services() if services is None else services, patience)
    try:
        yield place
    finally:
        for wire in place.wires:
            wire.close()
        await place.connections.end()
        assert place.peers.connections == 0


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def _answered(wire: Wire, stream: int = 1) -> bool:
    answer = await asyncio.to_thread(wire.ask, stream, KNOWN)
    return answer.data.endswith(KNOWN_SOCKET)


async def _call(wire: Wire, stream: int, path: str, data: bytes = b"", *, end: bool = True) -> Answer:
    """The answer to a call, or the part of it that has come if it does not end."""
    wire.send(wire.call(stream, message(data), headers=with_headers(_path=path), end=end))
    return await asyncio.to_thread(wire.wait, stream, 20.0 if end else 0.0)


async def test_root_has_connections_of_its_own(run_dir: Path) -> None:
    limits = replace(LIMITS, connections=CONNECTIONS_FOR_ROOT + 4)
    async with _place(run_dir, limits) as place:
        for number in range(6):
            wire = await place.connect(1_000 + number)
            assert place.peers.turned_away[Reason.CONNECTIONS] == max(0, number - 3)
        await asyncio.to_thread(wire.wait_closed)
        assert wire.closed
        await eventually(lambda: place.peers.connections == 4)
        for _ in range(CONNECTIONS_FOR_ROOT):
            root = await place.connect(0)
        assert await _answered(root)
        assert (await asyncio.to_thread((await place.connect(0)).ask, 1)).headers == {}


async def test_who_was_turned_away_pays_more_than_who_was_not(run_dir: Path) -> None:
    limits = replace(LIMITS, connections_per_uid=64)
    async with _place(run_dir, limits) as place:
        for number in range(7):
            wire = await place.connect(greet=False)
            wire.send(b"nonsense that is no greeting\r\n\r\n")
            await asyncio.to_thread(wire.wait_closed)
            assert place.peers.turned_away[Reason.CONNECTION_RATE] == (number == 6)
        for _ in range(60):  # while who behaves may have as many as there can be
            await place.connect(NEIGHBOUR)
        assert place.peers.turned_away[Reason.CONNECTION_RATE] == 1


async def _stop_reading(wire: Wire, place: _Place) -> None:
    """Has more answers made than the kernel keeps, and reads none."""
    wire.send(_WIDE, reading=False)
    lists = (wire.call(n, message(b""), headers=with_headers(_path=LIST)) for n in range(1, 1_000, 2))
    for call in lists:
        wire.send(call, reading=False, patience_s=0.2)
        await asyncio.sleep(0)
        if any(connection._unsent for connection in place.connections._open):
            return
    pytest.fail("all was sent")


async def test_who_does_not_read_has_to_leave(run_dir: Path) -> None:
    async with _place(run_dir) as place:
        wire = await place.connect()
        await _stop_reading(wire, place)
        assert place.peers.turned_away[Reason.UNREAD] == 0
        place.peers.now_s += PATIENT.unread_s + 1
        await eventually(lambda: place.peers.turned_away[Reason.UNREAD] == 1)
        await eventually(lambda: place.peers.connections == 0)


@pytest.mark.parametrize("path", [PATH, LIST, WATCH])
async def test_who_keeps_its_windows_closed_has_to_leave(run_dir: Path, path: str) -> None:
    async with _place(run_dir) as place:
        wire, watching = await place.connect(), await place.connect()
        assert await _answered(wire)
        watching.send(watching.call(1, message(b""), headers=with_headers(_path=WATCH)))
        await asyncio.to_thread(watching.read_until, lambda: KNOWN_SOCKET in watching.wait(1, 0).data)
        wire.send(SettingsFrame(0, settings={4: 0}).serialize())
        wire.send(wire.call(3, request() if path == PATH else message(b""), headers=with_headers(_path=path)))
        await asyncio.to_thread(wire.read_until, lambda: bool(wire.wait(3, 0).headers))
        (connection,) = [c for c in place.connections._open if c._calls._replies.keys() == {3}]
        await eventually(lambda: connection._stalls_s is not None)
        place.peers.now_s += PATIENT.unread_s - 1
        wire.send(WindowUpdateFrame(3, window_increment=1).serialize())
        await eventually(lambda: connection._stalls_s == place.peers.now_s)  # it took a byte, and has as long again
        assert place.peers.turned_away[Reason.UNREAD] == 0
        place.peers.now_s += PATIENT.unread_s + 2
        await eventually(lambda: place.peers.turned_away[Reason.UNREAD] == 1)
        await eventually(lambda: place.peers.connections == 1)
        assert await _answered(watching, 3)  # to which there is nothing to say


@pytest.mark.parametrize("way", ["close", "shutdown"])
async def test_who_leaves_before_it_is_greeted_disturbs_nobody(
    run_dir: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with _place(run_dir) as place:
        gone = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for client in gone:  # the loop has no turn meanwhile
            client.connect(str(place.path))
            client.close() if way == "close" else client.shutdown(socket.SHUT_RDWR)
        assert await _answered(await place.connect())
        await eventually(lambda: place.peers.connections == 1)
        assert caplog.records == []
        assert place.peers.turned_away.total() == 0
        for client in gone:
            client.close()


async def test_who_leaves_while_it_waits_for_its_turn_keeps_no_slot(run_dir: Path) -> None:
    limits = replace(LIMITS, calls_per_s=1)
    async with _place(run_dir, limits) as place:
        waiting, stays, late = [await place.connect() for _ in range(3)]
        for wire in (waiting, stays, late):
            assert await _answered(wire)
        place.peers.account_of(ME).calls.spend(1_000)
        for wire in (waiting, stays):
            wire.send(wire.call(3, request()))
        await eventually(lambda: place.peers.turned_away[Reason.CALL_RATE] == 2)
        late.close()  # its end is all that there is to read
        waiting.close()
        await eventually(lambda: place.peers.connections == 1)
        assert place.peers.turned_away[Reason.CALL_RATE] == 2
        place.peers.now_s += 2_000
        assert (await asyncio.to_thread(stays.wait, 3, 20.0)).data.endswith(KNOWN_SOCKET)


async def test_who_does_not_read_is_not_read_either(run_dir: Path) -> None:
    async with _place(run_dir) as place:
        wire = await place.connect()
        await _stop_reading(wire, place)
        (connection,) = place.connections._open
        size = len(connection._unsent)
        ping = PingFrame(0, b"12345678").serialize()
        while not wire.closed:  # until the kernel takes no more
            before = connection._heard_s
            wire.send(ping * 1_000, reading=False, patience_s=0.2)
            await asyncio.sleep(0)
            if not select.select([], [wire.socket], [], 0)[1]:
                break
        assert (len(connection._unsent), connection._heard_s) == (size, before)
        assert place.peers.turned_away.total() == 0
        await asyncio.to_thread(wire.read_until, lambda: "PingFrame" in wire.frames, 20.0)
        assert place.peers.turned_away[Reason.UNREAD] == 0


async def test_who_does_not_read_does_not_outlive_the_agent(run_dir: Path) -> None:
    async with _place(run_dir) as place:
        wire = await place.connect()
        await _stop_reading(wire, place)
        await place.connections.end()
        assert place.peers.connections == 0


async def test_who_does_not_greet_in_time_is_closed(run_dir: Path) -> None:
    async with _place(run_dir) as place:
        silent, half = await place.connect(greet=False), await place.connect(greet=False)
        half.send(PREFACE[:10])
        greeted = await place.connect()
        assert await _answered(greeted)
        place.peers.now_s += PATIENT.preface_s + 1
        for wire in (silent, half):
            await asyncio.to_thread(wire.wait_closed)
            assert (wire.closed, wire.goaway) == (True, ErrorCodes.SETTINGS_TIMEOUT)
        assert await _answered(greeted, 3)


async def test_a_farewell_of_grpc_go_is_no_offence(run_dir: Path) -> None:
    """It names a stream of its own as the last one, which the library does not accept."""
    async with _place(run_dir) as place:
        wire = await place.connect()
        assert await _answered(wire)
        wire.send(GoAwayFrame(0, last_stream_id=1, error_code=0).serialize())
        await asyncio.to_thread(wire.wait_closed)
        assert not any(place.peers.turned_away.values())


async def test_who_is_idle_is_closed_and_who_waits_for_an_answer_is_not(run_dir: Path) -> None:
    async with _place(run_dir) as place:
        watching, idle, unfinished = [await place.connect() for _ in range(3)]
        watching.send(watching.call(1, message(b""), headers=with_headers(_path=WATCH)))
        await asyncio.to_thread(watching.read_until, lambda: KNOWN_SOCKET in watching.wait(1, 0).data)
        assert await _answered(idle)
        unfinished.send(unfinished.call(1, end=False))
        await asyncio.to_thread(unfinished.ping)
        place.peers.now_s += PATIENT.idle_s + 1
        for wire in (idle, unfinished):
            await asyncio.to_thread(wire.wait_closed)
            assert (wire.closed, wire.goaway) == (True, ErrorCodes.NO_ERROR)
        assert place.peers.turned_away[Reason.IDLE] == 2
        assert await _answered(watching, 3)


async def test_who_asks_too_often_waits_and_who_asks_once_does_not(run_dir: Path) -> None:
    limits = replace(LIMITS, calls_per_s=10)
    async with _place(run_dir, limits) as place:
        often, too = await place.connect(), await place.connect()
        assert await _answered(too)
        often.send(b"".join(often.call(stream, request()) for stream in range(1, 61, 2)))
        await eventually(lambda: place.connections.handled.codes[PATH, Status.OK] == 31)  # 20 at once, and a read more
        often.send(often.call(101, request()))
        too.send(too.call(101, request()))
        await eventually(lambda: place.peers.turned_away[Reason.CALL_RATE] == 2)
        for number in range(20):  # in a time that stands still
            assert await _answered(await place.connect()), number
        assert place.peers.account_of(ME).calls.left() == -20  # what was answered all the same is owed
        assert not often.wait(101, 0).ended
        assert not too.wait(101, 0).ended
        assert await _answered(await place.connect(NEIGHBOUR))
        place.peers.now_s += 60
        for wire in (often, too):
            answer = await asyncio.to_thread(wire.wait, 101, 20.0)
            assert (answer.headers.get("grpc-status"), answer.data.endswith(KNOWN_SOCKET)) == ("0", True)


async def test_after_a_crowd_little_is_kept(run_dir: Path) -> None:
    async with _place(run_dir, replace(LIMITS, connections_per_uid=200)) as place:
        gc.collect()
        gc.disable()  # nothing may need it
        try:
            before = sum(isinstance(thing, Session) for thing in gc.get_objects())
            for wire in [await place.connect(0) for _ in range(100)]:
                assert await _answered(wire)
                wire.close()
            await eventually(lambda: place.peers.connections == 0)
            assert sum(isinstance(thing, Session) for thing in gc.get_objects()) <= before + 1
        finally:
            gc.enable()
        await eventually(lambda: place.connections._most == 0)


async def test_those_who_wait_have_turns(run_dir: Path) -> None:
    limits = replace(LIMITS, calls_per_s=1)
    async with _place(run_dir, limits) as place:
        greedy, modest = await place.connect(), await place.connect()
        assert await _answered(greedy)
        assert await _answered(modest)
        place.peers.account_of(ME).calls.spend(1_000)
        greedy.send(b"".join(greedy.call(stream, request()) for stream in range(3, 199, 2)))
        await eventually(lambda: place.peers.turned_away[Reason.CALL_RATE] == 1)
        modest.send(modest.call(3, request()))
        await eventually(lambda: place.peers.turned_away[Reason.CALL_RATE] == 2)
        while not modest.wait(3, 0).ended:
            place.peers.now_s += 0.1
            await asyncio.to_thread(modest.read, 0.01)
            await asyncio.to_thread(greedy.read, 0)
        assert sum(answer.ended for answer in greedy.answers.values()) < 40
        while not greedy.wait(197, 0).ended:
            place.peers.now_s += 0.1
            await asyncio.to_thread(greedy.read, 0.01)


async def test_more_streams_than_allowed_are_refused_one_by_one(run_dir: Path) -> None:
    async with _place(run_dir) as place:
        wire = await place.connect()
        wire.send(b"".join(wire.call(stream, end=False) for stream in range(1, 2 * STREAMS, 2)))
        refused = await asyncio.to_thread(wire.ask, 2 * STREAMS + 1)
        assert refused.reset == ErrorCodes.REFUSED_STREAM
        assert place.peers.turned_away[Reason.STREAMS] == 1
        wire.send(DataFrame(1, request(), flags=["END_STREAM"]).serialize())
        answer = await asyncio.to_thread(wire.wait, 1)
        assert (answer.headers.get("grpc-status"), answer.data.endswith(KNOWN_SOCKET)) == ("0", True)
        assert await _answered(wire, 2 * STREAMS + 3)


async def test_a_slot_comes_back_when_nothing_is_left_of_its_connection(run_dir: Path) -> None:
    limits = replace(LIMITS, connections_per_uid=1)
    with ExitStack() as held:
        async with _place(run_dir, limits) as place:
            wire = await place.connect()
            stuck, peer = lingering(held)
            pass_on(wire.socket, b"!", [stuck.fileno()])
            stuck.close()
            await eventually(lambda: place.peers.turned_away[Reason.DESCRIPTORS] == 1)
            await asyncio.to_thread(wire.wait_closed)
            refused = await place.connect()
            assert place.peers.turned_away[Reason.CONNECTIONS] == 1
            await asyncio.to_thread(refused.wait_closed)
            assert await _answered(await place.connect(NEIGHBOUR))
            peer.close()  # a reset ends the wait
            await eventually(lambda: place.peers.account_of(ME).connections == 0)


async def test_who_waits_to_be_let_in_holds_up_no_end(run_dir: Path) -> None:
    with ExitStack() as held:
        async with _place(run_dir) as place:
            waiting = held.enter_context(socket.socket(socket.AF_UNIX))
            waiting.connect(str(place.path))
            stuck, peer = lingering(held, linger_s=30)
            pass_on(waiting, b"!", [stuck.fileno()])
            stuck.close()
            await place.connections.end()  # before it had a turn
            assert place.connections._closers.held == 1
            assert place.peers.turned_away.total() == 0
            peer.close()
            await eventually(lambda: place.connections._closers.held == 0)


async def test_what_is_said_at_the_last_moment_is_sent(run_dir: Path) -> None:
    asked, released = asyncio.Event(), asyncio.Event()

    class Slow(VdpaDpdkBase):
        async def GetSocketpath(self, stream: Any) -> None:  # noqa: N802 - the name on the wire
            await stream.recv_message()
            asked.set()
            await released.wait()
            await asyncio.sleep(0.01)
            await stream.send_message(GetSocketpathResponse(socketpath="late"))

    async with _place(run_dir, services=[Slow()]) as place:
        wire = await place.connect()
        wire.send(wire.call(1, request()))
        await asked.wait()
        released.set()
        await place.connections.end()
        answer = await asyncio.to_thread(wire.wait, 1)
        assert (answer.data, answer.headers.get("grpc-status")) == (message(b"\x0a\x04late"), "0")
        assert wire.goaway == ErrorCodes.NO_ERROR


class _Blocks(Wire):
    """Keeps the header blocks that came."""

    def _take(self, frame: Any) -> None:
        if isinstance(frame, HeadersFrame):
            self.blocks = [*getattr(self, "blocks", []), frame.data]
        super()._take(frame)


@pytest.mark.parametrize("sizes", [[0], [0, 4_096] * 100, [100, 0, 50, 4_096], [2**32 - 1, 10], [7, 7]])
async def test_a_changed_header_table_is_acknowledged_in_the_next_headers_and_briefly(
    run_dir: Path, sizes: list[int]
) -> None:
    async with _place(run_dir) as place:
        wire = await asyncio.to_thread(lambda: _Blocks(str(place.path)))
        with closing(wire):
            wire.send(b"".join(SettingsFrame(0, settings={1: size}).serialize() for size in sizes))
            assert await _answered(wire)
            block, updates = wire.blocks[0], []
            while block[0] & 0xE0 == 0x20:  # RFC 7541, 6.3
                number, block = block[0] & 0x1F, block[1:]
                if number == 0x1F:
                    shift = 0
                    while True:
                        number, more, block = number + ((block[0] & 0x7F) << shift), block[0] & 0x80, block[1:]
                        shift += 7
                        if not more:
                            break
                updates.append(number)
            assert len(updates) <= 2
            assert (min(updates), updates[-1]) == (min(sizes), sizes[-1])


@pytest.mark.parametrize(("uid", "most"), [(1_000, 64), (0, 256)])
@pytest.mark.parametrize("path", [WATCH, HEALTH_WATCH, REFLECTION])
async def test_what_one_user_watches_is_bounded(run_dir: Path, path: str, uid: int, most: int) -> None:
    async with _place(run_dir) as place:
        wires = [await place.connect(uid) for _ in range(most // 64 + 1)]
        for number in range(most):
            wire = wires[number % len(wires)]
            wire.send(wire.call(1 + 2 * number, message(b""), headers=with_headers(_path=path), end=False))
        for wire in wires:
            await asyncio.to_thread(wire.ping)
        assert place.peers.turned_away[Reason.WATCHES] == 0
        refused = await _call(wires[0], 2_001, path)
        assert refused.headers["grpc-status"] == "8"
        assert place.peers.turned_away[Reason.WATCHES] == 1
        assert await _answered(wires[0], 2_003)
        other = await place.connect(NEIGHBOUR)
        await _call(other, 1, path, end=False)
        await asyncio.to_thread(other.ping)
        assert place.peers.turned_away[Reason.WATCHES] == 1
        for wire in wires:
            wire.close()
        await eventually(lambda: place.peers.connections == 1)
        again = await place.connect(uid)
        await _call(again, 1, path, end=False)
        await asyncio.to_thread(again.ping)
        assert place.peers.turned_away[Reason.WATCHES] == 1


async def test_long_answers_are_refused_before_short_ones_and_those_that_are_owed_never(run_dir: Path) -> None:
    async with _place(run_dir) as place:
        wire = await place.connect()
        first = await _call(wire, 1, LIST)
        assert first.headers["grpc-status"] == "0"
        fit = 8 * 1024 * 1024 // len(first.data)
        place.peers.account_of(ME).answer_bytes.spend((fit - 2) * len(first.data))
        assert (await _call(wire, 3, LIST)).headers["grpc-status"] == "0"
        assert (await _call(wire, 5, LIST)).headers["grpc-status"] == "8"
        assert place.peers.turned_away[Reason.ANSWER_BYTES] == 1
        # In this time that stands still nothing comes back; what is short still fits.
        assert (await _call(wire, 7, "/grpc.health.v1.Health/Check")).headers["grpc-status"] == "0"
        place.peers.account_of(ME).answer_bytes.spend(2**40)
        assert (await _call(wire, 9, "/grpc.health.v1.Health/Check")).headers["grpc-status"] == "8"
        assert await _answered(wire, 11)
        nothing = await asyncio.to_thread(wire.ask, 13, "0000:ff:00.0")
        assert (nothing.data, nothing.headers["grpc-status"]) == (message(b""), "0")
        other = await place.connect(NEIGHBOUR)
        assert (await _call(other, 1, LIST)).headers["grpc-status"] == "0"


async def test_what_asks_within_one_call_costs_as_much_as_many_calls(run_dir: Path) -> None:
    limits = replace(LIMITS, calls_per_s=50)
    async with _place(run_dir, limits) as place:
        wire = await place.connect()
        list_services = message(b"\x3a\x00")
        wire.send(wire.call(1, list_services * 500, headers=with_headers(_path=REFLECTION)))
        answer = await asyncio.to_thread(wire.wait, 1)
        assert answer.headers["grpc-status"] == "8"
        assert answer.data.count(b"vdpadpdk.VdpaDpdk") == 100
        assert await _answered(await place.connect(NEIGHBOUR))
