"""What is mounted rings, wherever it is; without /proc nothing does, and nothing fails."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounts import in_mount_namespace, mounted
from tests.processes import PATIENCE_S, ROOT
from vdpa_agent.node.mounts import on_mounts

pytestmark = pytest.mark.anyio


async def test_what_is_mounted_over_a_directory_or_a_file_rings_and_so_does_its_end(tmp_path: Path) -> None:
    directory, file, other = (tmp_path / name for name in ("directory", "file", "other"))
    directory.mkdir()
    file.touch()
    other.touch()
    rung = asyncio.Event()

    async def rings(act: Callable[[], object]) -> None:
        rung.clear()
        await asyncio.to_thread(act)
        async with asyncio.timeout(PATIENCE_S):
            await rung.wait()

    with on_mounts(rung.set):
        for context in (mounted(directory), mounted(file, other)):
            await rings(context.__enter__)
            await rings(lambda context=context: context.__exit__(None, None, None))  # type: ignore[misc]


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_it_leaves_no_descriptor_open() -> None:
    before = _open_files()
    with on_mounts(lambda: None):
        assert _open_files() == before + 2
    assert _open_files() == before


LONELY = """
import asyncio, sys
from vdpa_agent.node.mounts import on_mounts

async def main():
    rung = []
    with on_mounts(lambda: rung.append(1)):
        for line in sys.stdin:
            await asyncio.sleep(0.05)
            print(len(rung), flush=True)
            rung.clear()

asyncio.run(main())
"""


def test_nothing_rings_by_itself_and_each_change_does() -> None:
    """In a mount namespace of its own, where no other test mounts anything."""
    command = in_mount_namespace(":", sys.executable, "-c", LONELY)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def rings() -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        inside = ("nsenter", "-t", str(process.pid), "-m")
        assert [rings(), rings()] == [0, 0]
        for command in (("mount", "-t", "tmpfs", "x", "/mnt"), ("umount", "/mnt")):
            subprocess.run([*inside, *command], check=True)
            assert rings() > 0
            assert rings() == 0
        process.stdin.close()


def test_without_proc_nothing_rings_and_nothing_fails() -> None:
    command = in_mount_namespace("mount -t tmpfs x /proc", sys.executable, "-c", LONELY)
    gone_on = subprocess.run(command, input="\n\n", capture_output=True, text=True, cwd=ROOT, check=False)
    assert (gone_on.returncode, gone_on.stdout, gone_on.stderr) == (0, "0\n0\n", "")
