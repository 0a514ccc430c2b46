"""When a reader is told that its files may have changed."""

import asyncio
import sys
from pathlib import Path

import pytest

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


async def test_who_writes_without_a_pause_is_told_of_seldom_and_the_end_of_it_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "socketList.dat"
    told, seen = 0, asyncio.Event()

    async def read() -> None:
        nonlocal told
        async for _ in follow((file,)):
            told += 1
            if file.exists() and file.read_text() == "the end":
                seen.set()

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(file), str(STORM_S))
        assert await writer.wait() == 0
        async with asyncio.timeout(5):
            await seen.wait()
        reading.cancel()
    # At once 32 times, then as watchfiles tells, which needs two steps of 1 ms to see that nothing more comes.
    assert told <= 33 + STORM_S / 0.001


async def test_without_a_storm_watchfiles_is_not_even_loaded(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom vdpa_agent.files.follow import follow\n"
        f"file = Path({str(tmp_path / 'f')!r})\n"
        "async def main():\n"
        "    told = follow((file,))\n"
        "    await anext(told)\n"
        "    file.write_text('1')\n"
        "    await anext(told)\n"
        "    await told.aclose()\n"
        "asyncio.run(main())\nprint('watchfiles' in sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert (process.returncode, said) == (0, b"False\n")
