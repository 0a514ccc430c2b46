"""The agent as process 1 of a PID namespace, as in a container."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.processes import AgentProcess, eventually, write_atomically

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
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    agent = _ProcessOne(run_dir, ["--simulate", f"--vdpad={FAKE}"], {"FAKE_VDPAD": fault}, NAMESPACE)
    try:
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))
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


def test_a_stranger_that_came_into_the_container_is_left_alone_and_reaped(run_dir: Path) -> None:
    with _process_one(run_dir) as agent:
        enter = ("nsenter", f"--target={agent.pid()}", "--pid", "--", "sh", "-c", "sleep 67 >&- 2>&- & exit 0")
        assert os.spawnvp(os.P_WAIT, enter[0], enter) == 0
        (stranger,) = eventually("the stranger", lambda: _named(agent, b"sleep"))
        os.kill(stranger, signal.SIGKILL)
        eventually("its end", lambda: stranger not in agent.inside())
        assert agent.stop() == 0


def _named(agent: _ProcessOne, name: bytes) -> list[int]:
    return [pid for pid in agent.inside() if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name)]
