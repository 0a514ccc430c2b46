"""What the composition root does by itself: hearing that it should stop."""

import ast
import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import running
from vdpa_agent.agent import stop_signals
from vdpa_agent.daemon.reaper import reaping


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
            async with asyncio.timeout(5):
                while not heard:
                    await asyncio.sleep(0.005)
    assert heard == [signal.SIGTERM]


def test_a_sigterm_in_the_middle_of_the_start_ends_the_agent_in_order(run_dir: Path) -> None:
    python = (sys.executable, "-X", "importtime", "-m")
    argv = [*python, "vdpa_agent", "run", "--example-data", f"--listen={run_dir / 's'}"]
    for imported in ("asyncio", "structlog", "grpclib", "vdpa_agent.agent"):
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            next(line for line in process.stderr if line.rstrip().endswith(f" {imported}"))
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
        assert process.returncode == 0, imported
        assert not (run_dir / "s").exists()


def test_a_hang_up_without_a_terminal_is_a_line_in_the_log(run_dir: Path) -> None:
    with running(run_dir, "--example-data", under=("setsid",)) as agent:
        for _ in range(2):
            agent.process.send_signal(signal.SIGHUP)
        agent.wait_logged("hangup_ignored", count=2)
        assert agent.ask("0000:82:00.2")


def test_a_hang_up_while_the_agent_starts_does_not_end_it(run_dir: Path) -> None:
    python = ("setsid", sys.executable, "-X", "importtime", "-m")
    argv = [*python, "vdpa_agent", "run", "--example-data", f"--listen={run_dir / 's'}", "--log-format=json"]
    for imported in ("asyncio", "structlog", "grpclib", "vdpa_agent.agent"):
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            next(line for line in process.stderr if line.rstrip().endswith(f" {imported}"))
            process.send_signal(signal.SIGHUP)
            assert any('"listening"' in line for line in process.stderr), imported
            process.terminate()
            process.stderr.read()
        assert process.returncode == 0, imported


@pytest.mark.parametrize("nohup", [False, True])
def test_the_end_of_its_terminal_ends_the_agent_in_order(run_dir: Path, *, nohup: bool) -> None:
    main, terminal = os.openpty()
    under = ("setsid", "--ctty", *(("env", "--ignore-signal=HUP") if nohup else ()))
    argv = [*under, sys.executable, "-m", "vdpa_agent", "run", "--example-data", "--log-format=json"]
    with subprocess.Popen(
        [*argv, f"--listen={run_dir / 's'}"], stdin=terminal, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(terminal)
        assert process.stderr is not None
        assert any('"listening"' in line for line in process.stderr)
        os.close(main)
        if nohup:
            process.terminate()
        said = process.stderr.read()
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
