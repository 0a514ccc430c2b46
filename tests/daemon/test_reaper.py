"""Orphans of this process, which becomes a subreaper."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S, is_alive
from vdpa_agent.daemon.child import RLIMIT_LOCKS, Child, read_mark, spawn
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


async def _until(condition: Callable[[], object], *, timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_thousand_orphans_leave_no_zombie(tmp_path: Path) -> None:
    before = _children()
    async with reaping() as reaper:
        child = reaper.own(_spawn(sys.executable, "-c", _ORPHANS, "1000", str(tmp_path / "made")))
        async with asyncio.timeout(30):
            assert await child.exited == 0
        await _until(lambda: _children() <= before)


async def test_the_end_of_a_child_is_never_taken_away_from_it() -> None:
    async with reaping() as reaper, asyncio.timeout(60):
        for begin in range(0, 256, 32):
            # Each leaves an orphan that ends with it.
            children = [reaper.own(_spawn("sh", "-c", f"(: &) ; exit {begin + number}")) for number in range(32)]
            assert [await child.exited for child in children] == list(range(begin, begin + 32))


async def test_the_reaper_tells_a_child_of_its_end_where_there_are_no_pidfds() -> None:
    async with reaping() as reaper, asyncio.timeout(PATIENCE_S):
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


ESCAPES = {
    "session": "setsid sleep 70",
    "environment": "env -i setsid sleep 70",
    "daemonised": "(cd /; env -i setsid sh -c 'sleep 70 & exit 0' </dev/null >/dev/null 2>&1 &) & sleep 0",
    "user": "env -i setpriv --reuid=65534 --regid=65534 --clear-groups setsid sleep 70",
    "brood": "env -i setsid sh -c 'while :; do setsid sleep 70 & sleep 0.01; done'",
    "death-signal": "env -i setpriv --pdeathsig=clear setsid sleep 70",
}
"""Ways out of the daemon's group, session, environment, user; each leaves processes that outlive it."""


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES.keys())
@pytest.mark.parametrize("end", ["exit 0", "ulimit -c 0; kill -SEGV $$", ""], ids=["exit", "crash", "killed"])
async def test_nothing_that_the_daemon_left_outlives_it(tmp_path: Path, escape: str, end: str) -> None:
    go = tmp_path / "go"
    async with reaping() as reaper:
        child = reaper.own(_spawn("sh", "-c", f"{escape} & while [ ! -e {go} ]; do sleep 0.01; done; {end}"))
        await _until(lambda: any(_command(pid) == b"sleep\x0070\0" for pid in _marked(child)))
        if end:
            go.touch()
        else:
            child.kill_group()
        await _until(lambda: child.reaped and not _marked(child))


def _marked(child: Child) -> list[int]:
    """The living processes that descend from a child, it included."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if read_mark(pid) == child.mark and is_alive(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_the_mark_stays_with_the_child(tmp_path: Path) -> None:
    before = resource.getrlimit(RLIMIT_LOCKS)
    async with reaping() as reaper:
        children = [reaper.own(_spawn("sleep", "72")) for _ in range(2)]
        assert [read_mark(child.pid) for child in children] == [child.mark for child in children]
        assert children[0].mark != children[1].mark
        assert read_mark(os.getpid()) is None
        assert resource.getrlimit(RLIMIT_LOCKS) == before
        foreign = subprocess.Popen(["prlimit", f"--locks={1 << 40 | 7}:unlimited", "sleep", "73"], cwd=tmp_path)
        await _until(lambda: _command(foreign.pid) == b"sleep\x0073\0")
        assert read_mark(foreign.pid) is None  # process 1's, and that is another one
        for child in children:
            child.kill_group()
        foreign.kill()
    await asyncio.to_thread(foreign.wait)


async def test_without_room_for_a_mark_the_daemon_runs_all_the_same() -> None:
    program = (
        "import asyncio, os, resource; resource.setrlimit(10, (7, 7))\n"
        "from vdpa_agent.daemon.child import spawn\n"
        "from vdpa_agent.daemon.reaper import reaping\n"
        "async def main():\n"
        "    async with reaping() as reaper:\n"
        "        print(await reaper.own(spawn(['sh', '-c', 'exit 7'], output=2, control=2)).exited)\n"
        "asyncio.run(main())\n"
    )
    ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "7"
    assert "orphans_not_adopted" in ran.stdout


async def test_orphans_of_a_living_daemon_and_those_of_others_are_left_alone(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    async with reaping() as reaper:
        living = reaper.own(_spawn("sh", "-c", f"(setsid sleep 64 & echo $! > {note}); exec sleep 65"))
        await _until(lambda: note.exists() and note.read_text())
        orphan = int(note.read_text())
        stranger = await asyncio.to_thread(_orphan_of_nobody)
        await _until(lambda: {orphan, stranger} <= _children())
        other = reaper.own(_spawn("true"))
        async with asyncio.timeout(PATIENCE_S):
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
