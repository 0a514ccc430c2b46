"""The daemon's output as log events."""

import structlog
from structlog.testing import capture_logs

from vdpa_agent.daemon.pump import LogPump


def _pumped(*pieces: bytes) -> tuple[LogPump, list[structlog.typing.EventDict]]:
    pump = LogPump()
    with capture_logs() as logs:
        for piece in pieces:
            pump.data_received(piece)
        pump.connection_lost(None)
    return pump, list(logs)


def test_a_line_keeps_its_level_and_names_its_device() -> None:
    _, logs = _pumped(b"warning: 0000:82:00.2: queue 1 is broken\nEAL: plain\n")
    assert logs == [
        {
            "event": "daemon_output",
            "log_level": "warning",
            "source": "vdpad",
            "line": "0000:82:00.2: queue 1 is broken",
            "device": "0000:82:00.2",
        },
        {"event": "daemon_output", "log_level": "info", "source": "vdpad", "line": "EAL: plain"},
    ]


def test_a_line_may_come_in_pieces_and_the_last_one_without_its_end() -> None:
    _, logs = _pumped(b"in", b"fo: a", b"b\r\n\nerror: c")
    assert [(log["log_level"], log["line"]) for log in logs] == [("info", "ab"), ("error", "c")]


def test_a_line_without_end_is_cut_and_counted() -> None:
    pump, logs = _pumped(*[b"x" * 1000] * 1000, b"\nnext\n")
    assert [len(log["line"]) for log in logs] == [4096, 4]
    assert pump.truncated_bytes == 1_000_000 - 4096


def test_bytes_that_are_no_text_are_shown() -> None:
    _, logs = _pumped(b"a\0b\xff\x1b[31mc\n")
    assert logs[0]["line"] == "a\\x00b\\xff\\x1b[31mc"


def test_the_last_lines_are_kept() -> None:
    pump, _ = _pumped(b"".join(b"line %d\n" % number for number in range(100)))
    assert list(pump.last_lines) == [f"line {number}" for number in range(80, 100)]
