"""Calls that are answered at once, and those that have to wait."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from grpclib.const import Status
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame

from tests.abuse.wire import HEADERS, KNOWN, KNOWN_SOCKET, PATH, message, request
from tests.served import Served, heard, receive
from vdpa_agent.rpc.calls import Calls
from vdpa_agent.rpc.connection import Connection
from vdpa_agent.rpc.limits import Reason
from vdpa_agent.rpc.nghttp2 import ErrorCode, load

pytestmark = pytest.mark.anyio

ANSWER = message(b"\x0a" + bytes([len(KNOWN_SOCKET)]) + KNOWN_SOCKET)
OK = (PATH, Status.OK)
CANCELLED = (PATH, Status.CANCELLED)


class _Client:
    """A client by h2, of a connection that reads what it is given at once."""

    def __init__(self, served: Served, settings: dict[SettingCodes | int, int] | None = None) -> None:
        self.connection, self.socket, self.counted = served.connect()
        self.http = H2Connection()
        self.http.initiate_connection()
        if settings:
            self.http.update_settings(settings)
        self.send()

    def send(self) -> None:
        """Has the agent read all that is to be sent, at once."""
        receive(self.connection, self.socket, self.http.data_to_send())

    def ask(self, stream: int, address: str = KNOWN) -> None:
        """Prepares a whole call."""
        self.http.send_headers(stream, HEADERS)
        self.http.send_data(stream, request(address), end_stream=True)

    def heard(self) -> list[Event]:
        """What came since last time."""
        events = self.http.receive_data(heard(self.socket))
        for event in events:
            if isinstance(event, DataReceived):
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return events


def _answered(events: list[Event]) -> bool:
    """Whether this is one whole answer, and a right one."""
    (begun,) = [event for event in events if isinstance(event, ResponseReceived)]
    (trailers,) = [event for event in events if isinstance(event, TrailersReceived)]
    data = b"".join(event.data for event in events if isinstance(event, DataReceived))
    assert begun.headers == [(b":status", b"200"), (b"content-type", b"application/grpc+proto")]
    assert trailers.headers == [(b"grpc-status", b"0")]
    return data == ANSWER and sum(isinstance(event, StreamEnded) for event in events) == 1


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    yield served
    served.close()


async def test_a_call_that_came_whole_is_answered_before_anybody_else_has_a_turn(served: Served) -> None:
    client = _Client(served)
    client.heard()
    client.ask(1)
    client.send()
    assert _answered(client.heard())
    assert client.connection.running == []
    assert served.services.handled.codes[OK] == 1


async def test_the_greeting_goes_out_before_the_peers_is_read_and_an_answer_is_one_write(served: Served) -> None:
    client = _Client(served)
    assert client.counted.writes == 2
    greeted, acknowledged = client.heard()
    assert isinstance(greeted, RemoteSettingsChanged)
    assert isinstance(acknowledged, SettingsAcknowledged)
    client.ask(1)
    client.send()
    assert client.counted.writes == 3
    assert _answered(client.heard())


async def test_more_calls_than_fit_into_the_window_of_a_connection(served: Served) -> None:
    client = _Client(served)
    for stream in range(1, 2 * (2**16 // len(request())) + 1000, 2):
        client.ask(stream)
        client.send()
        assert _answered(client.heard())


async def test_a_call_in_pieces_gets_the_same_answer(served: Served) -> None:
    client = _Client(served)
    client.http.send_headers(1, HEADERS)
    client.send()
    assert len(client.connection.running) == 1
    client.http.send_data(1, request(), end_stream=True)
    client.send()
    await _settled(client.connection)
    assert _answered(client.heard())
    assert served.services.handled.codes[OK] == 1


async def test_a_call_without_room_for_its_answer_waits_for_room(served: Served) -> None:
    client = _Client(served, {SettingCodes.INITIAL_WINDOW_SIZE: 10})
    client.ask(1)
    client.send()
    begun = client.heard()
    assert sum(len(event.data) for event in begun if isinstance(event, DataReceived)) == 10
    client.http.increment_flow_control_window(1_000, 1)
    client.send()
    assert _answered(begun + client.heard())


async def test_an_answer_that_is_not_at_hand_takes_a_call(served: Served) -> None:
    client = _Client(served)
    client.heard()
    client.ask(1, "0000:99:00.0")
    client.send()
    assert len(client.connection.running) == 1
    await _settled(client.connection)
    assert [event.data for event in client.heard() if isinstance(event, DataReceived)] == [message(b"")]


async def test_a_call_that_is_cancelled_as_it_comes_is_counted_so_and_the_next_is_answered(served: Served) -> None:
    client = _Client(served)
    client.heard()
    client.http.send_headers(1, HEADERS)
    client.http.reset_stream(1)
    client.ask(3)
    client.send()
    assert _answered(client.heard())
    assert (served.services.handled.codes[OK], served.services.handled.codes[CANCELLED]) == (1, 1)
    assert client.connection._account.open_calls == 0
    assert served.peers.defects == []


async def test_a_call_that_is_cancelled_while_it_runs_is_counted_so(served: Served) -> None:
    client = _Client(served)
    client.http.send_headers(1, HEADERS)
    client.send()
    client.http.reset_stream(1)
    client.send()
    await _settled(client.connection)
    assert served.services.handled.codes[CANCELLED] == 1
    assert client.connection._account.open_calls == 0


async def test_who_then_goes_still_gets_what_was_asked(served: Served) -> None:
    client = _Client(served)
    client.heard()
    client.ask(1)
    client.http.send_headers(3, HEADERS)
    client.http.close_connection()
    client.send()
    assert not served.gone  # a call is open
    client.socket.close()
    client.connection._take_what_came()
    assert served.gone == [client.connection]
    await _settled(client.connection)
    assert (served.services.handled.codes[OK], served.services.handled.codes[CANCELLED]) == (1, 1)
    assert served.peers.turned_away.total() == 0
    assert served.peers.defects == []


async def test_after_a_goaway_no_call_is_begun_and_those_that_run_go_on(served: Served) -> None:
    client = _Client(served)
    client.heard()
    client.http.send_headers(1, HEADERS)
    client.send()
    client.connection.go_away()
    client.ask(3)
    client.send()
    client.http.send_data(1, request(), end_stream=True)
    client.send()
    await _settled(client.connection)
    frames = list(_frames(heard(client.socket)))
    (goaway,) = [frame for frame in frames if isinstance(frame, GoAwayFrame)]
    assert (goaway.error_code, goaway.last_stream_id) == (0, 1)
    assert {frame.stream_id for frame in frames} == {0, 1}
    assert b"".join(frame.data for frame in frames if isinstance(frame, DataFrame)) == ANSWER
    assert served.gone == [client.connection]
    assert served.peers.turned_away.total() == 0


async def test_a_defect_of_what_is_called_back_ends_its_connection_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, client = _Client(served), _Client(served)
    with monkeypatch.context() as patched:
        patched.setattr(Calls, "took_end", lambda *_: 1 / 0)
        client.ask(1)
        client.send()
    assert [type(defect) for defect in served.peers.defects] == [ZeroDivisionError]
    assert served.gone == [client.connection]
    other.heard()
    other.ask(1)
    other.send()
    assert _answered(other.heard())


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("increment", [b"\x00\x00\x00\x00", b"\x80\x00\x00\x00"], ids=["nothing", "reserved-bit"])
async def test_a_window_update_of_nothing_ends_the_connection(served: Served, stream: int, increment: bytes) -> None:
    """Also on a stream that has just been answered, where the library ignores it."""
    client = _Client(served)
    client.ask(1)
    client.send()
    assert _answered(client.heard())
    receive(client.connection, client.socket, b"\0\0\x04\x08\0" + stream.to_bytes(4, "big") + increment)
    (goaway,) = [frame for frame in _frames(heard(client.socket)) if isinstance(frame, GoAwayFrame)]
    assert goaway.error_code == ErrorCode.PROTOCOL_ERROR
    assert served.gone == [client.connection]
    assert (served.peers.turned_away[Reason.PROTOCOL], served.peers.turned_away.total()) == (1, 1)


async def test_a_peer_that_says_goaway_is_parted_from_without_blame(served: Served) -> None:
    client = _Client(served)
    client.ask(1)
    client.send()
    assert _answered(client.heard())
    receive(client.connection, client.socket, GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())
    assert served.gone == [client.connection]
    assert served.peers.turned_away.total() == 0


@pytest.mark.parametrize("function", ["mem_send", "submit_response"])
async def test_a_library_without_memory_ends_its_connection_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    other, client = _Client(served), _Client(served)
    with monkeypatch.context() as patched:
        patched.setattr(load(), function, lambda *_: -901)  # NGHTTP2_ERR_NOMEM
        client.ask(1)
        client.send()
    assert [type(defect) for defect in served.peers.defects] == [MemoryError]
    assert served.gone == [client.connection]
    other.heard()
    other.ask(1)
    other.send()
    assert _answered(other.heard())


async def test_a_session_is_not_freed_by_what_it_calls(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _Client(served)
    monkeypatch.setattr(Calls, "took_end", lambda calls, _stream: calls.free())
    client.ask(1)
    client.send()
    assert [type(defect) for defect in served.peers.defects] == [AssertionError]


async def test_a_session_is_not_used_after_its_end(served: Served) -> None:
    client = _Client(served)
    client.connection.abort()
    calls = client.connection._calls
    uses: list[Callable[[], object]] = [
        calls.to_send,
        lambda: calls.receive(0, 0),
        lambda: calls.begin(1, b""),
        lambda: calls.used(1, 1_000_000, going_on=True),
        lambda: calls.reset(1, ErrorCode.CANCEL),
        calls.say_goaway,
        lambda: calls.terminate(ErrorCode.NO_ERROR),
    ]
    for use in uses:
        with pytest.raises(AssertionError, match="used after its end"):
            use()
    calls.free()


def _frames(data: bytes) -> Iterator[Frame]:
    rest = memoryview(data)
    while rest:
        frame, length = Frame.parse_frame_header(rest[:9])
        frame.parse_body(rest[9 : 9 + length])
        rest = rest[9 + length :]
        yield frame


async def _settled(connection: Connection) -> None:
    async with asyncio.timeout(5):
        while connection.running:
            await asyncio.wait(connection.running)
