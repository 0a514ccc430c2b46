"""h2spec, a conformance test of HTTP/2, finds nothing wrong with a real agent."""

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from tests.abuse.wire import PATH
from tests.processes import built, running

LASTS_AT_MOST_S: Final = 100.0
CASES: Final = 146
RUNS_AT_MOST: Final = 8


async def _pass_on(source: StreamReader, sink: StreamWriter) -> None:
    """Passes bytes on until either side ends, and the end too."""
    with suppress(OSError):
        while chunk := await source.read(65536):
            sink.write(chunk)
            await sink.drain()
    sink.close()


async def _run(listen: Path, *arguments: str | Path) -> str:
    """Runs h2spec, which speaks TCP alone, against a unix socket; returns what it prints."""

    async def bridge(reader: StreamReader, writer: StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_unix_connection(listen)
        await asyncio.gather(_pass_on(reader, onward_writer), _pass_on(onward_reader, writer))

    async with await asyncio.start_server(bridge, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        h2spec = await asyncio.create_subprocess_exec(
            built("go/bin/h2spec", "interop"),
            *("--port", str(port), "--path", PATH, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(h2spec.communicate(), LASTS_AT_MOST_S)
        finally:
            if h2spec.returncode is None:
                h2spec.kill()
                await h2spec.wait()
        return output.decode()


def test_h2spec(run_dir: Path) -> None:
    """Each case passes; in some, what is wrong comes in a second write, and the agent may have answered by then."""
    report = run_dir / "report.xml"
    failed: set[str] | None = None
    with running(run_dir, "--example-data") as agent:
        for _ in range(RUNS_AT_MOST):
            output = asyncio.run(_run(agent.listen, "--strict", "--junit-report", report))
            cases = list(ET.parse(report).iter("testcase"))
            assert len(cases) == CASES, output
            # A case that passed has no child; h2spec also skips what it finds no way to try.
            now = {f"{case.get('package')}: {case.get('classname')}" for case in cases if len(case)}
            failed = now if failed is None else failed & now
            if not failed:
                break
    assert not failed, output
    assert not [line for line in agent.log.raw if "Traceback" in line or "exception" in line]
