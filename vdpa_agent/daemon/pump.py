"""LogPump: turns what the daemon prints into log events, and never makes it wait."""

import asyncio
import re
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

import structlog

from vdpa_agent.model.allowance import Allowance
from vdpa_agent.model.text import printable

_LINE_MAX_BYTES: Final = 4096
"""The longest line that is kept; the rest of a longer one is dropped and counted."""

_KEPT_LINES: Final = 20
"""How many last lines a failure message can show."""

_BURST_LINES: Final = 1000
"""How many lines are logged however fast they come."""

_LINES_PER_S: Final = 200
"""How many lines a second are logged in the long run."""

_REPORT_S: Final = 1.0
"""How often drops and repetitions are reported at most."""

_FEW: Final = 5
"""How many lines of one form are logged before the others of that time are only counted."""

_REPEATED_COST: Final = 0.1
"""What such a line takes of the lines that may be logged: it is read, and not written."""

_FORMS: Final = 256
"""How many forms are known at once; lines of others are logged as they come."""

_ERROR_CHARACTERS: Final = 256
"""The longest error that is kept as the reason of an end."""

_LEVEL: Final = re.compile(r"(debug|info|warning|error): ")
_DEVICE: Final = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b")
_SUBJECT: Final = re.compile(rf"{_DEVICE.pattern}|(?<=\()/[^)]*(?=\))")
"""What a line is about: a device, or the socket that DPDK names in parentheses."""

_NUMBER: Final = re.compile(r"0x[0-9a-f]+|[0-9]+")
_FATAL: Final = "EAL: FATAL"
"""How EAL's own line begins when it gives up before vdpad's log takes over."""

_ERROR_MARKS: Final = (b"\nerror: ", b"\n" + _FATAL.encode())
_SEVERE_MARKS: Final = (b"warning: ", b"error: ", _FATAL.encode())
_SEVERE_LINE: Final = re.compile(rb"^(?:%s).*$" % b"|".join(_SEVERE_MARKS), re.MULTILINE)
_BLANK_LINES: Final = re.compile(rb"\n{2,}")

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
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


@dataclass(slots=True)
class _Form:
    """Lines of one device that differ in their numbers alone, since the last report.

    Attributes:
        level: their level.
        line: the newest one.
        fields: what is logged with it.
        lines: how many there were.
    """

    level: str
    line: str
    fields: dict[str, str]
    lines: int = 1


class LogPump(asyncio.Protocol):
    """Reads the daemon's output; each line becomes a `daemon_output` event at the line's own level.

    Lines that come too fast are dropped unread, warnings and errors last, and reported as `daemon_output_dropped`. Of
    lines about one device that differ in numbers alone a few a second are logged, and the others reported together as
    `daemon_output_repeated`. To be made while the event loop runs.

    Attributes:
        dropped: where it counts what it drops.
    """

    def __init__(self, dropped: Dropped, source: str, device: str = "") -> None:
        """Reads nothing yet.

        Args:
            dropped: where to count what is dropped.
            source: the program's name, which each event carries.
            device: the only device of the program, likewise; empty: it has several.
        """
        self.dropped = dropped
        self._source = source
        self._about = {"device": device} if device else {}
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.BaseTransport | None = None
        self._lost = asyncio.Event()
        self._rest = b""
        self._last: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._allowance = Allowance(self._loop.time, burst=_BURST_LINES, per_s=_LINES_PER_S)
        self._severe_allowance = Allowance(self._loop.time, burst=_BURST_LINES, per_s=_LINES_PER_S)
        self._forms: dict[tuple[str, str, str], _Form] = {}
        self._report_due: asyncio.TimerHandle | None = None
        self._reported = replace(dropped)
        self._error = b""

    @property
    def last_lines(self) -> list[str]:
        """The newest lines, oldest first, whether they were logged or dropped."""
        return [text for line in self._last if (text := _readable(line))]

    @property
    def last_error(self) -> str:
        """What the daemon said of its end: its newest line of level error, else its last line; empty if silent."""
        line = self._error or (self._last[-1] if self._last else b"")
        return printable(_LEVEL.sub("", _readable(line), count=1), _ERROR_CHARACTERS)

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
        if self._report_due is not None:
            self._report_due.cancel()
            self._report()
        self._lost.set()

    def _take(self, block: bytes) -> None:
        """Takes complete lines, logs as many as are allowed, and looks into no other one by one."""
        if b"\n\n" in block:
            block = _BLANK_LINES.sub(b"\n", block)
        block = block.strip(b"\n")
        if not block:
            return
        self._last.extend(line[:_LINE_MAX_BYTES] for line in block.rsplit(b"\n", _KEPT_LINES)[-_KEPT_LINES:])
        self._keep_error(block)
        allowed = _lines(self._allowance)
        lines = block.split(b"\n", allowed)
        excess = lines.pop() if len(lines) > allowed else b""
        for line in lines:
            self._allowance.spend(self._log(line))
        if excess:
            self._thin_out(excess)

    def _keep_error(self, block: bytes) -> None:
        if any(mark[1:] in block for mark in _ERROR_MARKS):
            whole = b"\n" + block
            begin = max(map(whole.rfind, _ERROR_MARKS))
            if begin >= 0:
                self._error = block[begin:].partition(b"\n")[0][:_LINE_MAX_BYTES]

    def _thin_out(self, block: bytes) -> None:
        """Logs the severe lines of a block as far as allowed, and drops the others."""
        lines = block.count(b"\n") + 1
        size = len(block) - lines + 1
        allowed = _lines(self._severe_allowance)
        if allowed and any(mark in block for mark in _SEVERE_MARKS):
            for line, _ in zip(_SEVERE_LINE.finditer(block), range(allowed), strict=False):
                self._severe_allowance.spend(self._log(line[0]))
                lines -= 1
                size -= len(line[0])
        self._drop(lines, size)

    def _log(self, raw: bytes) -> float:
        """Logs a line, or counts it as a repetition; returns what that costs."""
        self._drop(0, len(raw) - _LINE_MAX_BYTES)
        text = _readable(raw)
        if not text:
            return 1
        level = "error" if text.startswith(_FATAL) else "info"
        if match := _LEVEL.match(text):
            level = match[1]
            text = text[match.end() :]
        fields = {"device": device[0]} if (device := _DEVICE.search(text)) else self._about
        if self._is_repeated(level, text, fields):
            return _REPEATED_COST
        log.log(_LEVELS[level], "daemon_output", source=self._source, line=text, **fields)
        return 1

    def _is_repeated(self, level: str, text: str, fields: dict[str, str]) -> bool:
        """Whether a line differs in numbers alone from more than a few others about the same device."""
        subject = _SUBJECT.search(text)
        if subject is None:
            return False
        key = (level, subject[0], _NUMBER.sub("#", text))
        form = self._forms.get(key)
        if form is None:
            if len(self._forms) < _FORMS:
                self._forms[key] = _Form(level, text, fields)
                self._report_later()
            return False
        form.lines += 1
        form.line = text
        return form.lines > _FEW

    def _drop(self, lines: int, size: int) -> None:
        if lines <= 0 and size <= 0:
            return
        self.dropped.lines += lines
        self.dropped.size_bytes += size
        self._report_later()

    def _report_later(self) -> None:
        if self._report_due is None:
            self._report_due = self._loop.call_later(_REPORT_S, self._report)

    def _report(self) -> None:
        self._report_due = None
        forms, self._forms = self._forms, {}
        for form in forms.values():
            if (lines := form.lines - _FEW) > 0:
                level, fields = form.level, {**form.fields, "source": self._source, "line": form.line, "lines": lines}
                log.log(_LEVELS[level], "daemon_output_repeated", **fields)
        reported, self._reported = self._reported, replace(self.dropped)
        if self.dropped != reported:
            log.warning(
                "daemon_output_dropped",
                source=self._source,
                **self._about,
                lines=self.dropped.lines - reported.lines,
                bytes=self.dropped.size_bytes - reported.size_bytes,
            )


def _lines(allowance: Allowance) -> int:
    """How many lines may be logged now."""
    return max(0, int(allowance.left()))


def _readable(raw: bytes) -> str:
    return raw[:_LINE_MAX_BYTES].decode("utf-8", "backslashreplace").rstrip("\r").translate(_ESCAPES)
