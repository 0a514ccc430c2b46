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

PIECE_BYTES = 256 * 1024
"""asyncio reads no more of a pipe at once."""

Logs = list[structlog.typing.EventDict]


def _pumped(*pieces: bytes) -> tuple[LogPump, Logs]:
    pump = LogPump(Dropped(), "vdpad")
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
    pump = LogPump(Dropped(), "vdpad")
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
    began = time.monotonic()
    with capture_logs() as logs:
        async with _printing("while True: print('info: x' * 10)"):
            await _until(lambda: sum(log["event"] == "daemon_output_dropped" for log in logs) == 2)
            assert len(_lines(list(logs))) <= 1000 + 200 * (time.monotonic() - began)


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
async def test_200_mb_as_fast_as_can_be_leave_the_loop_to_others(write: str) -> None:
    program = (
        f"import os\nb = {write}\nfor _ in range(200_000_000 // len(b) + 1): os.write(1, b)\nos.write(1, b'\\nend')"
    )
    turns = 0
    with capture_logs() as logs:
        async with _printing(program) as (pump, process):
            while process.poll() is None:
                await asyncio.sleep(0)
                turns += 1
            await pump.finish(5)
    assert pump.last_lines[-1] == "end"
    assert turns > 200_000_000 / PIECE_BYTES  # others had their turn after each piece that was read
    assert len(logs) < 100_000  # what is dropped costs no event


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
        assert time.monotonic() - began >= 0.15
        assert pump.last_lines == ["last"]


async def test_events_carry_the_name_of_the_program() -> None:
    pump = LogPump(Dropped(), "my-daemon")
    with capture_logs() as logs:
        pump.data_received(b"x" * 5000 + b"\n" + b"0000:82:00.2: again\n" * 9)
        pump.connection_lost(None)
    assert {log["event"] for log in logs} == {"daemon_output", "daemon_output_repeated", "daemon_output_dropped"}
    assert {log["source"] for log in logs} == {"my-daemon"}


def _repeated(logs: Logs) -> list[tuple[str, str, int]]:
    return [(log["log_level"], log["line"], log["lines"]) for log in logs if log["event"] == "daemon_output_repeated"]


@pytest.mark.parametrize("subject", ["0000:82:00.2", "VHOST_CONFIG: (/run/vhost/vdpa-0)"])
async def test_lines_of_one_device_that_differ_in_numbers_alone_are_counted_after_the_first_few(subject: str) -> None:
    lines = [f"warning: {subject}: read failed: {number} at 0x{number:x}\n".encode() for number in range(100)]
    pump, logs = _pumped(*lines)
    assert len(_lines(logs)) == 5
    assert _repeated(logs) == [("warning", f"{subject}: read failed: 99 at 0x63", 95)]
    assert pump.dropped == Dropped()
    assert [log.get("device") for log in logs] == [subject if subject.startswith("0000") else None] * 6


async def test_lines_of_other_devices_forms_and_levels_and_those_of_none_are_logged() -> None:
    lines = [b"info: progress %d" % number for number in range(20)]
    lines += [b"info: 0000:82:00.%d: up" % (number % 8) for number in range(40)]
    lines += [b"%s: 0000:82:00.2: %s" % (level, word) for level in (b"error", b"info") for word in (b"a", b"b")] * 5
    _, logs = _pumped(b"\n".join(lines))
    assert len(_lines(logs)) == 20 + 40 + 20
    assert _repeated(logs) == []


async def test_repetitions_are_reported_while_they_go_on() -> None:
    with capture_logs() as logs:
        async with _printing("import time\nwhile True: print('0000:82:00.2: odd', flush=True); time.sleep(0.001)"):
            await _until(lambda: len(_repeated(logs)) == 2)
            assert len(_lines(logs)) <= 5 * 3


async def test_the_memory_of_forms_is_bounded() -> None:
    lines = b"".join(b"0000:82:00.2: %s\n" % bytes([97 + n // 676, 97 + n // 26 % 26, 97 + n % 26]) for n in range(999))
    pump, _ = _pumped()
    with capture_logs() as logs:
        pump.data_received(lines)
        assert len(pump._forms) == 256
        assert len(_lines(logs)) == 999
        pump.connection_lost(None)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (b"", ""),
        (b"info: a\nwarning: b\n", "b"),
        (b"info: a\nlast words", "last words"),
        (b"error: first\ninfo: a\nerror: 0000:82:00.2: newest\ninfo: b\n", "0000:82:00.2: newest"),
        (b"EAL: FATAL: Cannot init memory\nEAL: Cannot init memory\n", "EAL: FATAL: Cannot init memory"),
        (b"error: a\nEAL: FATAL: b\nno error: c\n", "EAL: FATAL: b"),
        (b"info: an error: a\ninfo: b\n", "b"),
        (b"error: \x1b[31m\xff" + b"x" * 9999 + b"\n", "\\x1b[31m\\xff" + "x" * 244),
        (b"error: why\n" + b"info: a\n" * 100_000, "why"),
        (b"info: a\n" * 100_000 + b"error: why\n", "why"),
    ],
    ids=["silence", "last", "unended", "error", "fatal", "newest", "none", "odd", "early", "dropped"],
)
async def test_what_the_daemon_said_of_its_end(output: bytes, said: str) -> None:
    pump, _ = _pumped(output)
    assert pump.last_error == said
    in_pieces, _ = _pumped(*(output[begin : begin + 7] for begin in range(0, min(len(output), 99), 7)))
    assert len(output) > 99 or in_pieces.last_error == said
