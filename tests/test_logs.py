"""Log lines that nobody waits for: real pipes that are full, or closed, or read late."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PATIENCE_S, ROOT, eventually
from vdpa_agent.logs import LogWriter

_PROGRAM = """
import structlog, sys, time, logging
from vdpa_agent.config import LogConfig, LogFormat
from vdpa_agent.logs import set_up_logs
log = structlog.get_logger()
with set_up_logs(LogConfig()):
{body}
print("last words", file=sys.stderr)
print("ended")
"""


def _program(body: str) -> list[str]:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return [sys.executable, "-c", _PROGRAM.format(body=indented)]


def _start(body: str, stderr: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        _program(body), stdout=subprocess.PIPE, stdin=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT
    )


def _events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_all_lines_come_in_order_and_before_what_is_printed_last() -> None:
    body = "for n in range(20_000): log.info('numbered', n=n)\nlogging.getLogger('lib').warning('hello')"
    process = _start(body, subprocess.PIPE)
    _, errors = process.communicate(timeout=PATIENCE_S)
    *lines, last = errors.splitlines()
    events = _events(lines)
    dropped = sum(event["lines"] for event in events if event["event"] == "log_lines_dropped")
    numbers = [event["n"] for event in events if event["event"] == "numbered"]
    assert numbers == sorted(numbers)
    assert len(numbers) + dropped == 20_000
    assert events[-1]["line"] == "hello" or dropped
    assert last == "last words"


def test_what_nobody_can_catch_is_logged_like_all_else() -> None:
    body = """
import _thread, threading
class Odd:
    def __del__(self): raise ValueError("in a finalizer")
Odd()
thread = threading.Thread(target=lambda: 1 / 0, name="odd")
thread.start(); thread.join()
told, hook = threading.Event(), sys.unraisablehook
def ignored(what): hook(what); told.set()
sys.unraisablehook = ignored
def out_of_memory(): raise MemoryError
_thread.start_new_thread(out_of_memory, ())
assert told.wait(60)
"""
    process = _start(body.strip(), subprocess.PIPE)
    _, errors = process.communicate(timeout=PATIENCE_S)
    *lines, last = errors.splitlines()
    assert last == "last words"
    seen = {event["line"]: event for event in _events(lines)}
    assert {event["event"] for event in seen.values()} == {"library_output"}
    assert set(seen) == {"exception ignored", "exception in thread odd", "Exception ignored in thread started by"}
    assert "in a finalizer" in seen["exception ignored"]["exception"]
    assert "ZeroDivisionError" in seen["exception in thread odd"]["exception"]


def test_a_blocked_reader_stops_nobody_and_is_told_what_it_missed() -> None:
    read_end, write_end = os.pipe()
    body = "for n in range(50_000): log.info('numbered', n=n)\nprint('logged', flush=True)\nsys.stdin.read()"
    process = _start(body, write_end)
    os.close(write_end)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "logged\n"
    with os.fdopen(read_end) as pipe:
        process.stdin.close()
        lines = pipe.read().splitlines()
    assert process.wait(10) == 0
    process.stdout.close()
    assert lines.pop() == "last words"
    events = _events(lines)
    assert events.pop()["event"] == "log_lines_dropped" or events[-1]["event"] == "log_lines_dropped"
    told = sum(event["lines"] for event in _events(lines) if event["event"] == "log_lines_dropped")
    numbers = [event["n"] for event in events if event["event"] == "numbered"]
    assert len(numbers) + told == 50_000
    assert numbers[:5000] == list(range(5000))
    assert sum(map(len, lines)) < 1_400_000


def test_a_reader_that_never_reads_delays_the_end_by_a_second_and_not_for_ever() -> None:
    read_end, write_end = os.pipe()
    body = "for n in range(50_000): log.info('numbered', n=n)\nprint(time.monotonic(), flush=True)"
    process = _start(body, write_end)
    os.close(write_end)
    output, _ = process.communicate(timeout=PATIENCE_S)  # nobody reads: it ends by itself
    logged, last = output.split()
    assert last == "ended"
    assert process.returncode == 0
    assert time.monotonic() - float(logged) >= 1
    os.close(read_end)


def test_a_reader_that_went_away_stops_nobody() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = _start("for n in range(50_000): log.info('numbered', n=n)", write_end)
    os.close(write_end)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == "ended\n" or process.returncode == 1  # what is printed last may fail, not the logging


def test_an_agent_started_without_standard_descriptors_opens_no_socket_in_their_place(tmp_path: Path) -> None:
    body = "import socket\nnote = socket.socket().fileno()\nlog.info('heard')\nopen(sys.argv[1], 'w').write(str(note))"
    note = tmp_path / "note"
    subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *_program(body), str(note)],
        check=False,
        timeout=PATIENCE_S,
        cwd=ROOT,
    )
    assert int(note.read_text()) > 2


def test_the_writer_is_right_again_when_it_is_read_again() -> None:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    told: list[int] = []
    writer = LogWriter(write_end, told.append)
    for number in range(100_000):  # far more than the pipe takes, and nobody reads: it does not wait
        writer.write(f"{number:099d}\n")
    assert not writer.flush(0.05)
    content = b""
    os.set_blocking(read_end, False)
    while not writer.flush(0.001):
        with suppress(BlockingIOError):
            content += os.read(read_end, 65536)
    with suppress(BlockingIOError):
        content += os.read(read_end, 65536)
    os.set_blocking(read_end, True)
    lines = content.splitlines()
    assert [int(line) for line in lines] == list(range(len(lines)))
    assert 1_000_000 <= len(content) <= 1024 * 1024
    assert sum(told) == 100_000 - len(lines)
    writer.write("\ud800 is no text\n")
    assert eventually("the line", lambda: os.read(read_end, 100)) == b"\\ud800 is no text\n"
    assert writer.flush()


_HOSTILE = """
class Odd:
    def __repr__(self): return bad
bad = 'x\\nforged \\x1b[2J\\x1b]0;t\\x07 \\u202e \\x85 \\u2028\\u2029 \\x9b31m \\x7f \\ud800'
log.warning('odd', text=bad, listed=[bad], odd=Odd(), error=ValueError(bad), path=Path(bad), **{bad: 1})
log.warning(bad)
logging.getLogger(bad).warning('said %s', bad)
try:
    raise ValueError(bad)
except ValueError:
    log.exception('broken')
    logging.getLogger('lib').exception(bad, stack_info=True)
"""


@pytest.mark.parametrize("how", ["text", "json"])
def test_no_text_moves_a_cursor_or_begins_a_line(how: str) -> None:
    body = f"from pathlib import Path\n{_HOSTILE}"
    program = [word.replace("LogConfig()", f"LogConfig(format=LogFormat('{how}'))") for word in _program(body)]
    output = subprocess.run(program, capture_output=True, check=True, cwd=ROOT).stderr.decode()
    *lines, last = output.splitlines(keepends=True)
    assert last == "last words\n"
    for line in lines:
        assert line.endswith("\n")
        assert line[:-1].isprintable(), line
    assert not [line for line in lines if line.startswith("forged")]
    if how == "json":
        bad = "x\nforged \x1b[2J\x1b]0;t\x07 \u202e \x85 \u2028\u2029 \x9b31m \x7f \ud800"
        odd, bare, library, *broken = _events(lines)
        assert (odd["text"], odd["listed"], bare["event"], library["source"]) == (bad, [bad], bad, bad)
        assert all(bad in event["exception"] for event in broken)
    else:
        assert sum(line[:1].isdigit() for line in lines) == 5
        assert sum(line.startswith("  Traceback") for line in lines) == 2


def test_colours_are_all_that_a_terminal_gets() -> None:
    main, terminal = os.openpty()
    process = _start("log.warning('odd', text='x\\x1b[2J\\x1b]0;t\\x07\\x9b')", terminal)
    os.close(terminal)
    assert process.communicate(timeout=PATIENCE_S)[0] == "ended\n"
    said = os.read(main, 65536).decode()
    os.close(main)
    assert r"x\x1b[2J\x1b]0;t\x07\x9b" in said
    plain = re.sub("\x1b\\[\\d+m", "", said)
    assert plain != said
    assert plain.replace("\r\n", "").isprintable()
