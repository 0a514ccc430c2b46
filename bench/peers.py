"""The servers that are compared: how each is started, asked, and looked at from outside."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.figures import NO_RATE
from tests.processes import ROOT, built, mapping_text

AGENT: Final = "vdpa-agent"
GO: Final = "plain Go"
AIO: Final = "grpc.aio"
ECHO: Final = "C echo"
GRPC: Final = (AGENT, GO, AIO)
ALL: Final = (*GRPC, ECHO)

LOAD_S: Final = 120.0
"""The longest that one measurement may take, in seconds."""

ADDRESSES: Final = tuple(
    f"0000:{bus:02x}:{device:02x}.{function}" for bus in range(16) for device in range(32) for function in range(8)
)
"""As many as a mapping may have."""


def socket_of(address: str) -> str:
    """What every server answers for an address."""
    return f"/var/run/vdpa/vhost/vdpa-{address}"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        name: one of ALL.
        socket: where it listens.
        process: it.
    """

    name: str
    socket: Path
    process: "subprocess.Popen[bytes]"

    def load(self, mode: str, *, address: str = ADDRESSES[0], **options: float) -> dict[str, Any]:
        """Has the client do one thing, and returns what it measured."""
        with load(self.name, self.socket, mode, address=address, **options) as client:
            assert client.stdout is not None
            told, _ = client.communicate(timeout=LOAD_S)
        assert client.returncode == 0, f"the client failed on {self.name}"
        measured: dict[str, Any] = json.loads(told)
        return measured

    def cpu_s(self) -> float:
        """The CPU time that it took so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Its resident memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1024**2

    def wakeups(self) -> int:
        """How often its threads began to wait so far."""
        return sum(
            int(line.split()[1])
            for status in Path(f"/proc/{self.process.pid}/task").glob("*/status")
            for line in status.read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )


@contextmanager
def load(name: str, socket: Path, mode: str, *, address: str, **options: float) -> Iterator["subprocess.Popen[bytes]"]:
    """The client at work, which is gone at the end."""
    arguments = [f"-{option}={value}" for option, value in options.items()]
    if name == ECHO:
        arguments.append("-echo")
    client = subprocess.Popen(
        [
            built("go/bin/load", "interop"),
            f"-socket={socket}",
            f"-address={address}",
            f"-expect={socket_of(address)}",
            *arguments,
            mode,
        ],
        stdout=subprocess.PIPE,
    )
    try:
        yield client
    finally:
        client.kill()
        client.wait()
        if client.stdout is not None:
            client.stdout.close()


@contextmanager
def serving(name: str, directory: Path, entries: int) -> Iterator[tuple[Server, float]]:
    """A server of a mapping, with the seconds from its start to its first answer.

    Its log goes to a file, as under a service manager.
    """
    directory.mkdir(parents=True, exist_ok=True)
    socket, mapping, log = directory / "s", directory / "socketList.dat", directory / "log"
    mapping.write_text(mapping_text({address: socket_of(address) for address in ADDRESSES[:entries]}))
    # The client runs already when the server starts: only the server's time counts.
    with load(name, socket, "first", address=ADDRESSES[0]) as client, log.open("wb") as output:
        assert client.stdout is not None
        client.stdout.readline()
        began = time.monotonic()
        process = subprocess.Popen(_argv(name, socket, mapping), stdout=output, stderr=output, cwd=ROOT)
        try:
            assert client.stdout.readline(), f"{name} gave no first answer: {log.read_text()}"
            yield Server(name, socket, process), time.monotonic() - began
        finally:
            process.kill()
            process.wait()


def _argv(name: str, socket: Path, mapping: Path) -> Sequence[str | Path]:
    options = (
        *("run", "--daemon=none", NO_RATE),
        f"--listen={socket}",
        f"--socket-list={mapping}",
        f"--pci-list={mapping.with_name('pciList.dat')}",
    )
    # structlog, for one, loads more where there is more.
    installed = built("runtime/bin/python", "runtime")
    argv: Mapping[str, Sequence[str | Path]] = {
        AGENT: (installed, "-m", "vdpa_agent", *options),
        GO: (built("go/bin/plain-server", "interop"), f"-listen={socket}", f"-list={mapping}"),
        AIO: (sys.executable, ROOT / "bench" / "aio_server.py", socket, mapping),
        ECHO: (built("echo", "build/echo"), socket),
    }
    return argv[name]
