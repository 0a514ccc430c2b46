"""LogPump: turns what the daemon prints into log events, and never makes it wait."""

import asyncio
import re
from collections import deque
from typing import Final

import structlog

_LINE_MAX_BYTES: Final = 4096
"""The longest line that is kept; the rest of a longer one is dropped and counted."""

_KEPT_LINES: Final = 20
"""How many last lines a failure message can show."""

_LEVEL: Final = re.compile(r"(debug|info|warning|error): ")
_DEVICE: Final = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b")

_NUMBERS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), 127)}
"""Control characters but the tabulator: they must not reach an operator's terminal."""

log = structlog.get_logger(__name__)


class LogPump(asyncio.Protocol):
    """Reads the daemon's output; each line becomes a `daemon_output` event at the line's own level.

    Attributes:
        last_lines: the newest lines, oldest first.
        truncated_bytes: how much of overlong lines was dropped.
    """

    def __init__(self) -> None:
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.truncated_bytes = 0
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Takes a piece of output; keeps at most one unfinished line of 4 KiB."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        self.truncated_bytes += max(0, len(rest) - _LINE_MAX_BYTES)
        self._rest = rest[:_LINE_MAX_BYTES]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The daemon is gone; what it printed last counts as a line."""
        if self._rest:
            self._line(self._rest)
        self._rest = b""

    def _line(self, raw: bytes) -> None:
        self.truncated_bytes += max(0, len(raw) - _LINE_MAX_BYTES)
        text = raw[:_LINE_MAX_BYTES].decode("utf-8", "backslashreplace").rstrip("\r").translate(_ESCAPES)
        if not text:
            return
        self.last_lines.append(text)
        level = "info"
        if match := _LEVEL.match(text):
            level = match[1]
            text = text[match.end() :]
        fields = {"device": device[0]} if (device := _DEVICE.search(text)) else {}
        log.log(_NUMBERS[level], "daemon_output", source="vdpad", line=text, **fields)
