"""Real child processes."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from vdpa_agent.daemon.child import Child, describe_exit, spawn
from vdpa_agent.errors import DaemonUnusable

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


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
async def test_exit_code(code: int) -> None:
    child = _spawn("sh", "-c", f"exit {code}")
    async with asyncio.timeout(10):
        assert describe_exit(await child.exited) == f"exit code {code}"


async def test_death_by_signal() -> None:
    child = _spawn("sleep", "60")
    child.send_signal(signal.SIGKILL)
    async with asyncio.timeout(10):
        assert describe_exit(await child.exited) == "killed by SIGKILL"
    child.send_signal(signal.SIGKILL)
    child.kill_group()


async def test_what_a_process_leaves_behind_in_its_group_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = _spawn("sh", "-c", f"sleep 60 & echo $! > {note}; exit 0")
    async with asyncio.timeout(10):
        await child.exited
        grandchild = int(note.read_text())
        while _exists(grandchild):
            await asyncio.sleep(0.01)


async def test_kill_group_ends_who_ignores_sigterm(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = _spawn("sh", "-c", f"trap '' TERM; sleep 60 & echo $! > {note}; wait")
    async with asyncio.timeout(10):
        while not note.exists() or not note.read_text():
            await asyncio.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        child.kill_group()
        assert describe_exit(await child.exited) == "killed by SIGKILL"
        while _exists(int(note.read_text())):
            await asyncio.sleep(0.01)


async def test_a_program_that_is_not_there_or_not_one_can_never_start(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnusable, match=r"no-such-vdpad is not an executable program; .* --vdpad"):
        _spawn("no-such-vdpad")
    garbage = tmp_path / "vdpad"
    garbage.write_bytes(b"\x7fELF nonsense")
    garbage.chmod(0o755)
    with pytest.raises(DaemonUnusable, match="is not a program of this machine"):
        _spawn(str(garbage))
