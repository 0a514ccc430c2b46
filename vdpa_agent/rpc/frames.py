"""Frames: counts what a peer sends before any of it is taken in, also what the library ignores."""

from collections.abc import Callable
from typing import Final, NamedTuple

from vdpa_agent.model.allowance import Allowance
from vdpa_agent.rpc.limits import (
    FRAMES_BURST,
    FRAMES_OF_A_CALL,
    FRAMES_PER_S,
    HEADER_BYTES,
    RESETS_BURST,
    RESETS_PER_S,
    Reason,
)
from vdpa_agent.rpc.nghttp2 import ErrorCode

_PREFACE_BYTES: Final = 24
_HEAD_BYTES: Final = 9
_HEADERS, _RST_STREAM, _WINDOW_UPDATE, _CONTINUATION = 1, 3, 8, 9
_JUDGED: Final = frozenset({_HEADERS, _CONTINUATION, _WINDOW_UPDATE})

_NO_WINDOW: Final = (b"\x00\x00\x00\x00", b"\x80\x00\x00\x00")
"""A window update of nothing, without the reserved bit and with it."""

_CONTINUATION_COSTS: Final = 2 * 1024
"""What a further piece of a header block counts for at least: an endless block of empty pieces is too long as well."""


class TooMuch(NamedTuple):
    """Why a connection has to end."""

    reason: Reason
    code: ErrorCode


class Frames:
    """The frames of one connection, of which only the heads are looked at."""

    __slots__ = ("_block", "_frames", "_head", "_last", "_resets", "_skip", "_skipped")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Waits for the preface.

        Args:
            clock: the time, in seconds.
        """
        self._frames = Allowance(clock, burst=FRAMES_BURST, per_s=FRAMES_PER_S)
        self._resets = Allowance(clock, burst=RESETS_BURST, per_s=RESETS_PER_S)
        self._head = b""
        self._skip = _PREFACE_BYTES
        self._block = 0
        self._last = -1
        self._skipped = range(0)

    def count(self, data: bytes) -> TooMuch | None:
        """Counts what came next; None: it may be taken in."""
        if self._head:
            data = self._head + data
        at, end = self._skip, len(data) - _HEAD_BYTES
        frames = resets = 0
        while at <= end:
            kind = data[at + 3]
            length = int.from_bytes(data[at : at + 3], "big")
            frames += 1
            if kind in _JUDGED:
                if found := self._judge(data, at, kind, length):
                    return found
            elif kind == _RST_STREAM:
                resets += 1
                frames -= 1
            at += _HEAD_BYTES + length
        if at < len(data):
            self._head, self._skip = data[at:], 0
        else:
            self._head, self._skip = b"", at - len(data)
        if frames and not self._frames.take(frames):
            return TooMuch(Reason.FRAME_RATE, ErrorCode.ENHANCE_YOUR_CALM)
        if resets and not self._resets.take(resets):
            return TooMuch(Reason.RESET_RATE, ErrorCode.ENHANCE_YOUR_CALM)
        return None

    def earn(self) -> None:
        """A call was taken, which brings frames along."""
        self._frames.give(FRAMES_OF_A_CALL)

    def refuse(self) -> bool:
        """Whether one more call may be refused; else the connection is to end."""
        return self._resets.take()

    def _judge(self, data: bytes, at: int, kind: int, length: int) -> TooMuch | None:
        if kind != _WINDOW_UPDATE:
            return self._in_block(data, at, kind, length)
        # The library ignores it on a stream that has just been answered: RFC 9113, 6.9.
        nothing = data[at + _HEAD_BYTES : at + _HEAD_BYTES + length] in _NO_WINDOW
        return TooMuch(Reason.PROTOCOL, ErrorCode.PROTOCOL_ERROR) if nothing else None

    def _in_block(self, data: bytes, at: int, kind: int, length: int) -> TooMuch | None:
        """A piece of a header block, which must not be too long, nor open a stream lower than the last one."""
        if kind == _CONTINUATION:
            self._block += max(length, _CONTINUATION_COSTS)
        else:
            self._block = length
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            # What the library ignores, as if the stream had been open: RFC 9113, 5.1.1. It is seen for the last gap.
            if stream in self._skipped:
                return TooMuch(Reason.PROTOCOL, ErrorCode.PROTOCOL_ERROR)
            if stream > self._last:
                if stream > self._last + 2:
                    self._skipped = range(self._last + 2, stream)
                self._last = stream
        if self._block > HEADER_BYTES:
            return TooMuch(Reason.HEADER_SIZE, ErrorCode.ENHANCE_YOUR_CALM)
        return None
