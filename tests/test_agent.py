"""What the composition root does by itself: hearing that it should stop."""

import ast
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.processes import PATIENCE_S, AgentProcess, running, write_list
from vdpa_agent.agent import stop_signals
from vdpa_agent.daemon.reaper import reaping

HANGUP_TAKEN: Final = ("env", "--default-signal=HUP")
"""The tests themselves may run under nohup, which has what it starts ignore SIGHUP."""


@contextmanager
def _started(argv: Sequence[str], stdin: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A process whose standard error is read, and which is gone at the end."""
    with subprocess.Popen(argv, stdin=stdin, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.anyio
async def test_a_sigterm_is_not_lost_among_more_sigchlds_than_the_loop_has_room_for() -> None:
    heard: list[signal.Signals] = []
    with stop_signals(heard.append):
        async with reaping():
            for _ in range(500):  # the socket by which signals wake the loop has room for 278 bytes
                if os.fork() == 0:
                    os._exit(0)
                time.sleep(0.0008)
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while not heard:
                    await asyncio.sleep(0.005)
    assert heard == [signal.SIGTERM]


def test_a_sigterm_in_the_middle_of_the_start_ends_the_agent_in_order(run_dir: Path) -> None:
    python = (sys.executable, "-X", "importtime", "-m")
    argv = [*python, "vdpa_agent", "run", "--example-data", f"--listen={run_dir / 's'}"]
    for imported in ("asyncio", "structlog", "grpclib", "vdpa_agent.agent"):
        with _started(argv) as process:
            assert process.stderr is not None
            next(line for line in process.stderr if line.rstrip().endswith(f" {imported}"))
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, imported
        assert not (run_dir / "s").exists()


def test_a_hang_up_without_a_terminal_is_a_line_in_the_log(run_dir: Path) -> None:
    with running(run_dir, "--example-data", under=("setsid", *HANGUP_TAKEN)) as agent:
        for count in (1, 2):
            agent.process.send_signal(signal.SIGHUP)
            agent.wait_logged("hangup_ignored", count=count)
        assert agent.ask("0000:82:00.2")


def test_a_hang_up_while_the_agent_starts_does_not_end_it(run_dir: Path) -> None:
    python = ("setsid", *HANGUP_TAKEN, sys.executable, "-X", "importtime", "-m")
    argv = [*python, "vdpa_agent", "run", "--example-data", f"--listen={run_dir / 's'}", "--log-format=json"]
    for imported in ("asyncio", "structlog", "grpclib", "vdpa_agent.agent"):
        with _started(argv) as process:
            assert process.stderr is not None
            next(line for line in process.stderr if line.rstrip().endswith(f" {imported}"))
            process.send_signal(signal.SIGHUP)
            assert any('"listening"' in line for line in process.stderr), imported
            process.terminate()
            process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, imported


@pytest.mark.parametrize("nohup", [False, True])
def test_the_end_of_its_terminal_ends_the_agent_in_order(run_dir: Path, *, nohup: bool) -> None:
    main, terminal = os.openpty()
    under = ("setsid", "--ctty", *(("env", "--ignore-signal=HUP") if nohup else HANGUP_TAKEN))
    argv = [*under, sys.executable, "-m", "vdpa_agent", "run", "--example-data", "--log-format=json"]
    with _started([*argv, f"--listen={run_dir / 's'}"], stdin=terminal) as process:
        os.close(terminal)
        assert process.stderr is not None
        assert any('"listening"' in line for line in process.stderr)
        os.close(main)
        if nohup:
            process.terminate()
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert f'"signal": "{"SIGTERM" if nohup else "SIGHUP"}"' in said
    assert "agent_stopped" in said
    assert not (run_dir / "s").exists()


def test_what_is_for_http_and_tracing_is_not_imported_unless_that_is_asked_for() -> None:
    program = "import sys, vdpa_agent.agent, vdpa_agent.cli; print({name.partition('.')[0] for name in sys.modules})"
    imported = ast.literal_eval(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout.decode()
    )
    assert "grpclib" in imported
    assert not imported & {"h11", "prometheus_client", "email", "opentelemetry", "requests"}


def test_an_error_that_ends_the_agent_is_one_line_and_its_exit_code(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", ["0000:82:00.2"])
    agent = AgentProcess(run_dir, ["--simulate", "--vdpad=/nonexistent"], {})
    try:
        assert agent.process.wait(PATIENCE_S) == 3
        agent.log.end()
        assert [event["line"] for event in agent.log.named("not_json")] == [
            "vdpa-agent: /nonexistent is not an executable program; install vdpad or name it with --vdpad\n"
        ]
    finally:
        agent.kill()
