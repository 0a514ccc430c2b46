"""Tap: stands between a client and the agent, and keeps what goes over the wire."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingMixIn, UnixStreamServer
from typing import Final

from hpack import Decoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class Half:
    """One direction of an HTTP/2 stream: its headers, trailers among them, and its gRPC-framed messages."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""


class Wire:
    """The bytes of one connection, both ways."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.received = bytearray()

    def requests(self) -> list[Half]:
        """What the client sent, a stream each, in order."""
        assert self.sent.startswith(PREFACE)
        return _halves(bytes(self.sent[len(PREFACE) :]))

    def answers(self) -> list[Half]:
        """What the agent answered, a stream each, in order."""
        return _halves(bytes(self.received))


class Tap:
    """The connections that went through a tap."""

    def __init__(self, listen: Path) -> None:
        self.listen = listen
        self.wires: list[Wire] = []

    def only(self) -> Wire:
        """The one connection."""
        (wire,) = self.wires
        return wire


class _Server(ThreadingMixIn, UnixStreamServer):
    """Joins its connections' threads when it is closed."""


@contextmanager
def tapped(agent: Path, listen: Path) -> Iterator[Tap]:
    """A socket whose connections are passed on to the agent's; its clients must be gone at the end."""
    tap = Tap(listen)

    class Connection(BaseRequestHandler):
        def handle(self) -> None:
            wire = Wire()
            tap.wires.append(wire)
            with socket.socket(socket.AF_UNIX) as onward:
                onward.connect(str(agent))
                back = threading.Thread(target=_pass_on, args=(onward, self.request, wire.received))
                back.start()
                _pass_on(self.request, onward, wire.sent)
                back.join()

    with _Server(str(listen), Connection) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield tap
        finally:
            server.shutdown()
            serving.join()


def _pass_on(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    """Passes bytes on until either side ends, and keeps them first: who has seen an answer finds it kept."""
    with suppress(OSError):  # a side that has closed
        while chunk := source.recv(65536):
            kept += chunk
            sink.sendall(chunk)
    for side in (source, sink):
        with suppress(OSError):  # closed before
            side.shutdown(socket.SHUT_RDWR)


def _halves(content: bytes) -> list[Half]:
    decoder = Decoder()
    halves: dict[int, Half] = {}
    for frame in _frames(content):
        half = halves.setdefault(frame.stream_id, Half())
        if isinstance(frame, HeadersFrame):
            half.headers.update((str(name), str(value)) for name, value in decoder.decode(frame.data))
        elif isinstance(frame, DataFrame):
            half.data += frame.data
    return [half for half in halves.values() if half.headers]


def _frames(content: bytes) -> Iterator[Frame]:
    rest = memoryview(content)
    while len(rest) >= 9:
        frame, length = Frame.parse_frame_header(rest[:9])
        if len(rest) < 9 + length:
            return  # cut off by the end of the connection
        frame.parse_body(rest[9 : 9 + length])
        yield frame
        rest = rest[9 + length :]
