"""What the limits of the process leave too little of, from its start: it works, or says in one line what it lacks."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import simulated
from tests.processes import PATIENCE_S, ROOT, AgentProcess, eventually, get_page, running, write_list
from vdpa_agent.errors import NoThread, Starved, starved

MIB: Final = 2**20
VF: Final = "0000:82:00.2"
REFUSAL: Final = "file too large"
REMEDY: Final = re.compile(r"vdpa-agent: [^\n]*; [^\n]*raise [^\n]*limit[^\n]*\n")
"""One line that names a limit."""


def _command(words: Sequence[str], kind: int, value: int) -> "subprocess.Popen[str]":
    """The agent's command with a limit from its first instruction on."""

    def limit() -> None:
        resource.setrlimit(kind, (value, value))

    return subprocess.Popen(
        [sys.executable, "-m", "vdpa_agent", *words],
        preexec_fn=limit,  # noqa: PLW1509 - what it calls takes no lock
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("mib", range(60, 240, 15))
def test_an_agent_with_little_memory_works_or_says_what_it_lacks(run_dir: Path, mib: int) -> None:
    listen = run_dir / "s"
    words = ("run", "--example-data", f"--listen={listen}", "--http-listen=127.0.0.1:0", "--log-format=json")
    with _command(words, resource.RLIMIT_AS, mib * MIB) as agent:
        while agent.poll() is None and not listen.exists():
            time.sleep(0.01)
        agent.terminate()
        _, said = agent.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in said
    last = [line for line in said.splitlines(keepends=True) if not line.startswith("{")]
    assert agent.returncode in {0, 1}
    # What it lacks may be found at its end too.
    assert agent.returncode == len(last)
    assert all(REMEDY.fullmatch(line) for line in last), last


@pytest.mark.parametrize("mib", [34, 40, 60])
@pytest.mark.parametrize("words", [("list",), ("status",), ("get", "82:00.2")])
def test_a_client_with_little_memory_asks_or_says_what_it_lacks(
    run_dir: Path, mib: int, words: tuple[str, ...]
) -> None:
    with _command([*words, f"--address={run_dir / 's'}"], resource.RLIMIT_AS, mib * MIB) as client:
        said, complaint = client.communicate(timeout=PATIENCE_S)
    assert said == ""
    assert complaint.count("\n") == 1
    if client.returncode != 5:
        assert (client.returncode, bool(REMEDY.fullmatch(complaint))) == (1, True), complaint


@pytest.mark.parametrize("words", [("list",), ("doctor",), ("health",), ("run", "--example-data")])
def test_without_open_files_for_an_event_loop_one_line_says_so(run_dir: Path, words: tuple[str, ...]) -> None:
    option = f"--listen={run_dir / 's'}" if words[0] == "run" else f"--address={run_dir / 's'}"
    with _command([*words, option], resource.RLIMIT_NOFILE, 5) as command:
        said, complaint = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, said) == (1, "")
    assert REMEDY.fullmatch(complaint), complaint
    assert "too many open files" in complaint.lower()


def test_an_agent_that_gets_no_further_thread_gives_no_page_and_ends_in_order(run_dir: Path) -> None:
    """As another user, since root may always start threads."""
    os.chown(run_dir, 65_531, 65_531)
    user = ("setpriv", "--reuid=65531", "--regid=65531", "--clear-groups")
    with running(run_dir, "--example-data", "--http-listen=127.0.0.1:0", under=user) as agent:
        address = agent.wait_logged("http_listening")["address"]
        subprocess.run([*user, "prlimit", f"--pid={agent.process.pid}", "--nproc=1:"], check=True)
        assert get_page(address, "/metrics") == (503, f"{NoThread()}\n")
        assert get_page(address, "/livez")[0] == 200
        _end(agent)
    assert not [line for line in agent.log.raw if not line.startswith("{")]


def _end(agent: AgentProcess) -> None:
    agent.process.send_signal(signal.SIGTERM)
    eventually("its end", lambda: agent.process.poll() is not None)
    assert agent.process.returncode == 0


@pytest.mark.parametrize("limits", [("--stack=131072:",), ("--stack=262144",), ("--memlock=0",)])
def test_a_daemon_under_small_limits_serves(run_dir: Path, limits: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", [VF])
    with running(run_dir, *simulated("native", "native"), under=("prlimit", *limits)) as agent:
        agent.wait_answer(VF, str(run_dir / "vhost" / "vdpa-0"))


def test_a_stack_that_is_too_small_for_the_daemon_is_named(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", [VF])
    with running(run_dir, *simulated("native", "native"), under=("prlimit", "--stack=163840:163840")) as agent:
        ended = agent.wait_logged("daemon_ended")
    assert ended["reason"] == "exit code 1: the limit of the stack is 160 KiB, DPDK needs 256: raise it (ulimit -s)"


def test_where_no_file_may_grow_devices_are_served_and_the_limit_is_named(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", [VF])
    with running(run_dir, *simulated("native", "native"), under=("prlimit", "--fsize=0")) as agent:
        agent.wait_answer(VF, str(run_dir / "vhost" / "vdpa-0"))
        unwritten = agent.wait_logged("mapping_not_written")
        names = agent.wait_logged("names_not_written")
        assert not agent.log.named("daemon_ended")
    assert "File too large: raise the limit of file size (ulimit -f)" in unwritten["reason"]
    assert names["reason"] == f"{REFUSAL}; raise the agent's limit of file size (ulimit -f)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "no memory is left; raise the limit of memory"),
        (ExceptionGroup("of tasks", [ExceptionGroup("of others", [MemoryError()])]), "no memory is left"),
        (TypeError("Couldn't build proto file into descriptor pool: out of memory"), "no memory is left"),
        (ImportError("libssl.so.3: failed to map segment from shared object"), "libssl.so.3: failed to map"),
        (SystemError("error return without exception set"), "error return without exception set; "),
        (OSError(12, "Cannot allocate memory"), "cannot allocate memory; raise the limit of memory"),
        (OSError(24, "Too many open files"), "too many open files; raise the agent's limit of open files (ulimit -n)"),
        (RuntimeError("can't start new thread"), str(NoThread())),
    ],
)
def test_what_python_says_of_a_lack_is_told_with_the_limit(error: Exception, words: str) -> None:
    lack = starved(error)
    assert isinstance(lack, Starved)
    assert str(lack).startswith(words)
    assert "; " in str(lack)


@pytest.mark.parametrize(
    "error", [ValueError("v"), ImportError("no module named x"), OSError(2, "x"), RuntimeError("x")]
)
def test_a_defect_is_no_lack(error: Exception) -> None:
    assert starved(error) is None
    assert starved(ExceptionGroup("g", [error])) is None
