"""A client that speaks HTTP/2 frame by frame, right or wrong, and sees what comes back."""

import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATH: Final = "/vdpadpdk.VdpaDpdk/GetSocketpath"
KNOWN: Final = "0000:82:00.5"
KNOWN_SOCKET: Final = b"/var/run/vdpa/vhost/vdpa-3"
HEADERS: Final = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def with_headers(**changes: str | None) -> list[tuple[str, str]]:
    """The usual headers with changes; None leaves one out. `_path` is `:path`, `content_type` is `content-type`."""
    named = {name.replace("_", ":", 1) if name[0] == "_" else name.replace("_", "-"): v for name, v in changes.items()}
    headers: dict[str, str | None] = {**dict(HEADERS), **named}
    return [(name, value) for name, value in headers.items() if value is not None]


def message(data: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A gRPC message, whose prefix may lie."""
    return bytes([compressed]) + (len(data) if length is None else length).to_bytes(4, "big") + data


def request(address: str = KNOWN) -> bytes:
    """A whole request for an address of less than 128 bytes."""
    return message(b"\x0a" + bytes([len(address)]) + address.encode())


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None


class Wire:
    """One connection.

    Attributes:
        closed: whether the other end has closed.
        goaway: the error code of its GOAWAY.
        answers: by stream.
        frames: the names of all frames that came, but those of answers.
    """

    def __init__(self, listen: str, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(listen)
        self.socket.settimeout(0)
        self.encoder = Encoder()
        self.closed = False
        self.goaway: int | None = None
        self.answers: dict[int, Answer] = {}
        self.frames: list[str] = []
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = 2**32 - 1  # some attacks announce that
        self._buffer = b""
        self._unacknowledged = 0
        if greet:
            self.send(PREFACE + SettingsFrame(0).serialize())

    def call(
        self,
        stream: int,
        data: bytes | None = None,
        *,
        headers: Iterable[tuple[str, str]] = HEADERS,
        end: bool = True,
    ) -> bytes:
        """The bytes of a call: headers, and data where there are some."""
        flags = ["END_HEADERS"] + (["END_STREAM"] if end and data is None else [])
        frames = HeadersFrame(stream, self.encoder.encode(list(headers)), flags=flags).serialize()
        if data is not None:
            frames += DataFrame(stream, data, flags=["END_STREAM"] if end else []).serialize()
        return frames

    def ask(self, stream: int, address: str = KNOWN) -> Answer:
        """Makes a good call and waits for its answer."""
        self.send(self.call(stream, request(address)))
        return self.wait(stream)

    def send(self, data: bytes, *, reading: bool = True, patience_s: float = 5.0) -> None:
        """Sends all of it, and reads meanwhile, unless the other end closes or the time is over."""
        end = time.monotonic() + patience_s
        while data and not self.closed and time.monotonic() < end:
            readable, writable, _ = select.select([self.socket] if reading else [], [self.socket], [], 0.05)
            if readable:
                self._read()
            if writable and not self.closed:
                try:
                    data = data[self.socket.send(data) :]
                except BlockingIOError:
                    pass
                except OSError:
                    self._drain()

    def flood(self, pieces: Iterator[bytes], *, reading: bool = True, for_s: float = 3.0) -> float:
        """Sends pieces until the other end closes or the time is over; returns how long that took, in seconds."""
        began = time.monotonic()
        for piece in pieces:
            left_s = began + for_s - time.monotonic()
            if self.closed or left_s <= 0:
                break
            self.send(piece, reading=reading, patience_s=left_s)
        return time.monotonic() - began

    def wait(self, stream: int, patience_s: float = 5.0) -> Answer:
        """Waits until an answer has ended, or the connection."""
        answer = self.answers.setdefault(stream, Answer())
        self.read_until(lambda: answer.ended, patience_s)
        return answer

    def wait_closed(self, patience_s: float = 5.0) -> float:
        """Waits until the other end has closed; returns how long that took, in seconds."""
        began = time.monotonic()
        self.read_until(lambda: self.closed, patience_s)
        return time.monotonic() - began

    def ping(self) -> None:
        """Waits until the other end has taken all that was sent, as its answer to a PING shows."""
        self.frames.clear()
        self.send(PingFrame(0, b"received").serialize())
        self.read_until(lambda: "PingFrame" in self.frames)

    def read_until(self, condition: Callable[[], bool], patience_s: float = 5.0) -> None:
        """Reads until a condition holds, the other end has closed, or the time is over."""
        end = time.monotonic() + patience_s
        while not (condition() or self.closed) and time.monotonic() < end:
            self.read(0.05)

    def read(self, for_s: float) -> None:
        """Reads what comes next, if it comes in time."""
        if select.select([self.socket], [], [], for_s)[0]:
            self._read()

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()

    def _drain(self) -> None:
        while not self.closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        self._buffer += data
        while len(self._buffer) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._buffer[:9]))
            if len(self._buffer) < 9 + length:
                return
            frame.parse_body(memoryview(self._buffer[9 : 9 + length]))
            self._buffer = self._buffer[9 + length :]
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, GoAwayFrame):
            self.goaway = frame.error_code
        if isinstance(frame, HeadersFrame | DataFrame | RstStreamFrame):
            answer = self.answers.setdefault(frame.stream_id, Answer())
            if isinstance(frame, HeadersFrame):
                answer.headers.update((str(name), str(value)) for name, value in self._decoder.decode(frame.data))
            elif isinstance(frame, DataFrame):
                answer.data += frame.data
                self._unacknowledged += len(frame.data)
                if self._unacknowledged > 30_000:
                    update = WindowUpdateFrame(0, window_increment=self._unacknowledged)
                    self._unacknowledged = 0
                    with suppress(OSError):
                        self.socket.send(update.serialize())
            else:
                answer.reset = frame.error_code
            answer.ended = answer.ended or "END_STREAM" in frame.flags or isinstance(frame, RstStreamFrame)
        elif len(self.frames) < 10_000:
            self.frames.append(type(frame).__name__)
