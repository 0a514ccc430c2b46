"""LogPump: turns what the daemon prints into log events, and never makes it wait."""

import asyncio
import re
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

import structlog

_LINE_MAX_BYTES: Final = 4096
"""The longest line that is kept; the rest of a longer one is dropped and counted."""

_KEPT_LINES: Final = 20
"""How many last lines a failure message can show."""

_BURST_LINES: Final = 1000
"""How many lines are logged however fast they come."""

_LINES_PER_S: Final = 200
"""How many lines a second are logged in the long run."""

_TOLD_EVERY_S: Final = 1.0
"""How often drops are told at most."""

_LEVEL: Final = re.compile(r"(debug|info|warning|error): ")
_DEVICE: Final = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b")
_FATAL: Final = "EAL: FATAL"
"""How EAL's own line begins when it gives up before vdpad's log takes over."""

_SEVERE_MARKS: Final = (b"warning: ", b"error: ", _FATAL.encode())
_SEVERE_LINE: Final = re.compile(rb"^(?:%s).*$" % b"|".join(_SEVERE_MARKS), re.MULTILINE)
_BLANK_LINES: Final = re.compile(rb"\n{2,}")

_NUMBERS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), *range(127, 160))}
"""Control characters but the tabulator: they must not reach an operator's terminal."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Dropped:
    """How much of a daemon's output was not logged; that of several lives may be counted together.

    Attributes:
        lines: lines that were not logged.
        size_bytes: their size, and that of the ends of overlong lines.
    """

    lines: int = 0
    size_bytes: int = 0


class LogPump(asyncio.Protocol):
    """Reads the daemon's output; each line becomes a `daemon_output` event at the line's own level.

    Lines that come too fast are dropped unread, warnings and errors last; drops are told as `daemon_output_dropped`.
    To be made while the event loop runs.

    Attributes:
        dropped: where it counts what it drops.
    """

    def __init__(self, dropped: Dropped) -> None:
        self.dropped = dropped
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.BaseTransport | None = None
        self._lost = asyncio.Event()
        self._rest = b""
        self._last: deque[bytes] = deque(maxlen=_KEPT_LINES)
        now_s = self._loop.time()
        self._allowance = _Allowance(now_s)
        self._severe_allowance = _Allowance(now_s)
        self._telling: asyncio.TimerHandle | None = None
        self._told = replace(dropped)

    @property
    def last_lines(self) -> list[str]:
        """The newest lines, oldest first, whether they were logged or dropped."""
        return [text for line in self._last if (text := _readable(line))]

    async def finish(self, timeout_s: float) -> None:
        """Waits until all is read that the daemon had printed when it ended, then closes the pipe.

        Args:
            timeout_s: how long to go on reading while somebody else, a process that the daemon left, holds the pipe.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._lost.wait()
        except TimeoutError:
            pass
        finally:
            if self._transport is not None:
                self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is open."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Takes a piece of output; keeps at most one unfinished line of 4 KiB."""
        lines, newline, rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._take(lines)
        self._drop(0, len(rest) - _LINE_MAX_BYTES)
        self._rest = rest[:_LINE_MAX_BYTES]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Nobody can print any more; what was printed last counts as a line."""
        if self._rest:
            self._take(self._rest)
        self._rest = b""
        if self._telling is not None:
            self._telling.cancel()
            self._tell()
        self._lost.set()

    def _take(self, block: bytes) -> None:
        """Takes complete lines, logs as many as are allowed, and looks into no other one by one."""
        if b"\n\n" in block:
            block = _BLANK_LINES.sub(b"\n", block)
        block = block.strip(b"\n")
        if not block:
            return
        self._last.extend(line[:_LINE_MAX_BYTES] for line in block.rsplit(b"\n", _KEPT_LINES)[-_KEPT_LINES:])
        now_s = self._loop.time()
        allowed = self._allowance.lines(now_s)
        lines = block.split(b"\n", allowed)
        excess = lines.pop() if len(lines) > allowed else b""
        self._allowance.spend(len(lines))
        for line in lines:
            self._log(line)
        if excess:
            self._thin_out(excess, now_s)

    def _thin_out(self, block: bytes, now_s: float) -> None:
        """Logs the severe lines of a block as far as allowed, and drops the others."""
        lines = block.count(b"\n") + 1
        size = len(block) - lines + 1
        allowed = self._severe_allowance.lines(now_s)
        if allowed and any(mark in block for mark in _SEVERE_MARKS):
            for line, _ in zip(_SEVERE_LINE.finditer(block), range(allowed), strict=False):
                self._severe_allowance.spend(1)
                self._log(line[0])
                lines -= 1
                size -= len(line[0])
        self._drop(lines, size)

    def _log(self, raw: bytes) -> None:
        self._drop(0, len(raw) - _LINE_MAX_BYTES)
        text = _readable(raw)
        if not text:
            return
        level = "error" if text.startswith(_FATAL) else "info"
        if match := _LEVEL.match(text):
            level = match[1]
            text = text[match.end() :]
        fields = {"device": device[0]} if (device := _DEVICE.search(text)) else {}
        log.log(_NUMBERS[level], "daemon_output", source="vdpad", line=text, **fields)

    def _drop(self, lines: int, size: int) -> None:
        if lines <= 0 and size <= 0:
            return
        self.dropped.lines += lines
        self.dropped.size_bytes += size
        if self._telling is None:
            self._telling = self._loop.call_later(_TOLD_EVERY_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        told, self._told = self._told, replace(self.dropped)
        log.warning(
            "daemon_output_dropped",
            source="vdpad",
            lines=self.dropped.lines - told.lines,
            bytes=self.dropped.size_bytes - told.size_bytes,
        )


@dataclass(slots=True)
class _Allowance:
    """How many lines may be logged: a burst, then so many a second."""

    seen_s: float
    left: float = _BURST_LINES

    def lines(self, now_s: float) -> int:
        """How many are allowed now."""
        self.left = min(_BURST_LINES, self.left + (now_s - self.seen_s) * _LINES_PER_S)
        self.seen_s = now_s
        return int(self.left)

    def spend(self, lines: int) -> None:
        self.left -= lines


def _readable(raw: bytes) -> str:
    return raw[:_LINE_MAX_BYTES].decode("utf-8", "backslashreplace").rstrip("\r").translate(_ESCAPES)
