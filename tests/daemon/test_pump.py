"""The daemon's output as log events."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import structlog
from structlog.testing import capture_logs

from vdpa_agent.daemon.pump import Dropped, LogPump

pytestmark = pytest.mark.anyio

Logs = list[structlog.typing.EventDict]


def _pumped(*pieces: bytes) -> tuple[LogPump, Logs]:
    pump = LogPump(Dropped())
    with capture_logs() as logs:
        for piece in pieces:
            pump.data_received(piece)
        pump.connection_lost(None)
    return pump, list(logs)


def _lines(logs: Logs) -> list[str]:
    return [log["line"] for log in logs if log["event"] == "daemon_output"]


@asynccontextmanager
async def _printing(program: str) -> AsyncIterator[tuple[LogPump, "subprocess.Popen[bytes]"]]:
    """A Python program whose output is pumped."""
    pump = LogPump(Dropped())
    read_end, write_end = os.pipe()
    await asyncio.get_running_loop().connect_read_pipe(lambda: pump, os.fdopen(read_end, "rb", 0))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=write_end, stdin=subprocess.PIPE)
    os.close(write_end)
    try:
        async with asyncio.timeout(30):
            yield pump, process
    finally:
        process.kill()
        process.communicate()
        await pump.finish(5)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_a_line_keeps_its_level_and_names_its_device() -> None:
    _, logs = _pumped(b"warning: 0000:82:00.2: queue 1 is broken\nEAL: plain\nEAL: FATAL: no memory\n")
    assert logs == [
        {
            "event": "daemon_output",
            "log_level": "warning",
            "source": "vdpad",
            "line": "0000:82:00.2: queue 1 is broken",
            "device": "0000:82:00.2",
        },
        {"event": "daemon_output", "log_level": "info", "source": "vdpad", "line": "EAL: plain"},
        {"event": "daemon_output", "log_level": "error", "source": "vdpad", "line": "EAL: FATAL: no memory"},
    ]


async def test_a_line_may_come_in_pieces_and_the_last_one_without_its_end() -> None:
    _, logs = _pumped(b"in", b"fo: a", b"b\r\n\nerror: c")
    assert [(log["log_level"], log["line"]) for log in logs] == [("info", "ab"), ("error", "c")]


async def test_a_line_without_end_is_cut_counted_and_told() -> None:
    _, logs = _pumped(*[b"x" * 1000] * 1000, b"\nnext\n")
    assert [len(line) for line in _lines(logs)] == [4096, 4]
    assert logs[-1] == {
        "event": "daemon_output_dropped",
        "log_level": "warning",
        "source": "vdpad",
        "lines": 0,
        "bytes": 1_000_000 - 4096,
    }


async def test_bytes_that_are_no_text_and_terminal_escapes_are_shown() -> None:
    _, logs = _pumped(b"a\0b\xff\x1b[31mc\xc2\x9b0md\n")
    assert _lines(logs) == ["a\\x00b\\xff\\x1b[31mc\\x9b0md"]


async def test_the_last_lines_are_kept() -> None:
    pump, _ = _pumped(b"".join(b"line %d\n" % number for number in range(100)))
    assert pump.last_lines == [f"line {number}" for number in range(80, 100)]


async def test_what_comes_too_fast_is_dropped_but_for_what_is_severe_and_the_last_lines() -> None:
    lines = [b"info: %d" % number for number in range(100_000)]
    lines[50_000] = b"error: 0000:82:00.2: broken"
    lines[70_000] = b"warning: odd"
    pump, logs = _pumped(b"\n".join(lines) + b"\n")
    assert _lines(logs) == [*(str(number) for number in range(1000)), "0000:82:00.2: broken", "odd"]
    assert pump.dropped.lines == 100_000 - 1002
    assert pump.dropped.size_bytes == sum(map(len, lines[1000:])) - len(lines[50_000]) - len(lines[70_000])
    told = [log for log in logs if log["event"] == "daemon_output_dropped"]
    assert [(log["lines"], log["bytes"]) for log in told] == [(pump.dropped.lines, pump.dropped.size_bytes)]
    assert pump.last_lines == [f"info: {number}" for number in range(99_980, 100_000)]


async def test_severe_lines_alone_are_bounded_too() -> None:
    pump, logs = _pumped(b"error: again\n" * 100_000)
    assert len(_lines(logs)) == 2000
    assert pump.dropped.lines == 100_000 - len(_lines(logs))


async def test_drops_are_told_while_the_output_goes_on() -> None:
    with capture_logs() as logs:
        async with _printing("while True: print('info: x' * 10)"):
            await _until(lambda: sum(log["event"] == "daemon_output_dropped" for log in logs) == 2)
            assert len(_lines(list(logs))) < 1000 + 200 * 3


@pytest.mark.parametrize(
    "write",
    [
        "b'info: a line of some words, again and again\\n' * 1500",
        "b'error: a line of some words, again and again\\n' * 1500",
        "b'\\n' * 65536",
        "b'x' * 65536",
        "b'\\0\\xff\\n' * 20000",
    ],
    ids=["lines", "errors", "blank", "endless", "binary"],
)
async def test_200_mb_as_fast_as_can_be_do_not_stall_the_loop(write: str) -> None:
    program = (
        f"import os\nb = {write}\nfor _ in range(200_000_000 // len(b) + 1): os.write(1, b)\nos.write(1, b'\\nend')"
    )
    used = time.process_time()
    stall = 0.0
    with capture_logs():
        async with _printing(program) as (pump, process):
            while process.poll() is None:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                stall = max(stall, time.monotonic() - before)
            await pump.finish(5)
    assert pump.last_lines[-1] == "end"
    assert time.process_time() - used < 5
    assert stall < 0.5


async def test_what_was_in_the_pipe_when_the_process_was_killed_is_read() -> None:
    program = "import os\nos.write(1, b''.join(b'line %d\\n' % n for n in range(5000)))\nos.kill(os.getpid(), 9)"
    with capture_logs():
        async with _printing(program) as (pump, process):
            assert process.wait() == -9
            await pump.finish(5)
            assert pump.last_lines == [f"line {number}" for number in range(4980, 5000)]


async def test_who_else_holds_the_pipe_is_not_waited_for_long() -> None:
    # The grandchild ends when its standard input, which the test holds, is closed.
    program = "import subprocess, os\nsubprocess.Popen(['cat'])\nprint('last', flush=True)\nos._exit(0)"
    async with _printing(program) as (pump, process):
        process.wait()
        began = time.monotonic()
        await pump.finish(0.2)
        assert 0.15 < time.monotonic() - began < 5
        assert pump.last_lines == ["last"]
