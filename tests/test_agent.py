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


def test_what_is_for_http_and_tracing_is_not_imported_unless_that_is_asked_for() -> None:
    program = "import sys, vdpa_agent.agent, vdpa_agent.cli; print({name.partition('.')[0] for name in sys.modules})"
    imported = ast.literal_eval(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout.decode()
    )
    assert "grpclib" in imported
    assert not imported & {"h11", "prometheus_client", "email", "opentelemetry", "requests"}
