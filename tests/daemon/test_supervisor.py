"""Supervision of a daemon with faults that the real one does not give on demand; tests/e2e has the real one."""

import signal
import time
from pathlib import Path

import pytest

from tests.processes import AgentProcess, running, write_atomically

FAKE = Path(__file__).parent / "fake_vdpad.py"


@pytest.fixture(params=["shared", "device"])
def isolation(request: pytest.FixtureRequest) -> str:
    """The option that has one daemon serve both devices, or each have its own."""
    return f"--isolation={request.param}"


def _agent(run_dir: Path, fault: str, *options: str) -> AgentProcess:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n0000:82:00.3\n")
    return AgentProcess(run_dir, ["--simulate", f"--vdpad={FAKE}", *options], {"FAKE_VDPAD": fault})


def test_a_refused_device_says_why_hurts_nobody_and_is_tried_again(run_dir: Path, isolation: str) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n0000:82:00.3\n")
    with running(run_dir, "--simulate", f"--vdpad={FAKE}", isolation, environment={"FAKE_VDPAD": "picky"}) as agent:
        refusal = agent.wait_logged("device_failed", device="0000:82:00.2")
        assert refusal["reason"] == "0000:82:00.2: no such VF: bind it to vfio-pci"
        assert 0.8 <= refusal["retry_in_s"] <= 1.2
        agent.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))
        agent.wait_answer("0000:82:00.3", str(run_dir / "vhost" / "vdpa-1"))
        assert len(agent.log.named("daemon_started")) == (1 if isolation.endswith("shared") else 2)


def test_a_daemon_that_neither_shutdown_nor_sigterm_ends_is_killed_after_the_grace(
    run_dir: Path, isolation: str
) -> None:
    agent = _agent(run_dir, "deaf", isolation, "--stop-grace=1")
    try:
        agent.wait_logged("device_ready", count=2)
        pid = agent.daemon_pid()
        began = time.monotonic()
        assert agent.stop() == 1
        assert time.monotonic() - began >= 1
        assert not Path(f"/proc/{pid}").exists()
        assert agent.log.named("daemon_killed")[0]["reason"] == "it ended neither when asked nor by SIGTERM"
    finally:
        agent.kill()


def test_stopping_while_the_daemon_has_not_answered_yet(run_dir: Path, isolation: str) -> None:
    agent = _agent(run_dir, "mute", isolation, "--stop-grace=1")
    try:
        agent.wait_logged("daemon_started")
        pid = agent.daemon_pid()
        assert agent.ask("0000:82:00.2") == ""
        assert agent.stop() == 0
        assert not Path(f"/proc/{pid}").exists()
    finally:
        agent.kill()


def test_a_second_sigterm_waits_for_nothing_and_leaves_no_orphan(run_dir: Path, isolation: str) -> None:
    agent = _agent(run_dir, "deaf", isolation, "--stop-grace=60")
    try:
        agent.wait_logged("device_ready", count=2)
        pid = agent.daemon_pid()
        agent.process.send_signal(signal.SIGTERM)
        agent.wait_logged("agent_stopping")
        assert agent.ask("0000:82:00.2") == ""
        assert agent.stop() == 1  # long before the grace is over
        assert not Path(f"/proc/{pid}").exists()
    finally:
        agent.kill()


def test_a_daemon_with_grandchildren_is_gone_after_the_grace(run_dir: Path, isolation: str) -> None:
    agent = _agent(run_dir, "deaf,parent", isolation, "--stop-grace=1")
    try:
        agent.wait_logged("device_ready", count=2)
        pid = agent.daemon_pid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 3
        assert agent.stop() == 1
        for child in (str(pid), *children):
            assert not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text()
    finally:
        agent.kill()
