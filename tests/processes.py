"""The real processes of the tests: the agent with its log as events, and a DPDK front end that counts packets."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import grpc
from prometheus_client.parser import text_string_to_metric_families

from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

ROOT: Final = Path(__file__).parent.parent
PATIENCE_S: Final = 60.0
"""The one time-out of waits for what should come soon; a condition ends them, not the clock."""

_SHOWN_LINES: Final = 40
"""How much of an agent's log a failed test shows."""

WITH_HTTP: Final = "--http-listen=127.0.0.1:0"
"""The option with which an agent has pages."""

T = TypeVar("T")


def eventually(what: str, condition: Callable[[], T | None], *, timeout_s: float = PATIENCE_S) -> T:
    """Returns the first true value of `condition`, looked at every 2 ms; fails after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            message = f"{what}: not within {timeout_s} s"
            raise AssertionError(message)
        time.sleep(0.002)


def built(name: str, target: str) -> Path:
    """The path of a built program; a missing one fails the test, with what to run."""
    path = ROOT / "build" / name
    assert path.exists(), f"{path} is missing: run `make {target}`"
    return path


def get_page(address: str, path: str) -> tuple[int, str]:
    """A page by HTTP: its status and its text."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The series of a scrape, by their name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class JsonLines:
    """Gathers what a process prints, one JSON object a line, as it comes."""

    def __init__(self, stream: IO[str]) -> None:
        self.events: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.raw.append(line)
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.events.append({"event": "not_json", "line": line})

    def named(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of a name with these fields."""
        wanted = {"event": event, **fields}
        return [seen for seen in list(self.events) if all(seen.get(key) == value for key, value in wanted.items())]

    def wait(self, process: "subprocess.Popen[str]", event: str, *, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Waits until an event came `count` times; returns the newest."""

        def seen() -> list[dict[str, Any]] | None:
            ended = process.poll()
            events = self.named(event, **fields)
            if len(events) >= count:
                return events
            assert ended is None or self._reader.is_alive(), f"ended with {ended}: {''.join(self.raw[-20:])}"
            return None

        return eventually(f"event {event} {fields} x{count}", seen)[-1]

    def end(self) -> None:
        """Waits for the last line."""
        self._reader.join(PATIENCE_S)


class AgentProcess:
    """A running `vdpa-agent run`; everything it needs is below one directory."""

    def __init__(
        self, directory: Path, arguments: Sequence[str], environment: dict[str, str], under: Sequence[str] = ()
    ) -> None:
        """Starts it; `under` is a program that becomes it by exec, such as prlimit."""
        self.directory = directory
        self.listen = directory / "vdpa.sock"
        self.socket_list = directory / "socketList.dat"
        self.pci_list = directory / "pciList.dat"
        self.process = subprocess.Popen(
            [
                *(*under, sys.executable, "-m", "vdpa_agent", "run"),
                f"--listen={self.listen}",
                f"--socket-list={self.socket_list}",
                f"--pci-list={self.pci_list}",
                f"--socket-dir={directory / 'vhost'}",
                "--log-format=json",
                "--hold-timeout=0",  # most tests ask what is served now
                *arguments,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},  # noqa: TID251 - what a service manager would hand over
        )
        assert self.process.stderr is not None
        self.log = JsonLines(self.process.stderr)
        self.channel = grpc.insecure_channel(
            f"unix:{self.listen}",
            options=[("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 50)],
        )
        self._ask = self.channel.unary_unary(
            "/vdpadpdk.VdpaDpdk/GetSocketpath",
            request_serializer=GetSocketpathRequest.SerializeToString,
            response_deserializer=GetSocketpathResponse.FromString,
        )

    def ask(self, address: str, *, timeout_s: float = PATIENCE_S) -> str:
        """The socket of an address, as gRPC answers now."""
        request = GetSocketpathRequest(pciAddress=address)
        return str(self._ask(request, timeout=timeout_s, wait_for_ready=True).socketpath)

    def wait_logged(self, event: str, *, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Waits until an event was logged `count` times; returns the newest."""
        return self.log.wait(self.process, event, count=count, **fields)

    def wait_answer(self, address: str, socket: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Waits until an address is answered with a socket."""
        eventually(f"{address} -> {socket!r}", lambda: self.ask(address) == socket, timeout_s=timeout_s)

    def get(self, path: str) -> tuple[int, str]:
        """A page of an agent that runs with WITH_HTTP: its status and its text."""
        return get_page(self.wait_logged("http_listening")["address"], path)

    def metric(self, name: str, **labels: str) -> float | None:
        """What a series is now; None if there is no such series."""
        return series(self.get("/metrics")[1]).get((name, frozenset(labels.items())))

    def wait_metric(self, name: str, value: float, *, timeout_s: float = PATIENCE_S, **labels: str) -> None:
        """Waits until a series has a value."""
        eventually(f"{name} {labels} = {value}", lambda: self.metric(name, **labels) == value, timeout_s=timeout_s)

    def daemon_pid(self) -> int:
        """The process id of the newest daemon."""
        return int(self.wait_logged("daemon_started")["pid"])

    def rss_kib(self) -> int:
        """Its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def descriptors(self) -> int:
        """How many it has open; each connection is one."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks the agent to end, waits for it, and returns its exit code."""
        self.channel.close()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.log.end()
        return code

    def kill(self) -> None:
        """Ends the agent at once, if it has not ended."""
        self.channel.close()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.log.end()


@contextmanager
def running(
    directory: Path, *arguments: str, environment: dict[str, str] | None = None, under: Sequence[str] = ()
) -> Iterator[AgentProcess]:
    """An agent that answers; at the end it must stop in order and must have logged no defect.

    Whatever fails while it runs shows the end of its log.
    """
    agent = AgentProcess(directory, arguments, environment or {}, under)
    try:
        agent.wait_logged("listening")
        yield agent
        code = agent.stop()
        assert code == 0
        odd = agent.log.named("not_json")
        assert not odd, odd
        reports = [line for line in agent.log.raw if "Sanitizer" in line or "runtime error:" in line]
        assert not reports
    except BaseException as error:
        agent.kill()
        error.add_note(f"the log of the agent in {directory}:\n{''.join(agent.log.raw[-_SHOWN_LINES:])}")
        raise
    finally:
        agent.kill()


class FrontEnd:
    """A running `vdpa-front`: a DPDK virtio-user front end that counts the packets it gets back."""

    def __init__(self, socket: str, *arguments: str) -> None:
        assert socket, "no socket was answered: wait for it first"
        self.process = subprocess.Popen(
            [
                built("native/frontend/vdpa-front", "native"),
                f"--path={socket}",
                "--memory=none",
                "--format=json",
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines = JsonLines(self.process.stdout)

    def wait_passing(self) -> None:
        """Waits until packets have come back."""
        eventually("packets", lambda: any(event["received"] > 0 for event in self.lines.named("interval")))

    def stop(self) -> dict[str, Any]:
        """Asks it to end and returns its final counts."""
        self.process.send_signal(signal.SIGTERM)
        return self.result()

    def result(self) -> dict[str, Any]:
        """Waits for its end by itself and returns its final counts, with `exit_code`."""
        code = self.process.wait(2 * PATIENCE_S)
        self.lines.end()
        done = self.lines.named("done")
        assert done, f"vdpa-front ended with {code} and no counts: {self.lines.raw}"
        return {**done[-1], "exit_code": code}


@contextmanager
def front_end(socket: str, *arguments: str) -> Iterator[FrontEnd]:
    """A front end that is gone at the end."""
    front = FrontEnd(socket, *arguments)
    try:
        yield front
    finally:
        front.process.kill()
        front.process.wait()
        front.lines.end()


def write_atomically(path: Path, content: str) -> None:
    """Replaces a file as the device plugin does: a temporary beside it, then a rename."""
    temporary = path.with_name(f"tmp{path.name}")
    temporary.write_text(content)
    temporary.rename(path)


def write_list(path: Path, addresses: Iterable[str]) -> None:
    """Replaces a device list in one step."""
    write_atomically(path, "".join(f"{address}\n" for address in addresses))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(directory: Path) -> dict[int, str]:
    """The processes that run with something below a directory as an argument: their ids and command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
            if f"={directory}/".encode() in line:
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def mapping_text(sockets: dict[str, str]) -> str:
    """A mapping file's content."""
    return json.dumps([{"pciAddress": address, "socketpath": path} for address, path in sockets.items()])
