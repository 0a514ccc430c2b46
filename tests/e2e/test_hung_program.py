"""The program of the daemon lies on a file system that does not answer."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest

from tests.hung import held, hung
from tests.processes import WITH_HTTP, AgentProcess, eventually, is_alive, running, write_list

DEVICE: Final = "0000:82:00.2"
FILE_SYSTEMS: Final = pytest.mark.parametrize("file_system", [hung, held])
PROGRAMS: Final = {
    "vdpad": ("--vdpad={}/vdpad", "--vdpad"),
    "of its own": ("--isolation=device --vdpad={}/vdpad", "--vdpad"),
    "command": ("--daemon-command={}/vdpad {{devices}}", "--daemon-command"),
}

FileSystem = Callable[[Path], AbstractContextManager[None]]


def _hangs(agent: AgentProcess, program: Path, option: str) -> str:
    reason = str(agent.wait_logged("daemon_not_started")["reason"])
    assert reason.startswith(f"the program {program} of {option} does not start: its file system does not answer")
    return reason


def _status(agent: AgentProcess) -> str:
    command = [sys.executable, "-m", "vdpa_agent", "status", f"--address={agent.listen}"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True).stdout


@FILE_SYSTEMS
@pytest.mark.parametrize(("options", "option"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_neither_answers_nor_probes_nor_the_end_wait_for_it(
    run_dir: Path, file_system: FileSystem, options: str, option: str
) -> None:
    write_list(run_dir / "pciList.dat", [DEVICE])
    hanging = run_dir / "hanging"
    hanging.mkdir()
    words = options.format(hanging).split() if "command" not in options else [options.format(hanging)]
    simulate = [] if "command" in options else ["--simulate"]
    with file_system(hanging):
        agent = AgentProcess(run_dir, [*simulate, *words, WITH_HTTP], {})
        try:
            agent.wait_logged("listening")
            assert agent.ask(DEVICE) == ""  # while it hangs
            assert agent.get("/livez")[0] == 200
            reason = _hangs(agent, hanging / "vdpad", option)
            assert agent.get("/livez")[0] == 200
            assert reason in _status(agent)
            agent.wait_logged("daemon_restart_waits", count=2)
            assert len(_children(agent.process.pid)) <= 1
            began = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - began < 8
        finally:
            agent.kill()


@FILE_SYSTEMS
def test_an_agent_that_is_asked_to_end_while_the_program_hangs_leaves_none(
    run_dir: Path, file_system: FileSystem
) -> None:
    write_list(run_dir / "pciList.dat", [DEVICE])
    hanging = run_dir / "hanging"
    hanging.mkdir()
    with file_system(hanging):
        agent = AgentProcess(run_dir, ["--simulate", f"--vdpad={hanging}/vdpad"], {})
        try:
            (child,) = eventually("the launch", lambda: _children(agent.process.pid))
            eventually("its hanging", lambda: "launch.py" in Path(f"/proc/{child}/cmdline").read_text())
            assert agent.stop() == 0
        finally:
            agent.kill()
        assert file_system is held or not is_alive(child)
    eventually("its end", lambda: not is_alive(child))


def test_a_killed_agent_takes_along_what_hangs(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", [DEVICE])
    hanging = run_dir / "hanging"
    hanging.mkdir()
    with hung(hanging):
        agent = AgentProcess(run_dir, ["--simulate", f"--vdpad={hanging}/vdpad"], {})
        try:
            (child,) = eventually("the launch", lambda: _children(agent.process.pid))
            eventually("its hanging", lambda: "fuse" in Path(f"/proc/{child}/wchan").read_text() or _sleeps(child))
        finally:
            agent.kill()
        eventually("its end", lambda: not is_alive(child), timeout_s=20)  # before the file system fails


@FILE_SYSTEMS
def test_it_is_started_as_soon_as_its_file_system_answers(
    run_dir: Path, options: tuple[str, ...], file_system: FileSystem
) -> None:
    write_list(run_dir / "pciList.dat", [DEVICE])
    hanging = run_dir / "hanging"
    hanging.mkdir()
    vdpad = next(word.removeprefix("--vdpad=") for word in options if word.startswith("--vdpad="))
    (hanging / "vdpad").symlink_to(vdpad)
    with running(run_dir, *options, f"--vdpad={hanging}/vdpad") as agent:
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))
        with file_system(hanging):
            os.kill(agent.daemon_pid(), 9)
            _hangs(agent, hanging / "vdpad", "--vdpad")
            assert agent.ask(DEVICE) == ""
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))


def _children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def _sleeps(pid: int) -> bool:
    """Whether it waits in the kernel, after its start."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state in "SD" and "launch.py" in Path(f"/proc/{pid}/cmdline").read_text()
