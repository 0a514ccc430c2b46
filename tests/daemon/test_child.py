"""Real child processes."""

import asyncio
import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S
from vdpa_agent.daemon.child import Child, describe_exit, refuse_failed, spawn
from vdpa_agent.daemon.launch import NOT_LAUNCHED
from vdpa_agent.errors import DaemonLost, DaemonUnusable

pytestmark = pytest.mark.anyio


def _spawn(*argv: str) -> Child:
    with open(os.devnull, "wb") as null:  # noqa: PTH123
        return spawn(argv, output=null.fileno(), control=null.fileno())


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for its parent, it runs no more.
    return " Z " not in Path(f"/proc/{pid}/stat").read_text()


async def test_every_exit_code_and_every_deadly_signal_is_told_apart() -> None:
    ends = [f"exit {code}" for code in range(256)]
    deadly = [number for number in range(1, 65) if number not in {17, 18, 19, 20, 21, 22, 23, 28, 32, 33}]
    ends += [f"ulimit -c 0; kill -{number} $$" for number in deadly]
    seen = []
    # A shell has what it starts in the background ignore SIGINT and SIGQUIT, such as `make test &`.
    async with asyncio.timeout(60):
        for begin in range(0, len(ends), 32):
            children = [_spawn("env", "--default-signal", "sh", "-c", end) for end in ends[begin : begin + 32]]
            seen += [describe_exit(await child.exited) for child in children]
    assert seen[:256] == [f"exit code {code}" for code in range(256)]
    assert len(set(seen)) == len(ends)
    assert {"killed by SIGSEGV", "killed by SIGKILL", "killed by signal 35"} <= set(seen)


async def test_a_core_dump_is_told() -> None:
    assert describe_exit(-signal.SIGSEGV, core_dumped=True) == "killed by SIGSEGV, core dumped"
    child = _spawn("sh", "-c", "ulimit -c 0; kill -SEGV $$")
    async with asyncio.timeout(PATIENCE_S):
        assert (await child.exited, child.core_dumped) == (-signal.SIGSEGV, False)


async def test_who_stops_waiting_for_the_end_does_not_keep_it_from_being_taken() -> None:
    child = _spawn("sleep", "60")
    child.exited.cancel()
    child.kill_group()
    async with asyncio.timeout(PATIENCE_S):
        while not child.reaped:
            await asyncio.sleep(0.01)
    assert not Path(f"/proc/{child.pid}").exists()


async def test_death_by_signal() -> None:
    child = _spawn("sleep", "60")
    child.send_signal(signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        assert describe_exit(await child.exited) == "killed by SIGKILL"
    child.send_signal(signal.SIGKILL)
    child.kill_group()


async def test_what_a_process_leaves_behind_in_its_group_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = _spawn("sh", "-c", f"sleep 60 & echo $! > {note}; exit 0")
    async with asyncio.timeout(PATIENCE_S):
        await child.exited
        grandchild = int(note.read_text())
        while _exists(grandchild):
            await asyncio.sleep(0.01)


async def test_kill_group_ends_who_ignores_sigterm(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = _spawn("sh", "-c", f"trap '' TERM; sleep 60 & echo $! > {note}; wait")
    async with asyncio.timeout(PATIENCE_S):
        while not note.exists() or not note.read_text():
            await asyncio.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        child.kill_group()
        assert describe_exit(await child.exited) == "killed by SIGKILL"
        while _exists(int(note.read_text())):
            await asyncio.sleep(0.01)


async def test_a_program_that_is_not_there_or_not_one_can_never_start(tmp_path: Path) -> None:
    async def refuse(program: str) -> None:
        child = _spawn(program, "argument")
        async with asyncio.timeout(PATIENCE_S):
            number = await child.launched
            assert await child.exited == NOT_LAUNCHED
        refuse_failed(number, program, "see to --vdpad")

    for absent in ("no-such-vdpad", "/no/such/vdpad", "/dev/null/vdpad"):
        with pytest.raises(DaemonUnusable, match=f"{absent} is not an executable program; see to --vdpad"):
            await refuse(absent)
    garbage = tmp_path / "vdpad"
    garbage.write_bytes(b"\x7fELF nonsense")
    for closed in (str(garbage), str(tmp_path)):
        with pytest.raises(DaemonUnusable, match="cannot be executed: permission denied; see to --vdpad"):
            await refuse(closed)
    garbage.chmod(0o755)
    with pytest.raises(DaemonUnusable, match="is not a program of this machine; see to --vdpad"):
        await refuse(str(garbage))
    with pytest.raises(DaemonLost, match="cannot be started now: cannot allocate memory"):
        refuse_failed(errno.ENOMEM, "vdpad", "see to --vdpad")


async def test_a_child_inherits_nothing_of_its_launcher() -> None:
    """Only its standard streams and the control channel are open, and no signal is ignored or blocked."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as said:
        show = "ls -l /proc/self/fd; env; cat /proc/self/status"
        child = spawn(["env", "-u", "_", "sh", "-c", f"{show}; sleep 0"], output=write_end, control=write_end)
        os.close(write_end)
        async with asyncio.timeout(PATIENCE_S):
            assert (await child.launched, await child.exited) == (0, 0)
        text = said.read()
    links = [line.split(" -> ")[0].rsplit(" ", 1)[-1] for line in text.splitlines() if " -> " in line]
    assert set(links) - {"0", "1", "2"} <= {str(write_end), "3"}
    ignored = subprocess.run(["grep", "SigIgn", "/proc/self/status"], check=True, stdout=subprocess.PIPE, text=True)
    assert ignored.stdout in text
    assert ("LC_CTYPE=" in text) == ("LC_CTYPE" in os.environ)  # noqa: TID251 - what a child inherits


async def test_a_child_runs_on_its_cpus_from_the_start_and_its_parent_where_it_did() -> None:
    allowed = os.sched_getaffinity(0)
    with open(os.devnull, "wb") as null:  # noqa: PTH123
        for cpu in allowed:
            child = spawn(["sleep", "60"], output=null.fileno(), control=null.fileno(), cpus=frozenset({cpu}))
            assert await child.launched == 0
            assert os.sched_getaffinity(child.pid) == {cpu}
            assert os.sched_getaffinity(0) == allowed
            child.kill_group()
            await child.exited
        beyond = spawn(["true"], output=null.fileno(), control=null.fileno(), cpus=frozenset({max(allowed) + 1000}))
        assert await beyond.exited == 0
