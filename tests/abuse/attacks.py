"""The attacks: each takes the path of the agent's socket, and tells what it saw.

usage: python -m tests.abuse.attacks NAME SOCKET
"""

import contextlib
import itertools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.abuse.wire import HEADERS, PREFACE, Wire, message, request

LASTS_S: Final = 3.0
"""How long an attack goes on that nothing ends."""

PATIENCE_S: Final = 20.0
"""How long one goes on that the agent is to end."""

Seen = dict[str, Any]
Attack = Callable[[str], Seen]


def _seen(wire: Wire, took_s: float) -> Seen:
    return {"closed": wire.closed, "closed_s": took_s, "goaway": wire.goaway, "answers": _statuses(wire)}


def _statuses(wire: Wire) -> dict[str, int]:
    counts: dict[str, int] = {}
    for answer in wire.answers.values():
        if answer.ended:
            status = answer.headers.get("grpc-status", f"reset {answer.reset}")
            counts[status] = counts.get(status, 0) + 1
    return counts


def _repeat(wire: Wire, piece: bytes, count: int = 100) -> Seen:
    """Sends the same frames again and again."""
    return _seen(wire, wire.flood(itertools.repeat(piece * count), for_s=PATIENCE_S))


def _streams() -> Iterator[int]:
    return itertools.count(1, 2)


def rapid_reset(listen: str) -> Seen:
    """Calls that are cancelled at once."""
    wire = Wire(listen)
    pieces = (wire.call(n, request()) + RstStreamFrame(n, error_code=8).serialize() for n in _streams())
    return _seen(wire, wire.flood(pieces, for_s=PATIENCE_S))


def rapid_reset_of_headers(listen: str) -> Seen:
    """The same without a request, 64 in a write."""
    wire = Wire(listen)
    pairs = (wire.call(n, end=False) + RstStreamFrame(n, error_code=8).serialize() for n in _streams())
    pieces = (b"".join(itertools.islice(pairs, 64)) for _ in itertools.count())
    return _seen(wire, wire.flood(pieces, for_s=PATIENCE_S))


def ping_flood(listen: str) -> Seen:
    """PINGs, whose answers are read."""
    return _repeat(Wire(listen), PingFrame(0, b"12345678").serialize())


def ping_flood_unread(listen: str) -> Seen:
    """PINGs, whose answers are not read."""
    wire = Wire(listen)
    piece = PingFrame(0, b"12345678").serialize() * 100
    took_s = wire.flood(itertools.repeat(piece), reading=False, for_s=PATIENCE_S)
    return _seen(wire, took_s)


def settings_flood(listen: str) -> Seen:
    """SETTINGS that change nothing."""
    return _repeat(Wire(listen), SettingsFrame(0).serialize())


def settings_nobody_knows(listen: str) -> Seen:
    """65,536 settings without a meaning, in a few long frames."""
    wire = Wire(listen)
    for first in range(16, 65_536, 2_700):
        settings = b"".join(n.to_bytes(2, "big") + b"\0\0\0\1" for n in range(first, min(first + 2_700, 65_536)))
        wire.send(len(settings).to_bytes(3, "big") + b"\x04\0\0\0\0\0" + settings)
    answer = wire.ask(1)
    return {**_seen(wire, 0.0), "answer": answer.headers.get("grpc-status")}


def settings_of_the_header_table(listen: str) -> Seen:
    """A header table of 4 GiB, then answers with ever new headers; and a size that changes for ever."""
    wire = Wire(listen)
    wire.send(SettingsFrame(0, settings={1: 2**32 - 1}).serialize())
    began = time.monotonic()
    path = "/vdpa_agent.v1.DeviceService/GetDevice"
    headers = [(name, path if name == ":path" else value) for name, value in HEADERS]
    for number, stream in zip(range(1_500), _streams(), strict=False):
        wire.send(wire.call(stream, request(f"{number:064}"), headers=headers))
        wire.wait(stream)
        if wire.closed or time.monotonic() - began > LASTS_S - 1:
            break
    sizes = itertools.cycle((b"\0\0\x10\0", b"\0\0\0\x10"))
    for size in itertools.islice(sizes, 300):
        wire.send(b"\0\0\x06\x04\0\0\0\0\0\0\x01" + size)
    answer = wire.ask(stream + 2)
    return {**_seen(wire, 0.0), "answer": answer.headers.get("grpc-status")}


def empty_data(listen: str) -> Seen:
    """Empty DATA frames on an open call."""
    wire = Wire(listen)
    wire.send(wire.call(1, end=False))
    return _repeat(wire, DataFrame(1, b"").serialize())


def data_after_the_end(listen: str) -> Seen:
    """DATA for a call that was answered and whose request had ended."""
    wire = Wire(listen)
    wire.ask(1)
    return _repeat(wire, DataFrame(1, b"x").serialize())


def message_in_bytes(listen: str) -> Seen:
    """A message of 60 kB, a byte a frame."""
    wire = Wire(listen)
    wire.send(wire.call(1, message(b"", length=60_000), end=False))
    return _repeat(wire, DataFrame(1, b"x").serialize())


def continuation_flood(listen: str) -> Seen:
    """Headers that never end, in long pieces."""
    wire = Wire(listen)
    wire.send(HeadersFrame(1, b"\x00", flags=[]).serialize())
    return _repeat(wire, ContinuationFrame(1, b"\x00\x01a\x7f\x80\x7e" + b"x" * 8_000).serialize(), 1)


def continuation_flood_empty(listen: str) -> Seen:
    """Headers that never end, in empty pieces."""
    wire = Wire(listen)
    wire.send(HeadersFrame(1, b"\x00", flags=[]).serialize())
    return _repeat(wire, ContinuationFrame(1, b"").serialize())


def hpack_bomb(listen: str) -> Seen:
    """A header of 4 kB put into the table, then named by one byte each, thousands of times."""
    wire = Wire(listen)
    block = wire.encoder.encode(list(HEADERS))
    long = b"\x40\x01a\x7f\xd1\x1e" + b"x" * 4_000  # literal with indexing, a value of 127 + 81 + 30 * 128 bytes
    bomb = HeadersFrame(1, block + long[: 6 + 4_048] + b"x" * 48 + b"\xbe" * 10_000, flags=["END_HEADERS"])
    began = time.monotonic()
    wire.send(bomb.serialize())
    wire.wait_closed(PATIENCE_S)
    return _seen(wire, time.monotonic() - began)


def unread_answers(listen: str) -> Seen:
    """Calls whose answers are never read."""
    wire = Wire(listen)
    calls = (wire.call(n, request()) for n in _streams())
    pieces = (b"".join(itertools.islice(calls, 20)) for _ in itertools.count())
    took_s = wire.flood(pieces, reading=False, for_s=PATIENCE_S)
    return _seen(wire, took_s)


def huge_messages(listen: str) -> Seen:
    """100 calls whose requests are said to be 1 GiB long, with as much of them as is taken."""
    wire = Wire(listen)
    calls = (wire.call(n, message(b"x" * 600, length=2**30), end=False) for n in range(1, 200, 2))
    began = time.monotonic()
    wire.flood(calls, for_s=LASTS_S)
    for stream in range(1, 200, 2):
        wire.wait(stream, 1.0)
    return {**_seen(wire, time.monotonic() - began), "answer": wire.ask(201).headers.get("grpc-status")}


def unfinished_messages(listen: str) -> Seen:
    """256 connections, each of 100 calls that have begun a message of 64 kB."""
    wires = []
    began = time.monotonic()
    for _ in range(200):
        wire = Wire(listen)
        wires.append(wire)
        wire.send(b"".join(wire.call(n, message(b"x" * 5, length=65_000), end=False) for n in range(1, 20, 2)))
        if wire.closed or time.monotonic() - began > LASTS_S:
            break
    return {**_seen(wires[-1], time.monotonic() - began), "connections": len(wires)}


def long_frame(listen: str) -> Seen:
    """A frame that is said to be 16 MiB long."""
    wire = Wire(listen)
    began = time.monotonic()
    wire.send(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")
    wire.wait_closed(PATIENCE_S)
    return _seen(wire, time.monotonic() - began)


def priority_flood(listen: str) -> Seen:
    """PRIORITY for ever new streams."""
    wire = Wire(listen)
    pieces = (PriorityFrame(n, depends_on=0, stream_weight=1).serialize() for n in _streams())
    return _seen(
        wire, wire.flood((b"".join(itertools.islice(pieces, 100)) for _ in itertools.count()), for_s=PATIENCE_S)
    )


def window_update_flood(listen: str) -> Seen:
    """Windows that grow byte by byte."""
    return _repeat(Wire(listen), WindowUpdateFrame(0, window_increment=1).serialize())


def unknown_frames(listen: str) -> Seen:
    """Frames of unknown types: some are ignored, a flood of them is not."""
    wire = Wire(listen)
    frame = b"\0\0\x09\xbe\0\0\0\0\0who knows"
    wire.send(frame * 20)
    before = wire.ask(1).headers.get("grpc-status")
    return {**_repeat(wire, frame), "answer": before}


def too_many_streams(listen: str) -> Seen:
    """Ever more open calls on one connection."""
    wire = Wire(listen)
    return _seen(wire, wire.flood((wire.call(n, end=False) for n in _streams()), for_s=PATIENCE_S))


def garbage(listen: str) -> Seen:
    """What is not HTTP/2 at all."""
    wire = Wire(listen, greet=False)
    began = time.monotonic()
    wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wire.wait_closed(PATIENCE_S)
    return _seen(wire, time.monotonic() - began)


def reconnecting(listen: str) -> Seen:
    """Connections that are opened, greeted and dropped, as fast as it goes."""
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < LASTS_S:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(listen)
            with contextlib.suppress(BrokenPipeError):  # closed at once
                connection.send(PREFACE + SettingsFrame(0).serialize())
            count += 1
    return {"connections": count}


def reconnecting_pings(listen: str) -> Seen:
    """A PING flood that comes back each time that it was cut off."""
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < LASTS_S:
        wire = Wire(listen)
        wire.flood(itertools.repeat(PingFrame(0, b"12345678").serialize() * 100), for_s=1.0)
        wire.close()
        count += 1
    return {"connections": count}


def call_rate(listen: str) -> Seen:
    """Good calls, as many as one connection carries."""
    wire = Wire(listen)
    streams = _streams()
    began = time.monotonic()
    while not wire.closed and time.monotonic() - began < LASTS_S:
        batch = list(itertools.islice(streams, 50))
        wire.send(b"".join(wire.call(n, request()) for n in batch))
        wire.wait(batch[-1])
    return _seen(wire, time.monotonic() - began)


def connections(listen: str) -> Seen:
    """As many connections as are taken, all of them silent."""
    wires = [Wire(listen, greet=False) for _ in range(500)]
    time.sleep(1.0)
    for wire in wires:
        wire.read(0)
    return {"open": sum(not wire.closed for wire in wires)}


if __name__ == "__main__":
    attack: Attack = globals()[sys.argv[1]]
    print(json.dumps(attack(sys.argv[2])))  # noqa: T201
