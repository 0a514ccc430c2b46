"""The prototype of a fast path answers plain calls by itself, and everything else as the agent does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from bench.fast_path import _BEGINNING
from bench.peers import ADDRESSES, FAST, serving, socket_of
from tests.abuse.wire import HEADERS, Wire, request, with_headers

UNKNOWN: Final = "0000:ff:00.0"


class _Wire(Wire):
    """Counts the answers that the fast path gave: it writes headers otherwise than h2 does."""

    fast = 0

    def _take(self, frame: Frame) -> None:
        self.fast += isinstance(frame, HeadersFrame) and frame.data == _BEGINNING
        super()._take(frame)


@pytest.fixture(scope="module")
def listen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(FAST, tmp_path_factory.mktemp("fast"), 16) as (server, _):
        yield server.socket


@pytest.fixture
def wire(listen: Path) -> Iterator[_Wire]:
    wire = _Wire(str(listen))
    yield wire
    wire.close()


def _ask(wire: Wire, *streams: int) -> None:
    """Calls that are made together, and right answers to all of them."""
    wire.send(b"".join(wire.call(stream, request(ADDRESSES[stream % 16])) for stream in streams))
    for stream in streams:
        answer = wire.wait(stream)
        assert answer.headers["grpc-status"] == "0"
        assert socket_of(ADDRESSES[stream % 16]).encode() in answer.data


def _split(wire: Wire) -> bytes:
    """A call whose headers come in two frames."""
    block = wire.encoder.encode(list(HEADERS))
    return (
        HeadersFrame(3, block[:9]).serialize()
        + ContinuationFrame(3, block[9:], flags=["END_HEADERS"]).serialize()
        + DataFrame(3, request(), flags=["END_STREAM"]).serialize()
    )


@pytest.mark.parametrize(
    "between",
    [
        lambda _: b"",
        lambda _: PingFrame(0, b"received").serialize(),
        lambda _: WindowUpdateFrame(0, window_increment=9).serialize(),
        lambda _: WindowUpdateFrame(1, window_increment=9).serialize(),
        lambda _: SettingsFrame(0, flags=["ACK"]).serialize(),
        lambda wire: wire.call(3, request(ADDRESSES[3])),
    ],
    ids=["nothing", "ping", "window", "window_of_an_ended_call", "acknowledgement", "call"],
)
def test_what_is_plain_stays_on_the_fast_path(wire: _Wire, between: Callable[[Wire], bytes]) -> None:
    _ask(wire, 1)
    wire.send(between(wire))
    _ask(wire, 5, 7, 9)
    for first in range(11, 4_011, 20):  # for more data than the windows have at first
        _ask(wire, *range(first, first + 20, 2))
    assert wire.fast - (3 in wire.answers) == 2_004
    assert wire.frames.count("WindowUpdateFrame") == 2


@pytest.mark.parametrize(
    "between",
    [
        lambda _: PriorityFrame(3).serialize(),
        lambda _: SettingsFrame(0, {SettingsFrame.HEADER_TABLE_SIZE: 0}).serialize(),
        lambda _: RstStreamFrame(1).serialize(),
        lambda _: b"\0\0\1\x77\0\0\0\0\0?",
        _split,
        lambda wire: wire.call(3, request(UNKNOWN)),
        lambda wire: wire.call(3, request(), headers=with_headers(_path="/no/such")),
        lambda wire: wire.call(3, request(), headers=with_headers(traceparent="x")),
        lambda wire: wire.call(3, request(), headers=with_headers(grpc_timeout="never")),
        lambda wire: wire.call(3, request(), headers=with_headers(content_type="text/plain")),
        lambda wire: wire.call(3, request() + b"more"),
        lambda wire: wire.call(3, request(), end=False) + DataFrame(3, flags=["END_STREAM"]).serialize(),
    ],
    ids=[
        *("priority", "settings", "reset", "unknown_frame", "continuation", "unknown_device", "unknown_method"),
        *("trace", "malformed_timeout", "no_grpc", "long_message", "data_in_two_frames"),
    ],
)
def test_a_connection_goes_on_after_the_first_thing_that_is_not_plain(
    wire: _Wire, between: Callable[[Wire], bytes]
) -> None:
    _ask(wire, 1)
    assert wire.fast == 1
    wire.send(between(wire))
    _ask(wire, 5, 7, 9)  # their headers are in the table since the first call
    for first in range(11, 4_011, 20):
        _ask(wire, *range(first, first + 20, 2))
    assert wire.fast == 1
    assert 3 not in wire.answers or wire.wait(3).ended


def test_a_call_that_has_begun_is_handed_over_with_its_connection(wire: _Wire) -> None:
    wire.send(wire.call(1, end=False) + wire.call(3, end=False) + wire.call(5, request(ADDRESSES[5])))
    _ask(wire, 7)
    wire.send(PriorityFrame(9).serialize())
    for stream in (3, 1):
        wire.send(DataFrame(stream, request(ADDRESSES[stream]), flags=["END_STREAM"]).serialize())
        assert socket_of(ADDRESSES[stream]).encode() in wire.wait(stream).data
    _ask(wire, 11)


def test_a_connection_that_starts_with_something_else_never_was_on_the_fast_path(listen: Path) -> None:
    wire = _Wire(str(listen), greet=False)
    settings = SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 5}).serialize()
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    wire.send(wire.call(1, request(ADDRESSES[1])) + WindowUpdateFrame(1, window_increment=200).serialize())
    assert socket_of(ADDRESSES[1]).encode() in wire.wait(1).data
    assert wire.fast == 0
    wire.close()


def test_a_call_cannot_be_made_again_after_the_hand_over(wire: _Wire) -> None:
    _ask(wire, 1, 3)
    wire.send(PriorityFrame(5).serialize() + wire.call(3, request()))
    wire.wait_closed()
    assert wire.goaway == ErrorCodes.PROTOCOL_ERROR


def test_a_deadline_ends_a_call_whose_request_does_not_come(wire: _Wire) -> None:
    wire.send(wire.call(1, headers=with_headers(grpc_timeout="30m"), end=False))
    assert wire.wait(1).headers["grpc-status"] == "4"
