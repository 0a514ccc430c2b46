"""The agent as process 1 of a PID namespace, as in a container."""

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.processes import AgentProcess, eventually, is_alive, running, write_atomically

FAKE: Final = Path(__file__).parent.parent / "daemon" / "fake_vdpad.py"
DEVICE: Final = "0000:82:00.2"
NAMESPACE: Final = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class _ProcessOne(AgentProcess):
    """The agent in a PID namespace; it is seen from outside of it."""

    def pid(self) -> int:
        """The agent, as the child of unshare."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(eventually("process 1", children.read_text))

    def inside(self) -> dict[int, str]:
        """The processes of the namespace and their states, a letter of proc(5) each; empty once process 1 is gone."""
        try:
            namespace = (Path("/proc") / str(self.pid()) / "ns/pid").readlink()
        except OSError:
            return {}
        states = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "ns/pid").readlink() == namespace:
                    states[int(process.name)] = (process / "stat").read_text().rpartition(") ")[2][0]
            except OSError:
                continue
        return states

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks process 1 itself, as a container runtime does; unshare ends with its exit code."""
        os.kill(self.pid(), number)
        code = self.process.wait(20)
        self.log.end()
        return code


@contextmanager
def _process_one(run_dir: Path, fault: str = "") -> Iterator[_ProcessOne]:
    """A process 1 whose fake vdpad serves a device."""
    with _started(run_dir, "--simulate", f"--vdpad={FAKE}", fault=fault) as agent:
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))
        yield agent


@contextmanager
def _started(run_dir: Path, *arguments: str, fault: str = "") -> Iterator[_ProcessOne]:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    agent = _ProcessOne(run_dir, arguments, {"FAKE_VDPAD": fault}, NAMESPACE)
    try:
        agent.wait_logged("listening")
        status = Path(f"/proc/{agent.pid()}/status").read_text()
        assert status.partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"
        yield agent
    finally:
        agent.kill()


def test_a_thousand_orphans_of_a_living_daemon_are_reaped_by_process_one(run_dir: Path) -> None:
    with _process_one(run_dir, "orphans") as agent:
        eventually("all of them gone", lambda: len(agent.inside()) == 2)  # the agent and its daemon are left
        assert "Z" not in agent.inside().values()
        assert agent.stop() == 0


def test_a_killed_daemon_is_restarted_and_all_ends_with_sigterm(run_dir: Path) -> None:
    with _process_one(run_dir, "runaway") as agent:
        eventually("the runaways", lambda: len(agent.inside()) == 4)
        (daemon,) = (pid for pid in agent.inside() if b"--control-fd" in Path(f"/proc/{pid}/cmdline").read_bytes())
        before = agent.inside().keys() - {agent.pid()}
        os.kill(daemon, signal.SIGKILL)
        assert "SIGKILL" in str(agent.wait_logged("daemon_ended"))
        agent.wait_logged("daemon_started", count=2)
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))
        eventually("the end of what it left", lambda: not before & agent.inside().keys())
        assert agent.stop() == 0
        assert agent.log.events[-1]["event"] == "agent_stopped"


ESCAPE: Final = "env -i setsid sh -c 'sleep 68 & exec sleep 69' </dev/null >/dev/null 2>&1"
"""Leaves the daemon's session, environment and output, and has a child."""


@pytest.mark.parametrize("end", ["exit 1", "kill -SEGV $$"])
def test_what_a_command_left_in_another_session_and_environment_ends_with_it(run_dir: Path, end: str) -> None:
    go = run_dir / "go"
    program = f"{ESCAPE} & while [ ! -e {go} ]; do sleep 0.01; done; rm {go}; ulimit -c 0; {end}"
    with _started(run_dir, f"--daemon-command=sh -c {shlex.quote(program)}") as agent:
        before = eventually("the escaped", lambda: _escaped(agent))
        stranger = _stranger(agent)
        go.touch()
        agent.wait_logged("daemon_ended")
        eventually("their end", lambda: not before & agent.inside().keys())
        eventually("those of the next life", lambda: _escaped(agent) - before)
        assert stranger in agent.inside()
        assert agent.stop() == 0


def test_what_a_command_left_ends_with_an_agent_that_is_not_process_one(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    marker = run_dir / "marker"  # in the command line of what is left, so that it can be found
    program = f"env -i setsid tail -f {marker} </dev/null >/dev/null 2>&1 & exec sleep 1000"
    marker.touch()
    with running(run_dir, f"--daemon-command=sh -c {shlex.quote(program)}") as agent:
        left = eventually("the escaped", lambda: _tails(marker))
        assert agent.stop() == 0
    assert not any(map(is_alive, left))


def test_a_stranger_that_came_into_the_container_outlives_the_daemon_and_is_reaped(run_dir: Path) -> None:
    with _process_one(run_dir) as agent:
        stranger = _stranger(agent)
        (daemon,) = (pid for pid in agent.inside() if b"--control-fd" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(daemon, signal.SIGKILL)
        agent.wait_logged("device_ready", count=2)
        assert stranger in agent.inside()
        os.kill(stranger, signal.SIGKILL)
        eventually("its end", lambda: stranger not in agent.inside())
        assert agent.stop() == 0


def _stranger(agent: _ProcessOne) -> int:
    """An orphan of somebody who came into the namespace, as with kubectl exec."""
    enter = ("nsenter", f"--target={agent.pid()}", "--pid", "--", "sh", "-c", "sleep 67 >&- 2>&- & exit 0")
    assert os.spawnvp(os.P_WAIT, enter[0], enter) == 0
    (stranger,) = eventually("the stranger", lambda: _named(agent, b"sleep\x0067"))
    return stranger


def _escaped(agent: _ProcessOne) -> set[int]:
    """What ESCAPE left, once both are there."""
    found = {*_named(agent, b"sleep\x0068"), *_named(agent, b"sleep\x0069")}
    return found if len(found) >= 2 else set()


def _tails(marker: Path) -> list[int]:
    line = f"tail\0-f\0{marker}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes() == line:
                found.append(int(process.name))
    return found


def _named(agent: _ProcessOne, name: bytes) -> list[int]:
    found = []
    for pid in agent.inside():
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name):
                found.append(pid)
    return found
