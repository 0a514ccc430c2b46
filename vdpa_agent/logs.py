"""structlog set-up: one event a line on standard error, as text or JSON, written without anybody waiting for it."""

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import structlog

from vdpa_agent.config import LogConfig, LogFormat
from vdpa_agent.errors import NoThread
from vdpa_agent.model.text import printable, printable_lines

_QUEUE_MAX_BYTES: Final = 1024 * 1024
"""How much may wait for a reader of standard error; lines beyond it are dropped and counted."""

_WRITE_MAX_BYTES: Final = 64 * 1024
"""About how much is written at once: what a pipe holds."""

_GATHER_S: Final = 0.01
"""How long the first line waits for others: a thread that is woken for each would take turns with the event loop."""

_FLUSH_S: Final = 1.0
"""How long the end of the process waits for the last lines to be written."""

_NUMBERS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_OF_SEVERAL_LINES: Final = frozenset({"exception", "stack"})
"""What structlog prints below an event's own line."""

log = structlog.get_logger(__name__)


class LogWriter:
    """Writes lines to a descriptor in a thread of its own, which sleeps while there are none.

    As a context manager it gives the last lines a second to be written at its end.

    Attributes:
        dropped_lines: how many lines were dropped, those that are not told yet included.
    """

    def __init__(self, descriptor: int, tell_dropped: Callable[[int], None]) -> None:
        """Starts the thread.

        Args:
            descriptor: where to write; it may block for ever, or fail.
            tell_dropped: called in the thread, with their number, when it can be written again after drops.

        Raises:
            NoThread: the machine has no thread for it.
        """
        self._descriptor = descriptor
        self._tell_dropped = tell_dropped
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self.dropped_lines = 0
        self._told_lines = 0
        self._idle = False
        # Its lock may be taken again by the thread that holds it: what the garbage collector ends may log.
        self._changed = threading.Condition()
        try:
            threading.Thread(target=self._run, name="log", daemon=True).start()
        except RuntimeError as error:
            raise NoThread from error

    def write(self, text: str) -> None:
        """Queues whole lines, or drops them if too much is queued; never waits. Any thread may call it."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._queued_bytes + len(line) > _QUEUE_MAX_BYTES:
                self.dropped_lines += 1
                return
            self._lines.append(line)
            self._queued_bytes += len(line)
            if self._idle:
                self._idle = False
                self._changed.notify_all()

    def flush(self, timeout_s: float = _FLUSH_S) -> bool:
        """Waits until all is written, for at most `timeout_s` seconds; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.flush():
            # Whoever prints to it after us would wait for ever.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._descriptor)
            os.close(null)

    def _run(self) -> None:
        while True:
            piece = self._next()
            written = self._write(piece)
            with self._changed:
                self._queued_bytes -= len(piece)
                if not written:
                    self.dropped_lines += piece.count(b"\n")
                    continue
                dropped = self.dropped_lines - self._told_lines
                self._told_lines = self.dropped_lines
            if dropped:
                self._tell_dropped(dropped)

    def _next(self) -> bytes:
        """Waits for lines; returns some of them."""
        gather = False
        with self._changed:
            while not self._lines:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait()
                gather = True
        if gather:
            time.sleep(_GATHER_S)
        with self._changed:
            size = 0
            piece = []
            while self._lines and size < _WRITE_MAX_BYTES:
                piece.append(self._lines.popleft())
                size += len(piece[-1])
        return b"".join(piece)

    def _write(self, piece: bytes) -> bool:
        rest = memoryview(piece)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # somebody who shares it made it so
                    select.select([], [self._descriptor], [])
        except OSError:
            return False  # nobody will ever read it; the agent goes on without
        return True


def set_up_logs(config: LogConfig) -> LogWriter:
    """Configures structlog, and what libraries log through the standard library, once per process.

    Returns:
        What writes the lines, to be used as a context manager around all that logs.
    """
    _fill_standard_descriptors()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    as_text = config.format is LogFormat.TEXT or (config.format is LogFormat.AUTO and terminal)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    shared: list[Any] = [structlog.processors.add_log_level, stamp, structlog.processors.format_exc_info]
    rendering: list[Any] = [structlog.processors.JSONRenderer()]
    if as_text:
        console = structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
        rendering = [_printable, console]
    level = _NUMBERS[config.level]
    writer = LogWriter(2, lambda lines: log.warning("log_lines_dropped", lines=lines))
    output = _Lines(writer)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    handler = _LibraryHandler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_library, _strip, *rendering])
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    sys.unraisablehook = _ignored
    threading.excepthook = _thread_ended
    return writer


def _ignored(what: "sys.UnraisableHookArgs") -> None:
    """Logs what Python would print: an exception that nobody can catch."""
    _report(what.err_msg or "exception ignored", what.exc_value)


def _thread_ended(what: threading.ExceptHookArgs) -> None:
    """The same of one that ended a thread."""
    _report(f"exception in thread {what.thread.name if what.thread else 'that has ended'}", what.exc_value)


def _report(line: str, error: BaseException | None) -> None:
    with suppress(MemoryError):  # without memory for it nothing is better than what nobody can read
        logging.getLogger("python").error("%s", line, exc_info=error)


class _Lines:
    """What structlog hands each rendered line to, at whatever level."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        self._writer.write(line + "\n")

    debug = info = warning = error = critical = msg


class _LibraryHandler(logging.Handler):
    """Queues what libraries log; that of the standard library would flush, and so wait, after each line."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(self.format(record) + "\n")


def _fill_standard_descriptors() -> None:
    """Opens those that the process was started without: else a socket gets such a number, and what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - standard error
        pass
    os.close(descriptor)


def _library(_logger: Any, _name: str, event: Any) -> Any:
    """Gives a library's line a constant event of its own, with the words as a field."""
    record: logging.LogRecord = event["_record"]
    event["source"] = record.name
    event["line"] = event["event"]
    event["event"] = "library_output"
    return event


def _printable(_logger: Any, _name: str, event: Any) -> Any:
    """Whatever is not a number becomes printable text, before colours are added; tracebacks keep their lines."""
    return {
        printable(name): value
        if value is None or isinstance(value, int | float)
        else printable_lines(value)
        if name in _OF_SEVERAL_LINES
        else printable(value if isinstance(value, str) else repr(value))
        for name, value in event.items()
    }


def _strip(logger: Any, name: str, event: Any) -> Any:
    return structlog.stdlib.ProcessorFormatter.remove_processors_meta(logger, name, event)
