"""When a reader learns that its files may have changed, with a watch and without."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.hung import hung
from tests.mounts import in_mount_namespace, mounted
from tests.processes import PATIENCE_S, ROOT
from vdpa_agent.files import follow as follow_module
from vdpa_agent.files.follow import follow

pytestmark = pytest.mark.anyio

STORM_S = 1.0
"""How long a file is written without a pause: some 50,000 times, and the agent could read it 5,000 times."""

WRITER = """
import sys, time
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    open(sys.argv[1], "w").close()
open(sys.argv[1], "w").write("the end")
"""

FOLLOWER = """
import asyncio, sys
from pathlib import Path
from vdpa_agent.files.follow import follow

async def main():
    seen = None
    async for _ in follow((Path(sys.argv[1]),)):
        content = Path(sys.argv[1]).read_text() if Path(sys.argv[1]).exists() else ""
        if content != seen:
            print("content", content, flush=True)
        seen = content

asyncio.run(main())
"""


class _Follower:
    """A process that follows a file and prints its contents and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def prints(self, text: str) -> None:
        """Reads on until a line has this text."""
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            while not self.lines or text not in self.lines[-1]:
                line = await self._process.stdout.readline()
                assert line, self.lines
                self.lines.append(line.decode())


@asynccontextmanager
async def _following(file: Path, *under: str) -> AsyncIterator[_Follower]:
    process = await asyncio.create_subprocess_exec(
        *under,
        sys.executable,
        "-c",
        FOLLOWER,
        str(file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield _Follower(process)
    finally:
        process.kill()
        await process.communicate()


async def test_a_writer_without_a_pause_is_passed_on_seldom_and_the_end_of_it_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "socketList.dat"
    yields, seen = 0, asyncio.Event()

    async def read() -> None:
        nonlocal yields
        async for _ in follow((file,)):
            yields += 1
            if file.exists() and file.read_text() == "the end":
                seen.set()

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(file), str(STORM_S))
        assert await writer.wait() == 0
        async with asyncio.timeout(5):
            await seen.wait()
        reading.cancel()
    # Two at the start, at once 32 times, then after two quiet milliseconds each.
    assert yields <= 35 + STORM_S / 0.002


async def test_the_first_look_waits_for_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "hung"
    directory.mkdir()
    with hung(directory), capture_logs() as logs:
        async with aclosing(follow((directory / "file",))) as changes:
            await anext(changes)
            assert logs == []
            for _ in range(3):
                await anext(changes)
    assert [log["event"] for log in logs] == ["watch_interrupted"]
    assert "the file system does not answer within 3 s" in logs[0]["reason"]


async def test_a_watch_begins_when_it_can(tmp_path: Path) -> None:
    directory = tmp_path / "hung"
    directory.mkdir()
    with capture_logs() as logs:
        async with aclosing(follow((directory / "file",))) as changes, asyncio.timeout(30):
            with hung(directory):
                await anext(changes)
                await anext(changes)
            while "watch_restored" not in [log["event"] for log in logs]:
                await anext(changes)
            (directory / "file").touch()
            await anext(changes)
    assert [log["event"] for log in logs] == ["watch_interrupted", "watch_restored"]


@pytest.mark.parametrize("what", ["the file", "its directory", "the directory above"])
async def test_what_is_mounted_over_a_file_is_seen_at_once(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "_RECHECK_S", 1000.0)  # only an event counts
    directory = tmp_path / "directory"
    directory.mkdir()
    file = directory / "file"
    file.write_text("one")
    (tmp_path / "other").write_text("two")
    place, source = {
        "the file": (file, tmp_path / "other"),
        "its directory": (directory, None),
        "the directory above": (tmp_path, None),
    }[what]

    def content() -> str | None:
        return file.read_text() if file.exists() else None

    async with aclosing(follow((file,))) as changes, asyncio.timeout(PATIENCE_S):
        await anext(changes)
        await anext(changes)
        for _ in range(5):
            with mounted(place, source):
                await _next_that_sees(changes, lambda: content() != "one")
            await _next_that_sees(changes, lambda: content() == "one")


async def _next_that_sees(changes: AsyncGenerator[None], is_true: Callable[[], bool]) -> None:
    """Goes on to the next change; what other tests mount may be seen before."""
    await anext(changes)
    while not is_true():
        await anext(changes)


async def test_without_proc_what_is_mounted_is_seen_at_the_next_look(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    (tmp_path / "other").write_text("two")
    late = f"mount -t tmpfs x /proc; (sleep 1; mount --bind {tmp_path}/other {file}) &"
    async with _following(file, *in_mount_namespace(late)) as follower:
        await follower.prints("content one")
        await follower.prints("content two")


@pytest.mark.parametrize("limit", ["instances", "watches"])
async def test_without_inotify_from_the_start_files_are_followed_and_it_is_logged_once(
    tmp_path: Path, limit: str
) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    script = f'echo 0 >/proc/sys/user/max_inotify_{limit} && exec "$@"'
    async with _following(file, "unshare", "-Ur", "sh", "-c", script, "sh") as follower:
        await follower.prints("content one")
        await follower.prints(f"raise fs.inotify.max_user_{limit}")
        for content in ("two", "three", "four"):
            file.write_text(content)
            await follower.prints(f"content {content}")
    assert sum("watch_interrupted" in line for line in follower.lines) == 1


async def test_without_a_descriptor_for_it_files_are_looked_at_every_second(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    # One more than an event loop, the mounts and a file take, and less than a watch: a queue and two directories.
    program = FOLLOWER.replace(
        "asyncio.run(main())",
        "import os, resource\n"
        "free = os.dup(0)\nos.close(free)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (free + 7, free + 7))\n"
        "asyncio.run(main())",
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        str(file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    follower = _Follower(process)
    try:
        await follower.prints("content one")
        await follower.prints("too many open files")
        for content in ("two", "three"):
            file.write_text(content)
            await follower.prints(f"content {content}")
    finally:
        process.kill()
        await process.communicate()
    assert sum("watch_interrupted" in line for line in follower.lines) == 1


async def test_an_undecodable_name_in_the_directory_from_the_start_is_no_matter(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe", "wb"):  # noqa: PTH123 - a name that no Path holds
        pass
    with capture_logs() as logs:
        async with aclosing(follow((tmp_path / "file",))) as changes, asyncio.timeout(20):
            await anext(changes)
            await anext(changes)
            (tmp_path / "file").touch()
            await anext(changes)
    assert logs == []


async def test_a_directory_that_may_not_be_read_is_looked_at_every_second(run_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    run_dir.chmod(0o755)
    directory = run_dir / "run"
    directory.mkdir()
    file = directory / "file"
    file.write_text("one")
    file.chmod(0o644)
    directory.chmod(0o711)
    async with _following(file, "setpriv", "--reuid=300002", "--regid=300002", "--clear-groups") as follower:
        await follower.prints("content one")
        await follower.prints("permission denied; give the agent read permission")
        file.write_text("two")
        await follower.prints("content two")


async def test_a_directory_that_is_made_again_without_end_is_followed_at_a_pace(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    done = False

    async def remake() -> None:
        while not done:
            directory.mkdir()
            await asyncio.sleep(0)
            directory.rmdir()

    yields = 0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(remake())
        async with aclosing(follow((directory / "file",))) as changes:
            begun_s = asyncio.get_running_loop().time()
            async for _ in changes:
                yields += 1
                if yields == 40:
                    break
        done = True
    # Between two watches are 50 ms; a watch of a directory that is another one soon yields a few times.
    assert asyncio.get_running_loop().time() - begun_s >= 0.25


def test_without_a_thread_a_pause_gathers() -> None:
    """As another user, since root may always start threads; watchfiles alone would end the process."""
    code = "import watchfiles; from vdpa_agent.files.follow import _gather; _gather(['/tmp']); print('goes on')"
    limited = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "prlimit", "--nproc=1:1")
    argv = [*limited, sys.executable, "-c", code]
    gone_on = subprocess.run(argv, check=False, cwd=ROOT, capture_output=True, text=True)
    assert (gone_on.returncode, gone_on.stdout) == (0, "goes on\n"), gone_on.stderr
