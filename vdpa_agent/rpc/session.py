"""One HTTP/2 session of a server: bytes in, what they mean out by methods, and answers in, bytes out."""

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from ctypes import byref, c_void_p, memmove, string_at
from functools import cache
from typing import Any, Final

from vdpa_agent.rpc.limits import HEADER_BYTES, RESETS_BURST, RESETS_PER_S, STREAMS
from vdpa_agent.rpc.nghttp2 import (
    DATA_EOF,
    DATA_NO_END_STREAM,
    Block,
    Callbacks,
    ErrorCode,
    Failure,
    Headers,
    Library,
    Options,
    Provider,
    Setting,
    Settings,
    load,
)

GATHERED_BYTES: Final = 64 * 1024
"""How much is handed to the kernel at once, or a frame more: a big answer leaves turns to the others."""

_CREDIT_BYTES: Final = 4 * 1024
"""How much the peer has sent before the library gets to know that it was used; it tells the peer at half a window."""

_HEADER_COSTS_BYTES: Final = 32
"""What a header counts for beside its letters: RFC 9113, 6.5.2."""

_HEAD: Final = struct.Struct("=Qi4B")
"""The beginning of every nghttp2_frame: length, stream, type, flags, a reserved byte, and one of padding."""

_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM: Final = 1
_ACK: Final = 1
_TYPE_AT: Final = 3

_BEGIN: Final[Headers] = [(b":status", b"200"), (b"content-type", b"application/grpc+proto")]
BEGIN: Final = Block(_BEGIN, kept=True)
"""How every answer of gRPC begins."""

OK: Final = Block([(b"grpc-status", b"0")], kept=True)
"""How a good one ends."""


def whole(headers: Headers) -> Block:
    """The headers of an answer of gRPC that has nothing but a status."""
    return Block([*_BEGIN, *headers])


class Reply:
    """What is still to be sent of an answer.

    Attributes:
        body: the bytes that wait, from `at` on.
        trailers: how it ends; None: more may come.
        taken: is done when all of the body was taken, or will never be; None: nobody waits for that.
        asleep: whether the library waits for more of the body; else the peer has not taken all of that.
    """

    __slots__ = ("asleep", "at", "body", "taken", "trailers")

    def __init__(self, body: bytes, trailers: Block | None) -> None:
        self.body = body
        self.at = 0
        self.trailers = trailers
        self.taken: asyncio.Future[None] | None = None
        self.asleep = False

    def wake(self) -> None:
        """Nobody need wait any longer."""
        if self.taken is not None and not self.taken.done():
            self.taken.set_result(None)


class Session(ABC):
    """The library's session, with what must be true of its memory kept here and nowhere else.

    The library calls back only while `receive` and `to_send` run. Neither may be called by what it calls, and after
    `free` nothing is. A callback that raises would be lost in C: what one raises is kept, and ends the session.

    Attributes:
        defect: what a callback raised.
        greeted: whether the peer's settings have come.
        parting: whether either end has said GOAWAY of its own accord: that the library wants nothing more is no fault.
    """

    def __init__(self) -> None:
        """Greets the peer: its settings are the first thing to be sent."""
        self.defect: Exception | None = None
        self.greeted = False
        self.parting = False
        self.headers: Headers = []
        self.header_bytes = 0
        self._library, callbacks, options, settings, provider = _prepared()
        self._provider = provider.pointer
        self._replies: dict[int, Reply] = {}
        self._ended: list[int] = []
        self._credit_bytes = 0
        self._inside = False
        self._said_goaway = False
        self._moved = False
        session = c_void_p()
        # It keeps a plain pointer to this object, which therefore must be here until it is freed.
        if self._library.server_new(byref(session), callbacks.pointer, self, options.pointer):
            raise MemoryError
        self._session: int | None = session.value
        self._library.submit_settings(self._session, 0, settings.entries, settings.count)

    # ---- what the peer does, to be told by what makes calls of it ----

    @abstractmethod
    def took_headers(self, stream: int, headers: Headers, *, ended: bool) -> None:
        """A block of headers came; `ended`: nothing will follow on its stream."""

    @abstractmethod
    def took_data(self, stream: int, data: bytes, *, last: bool) -> None:
        """Data came, which is to be given to `used` in the end; `last`: in the last frame of its stream."""

    @abstractmethod
    def took_end(self, stream: int) -> None:
        """No more data will come."""

    @abstractmethod
    def closed(self, stream: int) -> None:
        """A stream has ended in both directions, or was reset."""

    @abstractmethod
    def was_refused(self, *, too_many: bool) -> None:
        """The library has reset a stream, as one too many or for what came on it."""

    @abstractmethod
    def headers_too_long(self) -> None:
        """More headers than a request may have."""

    # ---- bytes ----

    def receive(self, address: int, size: int) -> bool:
        """Takes in bytes; False: nothing more can be taken in.

        Args:
            address: where they are.
            size: how many.
        """
        session = self._living
        self._inside = True
        taken = self._library.mem_recv(session, address, size)
        self._inside = False
        return bool(taken >= 0)

    def to_send(self) -> bytes:
        """What is to be sent, up to `GATHERED_BYTES` and a frame; empty: nothing."""
        library, session = self._library, self._living
        out: list[bytes] = []
        size = 0
        self._inside = True
        while size < GATHERED_BYTES:
            length = library.mem_send(session, _SENT_POINTER)
            if length > 0:
                frame = string_at(_SENT.value, length)  # type: ignore[arg-type]
                out.append(frame)
                size += length
                if frame[_TYPE_AT] == _GOAWAY:
                    self._said_goaway = True
            elif length < 0:
                self.defect = self.defect or MemoryError()  # of what mem_send fails by: a callback, or this
                break
            elif not self._reset_ended():
                break
        self._inside = False
        return b"".join(out)

    @property
    def is_over(self) -> bool:
        """Whether the library wants nothing more of the peer: either end has said GOAWAY, and no stream is left."""
        return (self._said_goaway or self.parting) and not self._library.want_read(self._living)

    def used(self, stream: int, size: int, *, going_on: bool) -> None:
        """Lets the peer send as many bytes more; `going_on`: also on this stream, else on others."""
        if going_on:
            self._library.consume(self._living, stream, size)
            return
        self._credit_bytes += size
        if self._credit_bytes >= _CREDIT_BYTES:
            self._library.consume_connection(self._living, self._credit_bytes)
            self._credit_bytes = 0

    # ---- answers, which `to_send` then gives ----

    def begin(self, stream: int, body: bytes, trailers: Block | None = None) -> Reply:
        """Answers a stream that is open, with the beginning of a gRPC answer, some data, and perhaps its end."""
        reply = self._replies[stream] = Reply(body, trailers)
        if self._library.submit_response(self._living, stream, BEGIN.pairs, BEGIN.count, self._provider):
            raise MemoryError
        return reply

    def go_on(self, stream: int, reply: Reply, body: bytes, trailers: Block | None = None) -> None:
        """Adds data to an answer whose data were taken, or its end."""
        reply.body, reply.at, reply.trailers = body, 0, trailers
        if reply.asleep:
            reply.asleep = False
            self._library.resume_data(self._living, stream)

    def stalls(self) -> bool:
        """Whether there are data for the peer, and it has taken none since this was asked before.

        It takes none while it holds a window of HTTP/2 closed, or while the kernel keeps no more for it.
        """
        moved, self._moved = self._moved, False
        return not moved and any(not reply.asleep for reply in self._replies.values())

    def answer_plainly(self, stream: int, headers: Block, body: bytes | None = None) -> None:
        """Answers a stream that is open with headers, and a text if there is one."""
        if body is not None:
            self._replies[stream] = Reply(body, _NOTHING)
        provider = None if body is None else self._provider
        if self._library.submit_response(self._living, stream, headers.pairs, headers.count, provider):
            raise MemoryError
        if body is None:
            self._ended.append(stream)

    def reset(self, stream: int, code: ErrorCode) -> None:
        """Ends a stream at once."""
        self._library.submit_rst_stream(self._living, 0, stream, code)

    def say_goaway(self) -> None:
        """Asks the peer to begin no more streams; those that are open go on."""
        self.parting = True
        last = self._library.last_stream(self._living)
        self._library.submit_goaway(self._living, 0, last, ErrorCode.NO_ERROR, None, 0)

    def terminate(self, code: ErrorCode) -> None:
        """Ends the session, with what is to be sent already and a GOAWAY."""
        self._library.terminate(self._living, code)

    def free(self) -> None:
        """Gives the library's memory back; nothing may be called after it."""
        if self._inside:
            message = "a session was to be freed by what it called"
            raise AssertionError(message)
        session, self._session = self._session, None
        if session is not None:
            self._library.delete(session)
        self._replies.clear()

    @property
    def is_freed(self) -> bool:
        """Whether the end has come: what runs on must not answer any more."""
        return self._session is None

    @property
    def _living(self) -> int:
        """The library's session: what comes after its end is a defect here, and must not become one in C."""
        if self._session is None:
            message = "a session was used after its end"
            raise AssertionError(message)
        return self._session

    # ---- what the callbacks do ----

    def _reset_ended(self) -> bool:
        """Has the peer send no more for answers that have left; says whether there is something to be sent for that."""
        ended, self._ended = self._ended, []
        for stream in ended:
            if self.is_open(stream):
                self.reset(stream, ErrorCode.NO_ERROR)
        return bool(ended)

    @abstractmethod
    def is_open(self, stream: int) -> bool:
        """Whether the peer may still send something on a stream."""

    def on_frame(self, frame: int) -> None:
        """A frame came whole; a block of headers counts as one."""
        _, stream, kind, flags, _, _ = _HEAD.unpack(string_at(frame, _HEAD.size))
        if kind == _HEADERS:
            self.took_headers(stream, self.headers, ended=bool(flags & _END_STREAM))
        elif kind == _DATA:
            if flags & _END_STREAM:
                self.took_end(stream)
        elif kind == _SETTINGS:
            self.greeted = self.greeted or not flags & _ACK
        elif kind == _GOAWAY:
            self.parting = True

    def on_invalid(self, frame: int, failure: int) -> None:
        """The library does not accept a frame, and ends its stream or the session."""
        _, _, kind, _, _, _ = _HEAD.unpack(string_at(frame, _HEAD.size))
        if kind == _GOAWAY:
            # grpc-go says farewell with the number of a stream of its own, which RFC 9113, 6.8 has no meaning for.
            self.parting = True
        else:
            self.was_refused(too_many=failure == Failure.REFUSED_STREAM)

    def on_close(self, stream: int) -> None:
        """A stream has ended."""
        reply = self._replies.pop(stream, None)
        if reply is not None:
            reply.wake()
        self.closed(stream)

    def on_read(self, stream: int, room: int, size: int, flags: Any) -> int:
        """Gives data of an answer; returns how much, or what the library is to do."""
        reply = self._replies[stream]
        body, at = reply.body, reply.at
        end = min(at + size, len(body))
        if end > at:
            memmove(room, body[at:end] if at or end < len(body) else body, end - at)
            reply.at = end
            self._moved = True
        if end == len(body):
            reply.wake()
            if reply.trailers is not None:
                flags[0] = DATA_EOF
                if reply.trailers.count:
                    flags[0] |= DATA_NO_END_STREAM
                    self._library.submit_trailer(self._living, stream, reply.trailers.pairs, reply.trailers.count)
                self._ended.append(stream)
            elif end == at:
                reply.asleep = True
                return Failure.DEFERRED
        return end - at


_NOTHING: Final = Block([], kept=True)
_SENT: Final = c_void_p()
_SENT_POINTER: Final = byref(_SENT)


@cache
def _prepared() -> tuple[Library, Callbacks, Options, Settings, Provider]:
    """What all sessions share."""
    library = load()
    callbacks: dict[str, Callable[..., int]] = {
        "on_begin_headers": _on_begin_headers,
        "on_header": _on_header,
        "on_frame_recv": _on_frame_recv,
        "on_invalid_frame_recv": _on_invalid_frame_recv,
        "on_data_chunk_recv": _on_data_chunk_recv,
        "on_stream_close": _on_stream_close,
    }
    options: dict[str, int | tuple[int, ...]] = {
        "no_auto_window_update": 1,  # the peer may send more when what came was used, not when it came
        "no_http_messaging": 1,  # see headers.py
        # Resets are counted in frames.py; the library is not to be the first to end a connection for them.
        "stream_reset_rate_limit": (10 * RESETS_BURST, 10 * RESETS_PER_S),
    }
    settings = {Setting.MAX_CONCURRENT_STREAMS: STREAMS, Setting.MAX_HEADER_LIST_SIZE: HEADER_BYTES}
    return library, Callbacks(library, callbacks), Options(library, options), Settings(settings), Provider(_on_read)


def _failed(session: Session, error: Exception) -> int:
    """Keeps what a callback raised: by ctypes it would be lost, and the library go on."""
    session.defect = error
    return Failure.CALLBACK_FAILURE


# Each guards itself: a wrapper around them would cost a tenth of a call.


def _on_begin_headers(_session: int, _frame: int, session: Session) -> int:
    session.headers = []
    session.header_bytes = 0
    return 0


def _on_header(
    _session: int, _frame: int, name: int, name_bytes: int, value: int, value_bytes: int, _flags: int, session: Session
) -> int:
    try:
        session.header_bytes += name_bytes + value_bytes + _HEADER_COSTS_BYTES
        if session.header_bytes > HEADER_BYTES:
            session.headers_too_long()
            return Failure.TEMPORAL_CALLBACK_FAILURE
        session.headers.append((string_at(name, name_bytes), string_at(value, value_bytes)))
    except Exception as error:  # noqa: BLE001 - see _failed
        return _failed(session, error)
    return 0


def _on_frame_recv(_session: int, frame: int, session: Session) -> int:
    try:
        session.on_frame(frame)
    except Exception as error:  # noqa: BLE001 - see _failed
        return _failed(session, error)
    return 0


def _on_invalid_frame_recv(_session: int, frame: int, failure: int, session: Session) -> int:
    try:
        session.on_invalid(frame, failure)
    except Exception as error:  # noqa: BLE001 - see _failed
        return _failed(session, error)
    return 0


def _on_data_chunk_recv(_session: int, flags: int, stream: int, data: int, size: int, session: Session) -> int:
    try:
        session.took_data(stream, string_at(data, size), last=bool(flags & _END_STREAM))
    except Exception as error:  # noqa: BLE001 - see _failed
        return _failed(session, error)
    return 0


def _on_stream_close(_session: int, stream: int, _code: int, session: Session) -> int:
    try:
        session.on_close(stream)
    except Exception as error:  # noqa: BLE001 - see _failed
        return _failed(session, error)
    return 0


def _on_read(_session: int, stream: int, room: int, size: int, flags: Any, _source: int, session: Session) -> int:
    try:
        return session.on_read(stream, room, size, flags)
    except Exception as error:  # noqa: BLE001 - see _failed
        return _failed(session, error)
