"""What a daemon that was killed leaves on disk, whenever the agent ends after that."""

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.processes import AgentProcess, eventually, running, write_list


def _sockets(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.rglob("*") if path.is_socket() and path.name != "vdpa.sock")


def _pids(agent: AgentProcess) -> list[int]:
    return [event["pid"] for event in agent.log.named("daemon_started")]


def _kill(agent: AgentProcess) -> None:
    for pid in _pids(agent):
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("isolation", ["shared", "device"])
def test_the_sockets_of_a_killed_daemon_go_before_the_next_one_starts(
    run_dir: Path, options: tuple[str, ...], isolation: str
) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    (run_dir / "vhost").mkdir()
    with socket.socket(socket.AF_UNIX) as foreign:  # dead, and of no daemon of this agent
        foreign.bind(str(run_dir / "vhost" / "vdpa-foreign"))
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(run_dir / "vhost" / "other"))
        living.listen()
        # The pause before the next start is a second or more, since they die early.
        with running(run_dir, *options, f"--isolation={isolation}") as agent:
            agent.wait_logged("device_ready", count=len(FOUR))
            (run_dir / "vhost" / "vdpa-file").touch()
            _kill(agent)
            agent.wait_logged("daemon_restart_waits", count=1 if isolation == "shared" else len(FOUR))
            if len(agent.log.named("daemon_started")) <= len(FOUR):
                assert _sockets(run_dir) == ["other"]
            assert agent.stop() == 0
            assert _sockets(run_dir) == ["other"]
            assert (run_dir / "vhost" / "vdpa-file").exists()
            assert not agent.socket_list.exists()
            removed = agent.log.named("stale_socket_removed")
            assert {event["socket"] for event in removed} >= {str(run_dir / "vhost" / f"vdpa-{n}") for n in range(4)}


@pytest.mark.parametrize("isolation", ["shared", "device"])
def test_an_agent_that_ends_at_any_moment_after_a_kill_leaves_no_socket(
    run_dir: Path, options: tuple[str, ...], isolation: str
) -> None:
    moments = random.Random(isolation)
    write_list(run_dir / "pciList.dat", FOUR)
    for _ in range(6):
        agent = AgentProcess(run_dir, [*options, f"--isolation={isolation}"], {})
        try:
            agent.wait_logged("listening")
            if moments.random() < 0.5:
                agent.wait_logged("device_ready", count=len(FOUR))
            time.sleep(moments.random() * 0.3)
            _kill(agent)
            time.sleep(moments.choice([0, 0.02, 0.2, 1]))
            assert agent.stop() == 0
        finally:
            agent.kill()
        eventually("no socket", lambda: not _sockets(run_dir), timeout_s=1)
        assert not agent.socket_list.exists()
