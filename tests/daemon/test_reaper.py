"""Orphans of this process, which becomes a subreaper."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vdpa_agent.daemon.child import Child, spawn
from vdpa_agent.daemon.reaper import reaping

pytestmark = pytest.mark.anyio

_ORPHANS = """
import os, sys
read_end, write_end = os.pipe()
if os.fork() == 0:
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
    os._exit(0)
os.wait()
open(sys.argv[2], "w").close()
os.read(0, 1) if len(sys.argv) > 3 else None
os.close(write_end)
"""
"""Leaves so many orphans, writes a file, and has them all end at once."""


def _spawn(*argv: str) -> Child:
    with open(os.devnull, "wb") as null:  # noqa: PTH123
        return spawn(argv, output=null.fileno(), control=null.fileno())


def _children() -> set[int]:
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def _zombies(pids: set[int]) -> set[int]:
    return {pid for pid in pids if " Z " in Path(f"/proc/{pid}/stat").read_text()}


async def _until(condition: Callable[[], object], *, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_thousand_orphans_leave_no_zombie_within_two_seconds(tmp_path: Path) -> None:
    before = _children()
    async with reaping() as reaper:
        child = reaper.own(_spawn(sys.executable, "-c", _ORPHANS, "1000", str(tmp_path / "made")))
        async with asyncio.timeout(30):
            assert await child.exited == 0
        await _until(lambda: _children() <= before, timeout_s=5)  # 2 s where nothing else runs


async def test_the_end_of_a_child_is_never_taken_away_from_it() -> None:
    async with reaping() as reaper, asyncio.timeout(60):
        for begin in range(0, 256, 32):
            # Each leaves an orphan that ends with it.
            children = [reaper.own(_spawn("sh", "-c", f"(: &) ; exit {begin + number}")) for number in range(32)]
            assert [await child.exited for child in children] == list(range(begin, begin + 32))


async def test_the_reaper_tells_a_child_of_its_end_where_there_are_no_pidfds() -> None:
    async with reaping() as reaper, asyncio.timeout(10):
        child = reaper.own(_spawn("sh", "-c", "read line; exit 7"))
        assert child._pidfd is not None
        asyncio.get_running_loop().remove_reader(child._pidfd)
        assert await child.exited == 7


async def test_what_left_the_daemon_for_sessions_of_its_own_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    script = f"setsid sh -c 'setsid sleep 61 & echo $$ $! > {note}; exec sleep 62' & while :; do sleep 63; done"
    async with reaping() as reaper:
        child = reaper.own(_spawn("sh", "-c", script))
        await _until(lambda: note.exists() and len(note.read_text().split()) == 2)
        left = {int(pid) for pid in note.read_text().split()}
        os.kill(child.pid, signal.SIGKILL)
        await _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


async def test_orphans_of_a_living_daemon_and_those_of_others_are_left_alone(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    async with reaping() as reaper:
        living = reaper.own(_spawn("sh", "-c", f"(setsid sleep 64 & echo $! > {note}); exec sleep 65"))
        await _until(lambda: note.exists() and note.read_text())
        orphan = int(note.read_text())
        stranger = await asyncio.to_thread(_orphan_of_nobody)
        await _until(lambda: {orphan, stranger} <= _children())
        other = reaper.own(_spawn("true"))
        async with asyncio.timeout(10):
            await other.exited
        assert not reaper.end_leftovers()
        assert {orphan, stranger} <= _children()
        assert not _zombies({orphan, stranger})
        living.kill_group()
        await _until(lambda: not Path(f"/proc/{orphan}").exists())
        assert stranger in _children()
        os.kill(stranger, signal.SIGKILL)
        await _until(lambda: stranger not in _children())


def _orphan_of_nobody() -> int:
    """A process whose parent has ended, and which no child of ours started."""
    started = subprocess.run(["sh", "-c", "sleep 66 >&- 2>&- & echo $!"], capture_output=True, check=False)
    return int(started.stdout)
