"""Measures the whole path on simulated VFs: latencies, recovery, traffic beside a hot change, memory and idle cost."""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.processes import AgentProcess, built, front_end, mapping_text, running, write_atomically

ADDRESSES: Final = tuple(
    f"0000:{bus:02x}:{device:02x}.{f}" for bus in range(1, 9) for device in range(32) for f in range(8)
)
"""Enough addresses for any row."""

PAUSE_S: Final = 0.1
"""Between two changes of a file: up to so long, in seconds, since no plugin writes its list without a pause."""

NO_RATE: Final = "--max-calls-per-second=1000000"
"""One client asks without a pause here, which no CNI plugin does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all rows and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="make figures", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="how long to watch the idle agent")
    parser.add_argument("--kills", type=int, default=10, help="how often to kill the daemon, per row")
    options = parser.parse_args(argv)
    figures: dict[str, Any] = {}
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "list written to socket served, ms": list_to_served,
        "mapping changed to new answer, ms": mapping_to_answer,
        "the same without a pause, ms": lambda: mapping_to_answer(pause_s=0.0),
        "kill -9 to all served, 4 devices, s": lambda: recovery(4, options.kills),
        "kill -9 to all served, 64 devices, s": lambda: recovery(64, options.kills),
        "packets through the named socket": packets,
        "neighbour beside 20 hot adds and removes": neighbour,
        "agent idle": lambda: idle(options.idle_seconds),
    }
    for name, row in rows.items():
        figures[name] = row()
        if not options.json:
            print(f"{name:42}  " + "  ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    if options.json:
        print(json.dumps(figures, indent=2))
    return 0


def list_to_served(rounds: int = 50) -> dict[str, float]:
    """From the rename of a list with one device more until that device is answered with a socket."""
    times = []
    with _simulated(1) as agent:
        for number in range(1, rounds + 1):
            _pause(PAUSE_S)
            began = time.monotonic()
            _list(agent, ADDRESSES[: number + 1])
            _until(lambda number=number: agent.ask(ADDRESSES[number]))  # type: ignore[misc]
            times.append(time.monotonic() - began)
    return spread(times, 1000)


def mapping_to_answer(rounds: int = 200, *, pause_s: float = PAUSE_S) -> dict[str, float]:
    """From the rename of a foreign mapping until the answer is the new one, with up to `pause_s` before each."""
    times = []
    with _directory() as directory, running(directory, NO_RATE) as agent:
        for number in range(rounds):
            _pause(pause_s)
            socket = f"/v/{number}"
            began = time.monotonic()
            write_atomically(agent.socket_list, mapping_text({ADDRESSES[0]: socket}))
            _until(lambda socket=socket: agent.ask(ADDRESSES[0]) == socket)  # type: ignore[misc]
            times.append(time.monotonic() - began)
    return spread(times, 1000)


def recovery(devices: int, kills: int) -> dict[str, float]:
    """From kill -9 of the daemon until every device is answered again; each kill hits an agent with a fresh backoff."""
    times = []
    for _ in range(kills):
        with _simulated(devices) as agent:
            began = time.monotonic()
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            _until(lambda agent=agent: not agent.ask(ADDRESSES[0]))  # type: ignore[misc]
            for address in ADDRESSES[:devices]:
                _until(lambda agent=agent, address=address: agent.ask(address))  # type: ignore[misc]
            times.append(time.monotonic() - began)
    return spread(times, 1)


def packets() -> dict[str, Any]:
    """200,000 packets at 50,000 a second through the socket that gRPC named, then as fast as one core goes."""
    with _simulated(4) as agent:
        with front_end(agent.ask(ADDRESSES[2]), "--packets=200000", "--rate=50000") as front:
            paced = front.result()
        with front_end(agent.ask(ADDRESSES[3]), "--seconds=5", "--rate=0") as front:
            fast = front.result()
    return {
        "paced": f"{paced['sent']} sent, {paced['received']} received, {paced['lost']} lost",
        "flat out": f"{fast['sent']} sent, {fast['received']} received, {fast['lost']} lost",
        "rate_pps": fast["rate_pps"],
    }


def neighbour(rounds: int = 20) -> dict[str, Any]:
    """What a front end at 20,000 packets a second notices of other devices that come and go."""
    with _simulated(4) as agent, front_end(agent.ask(ADDRESSES[0]), "--rate=20000", "--interval=0.1") as front:
        front.wait_passing()
        alone = len(front.lines.named("interval"))
        _until(lambda: len(front.lines.named("interval")) >= alone + 20)
        change = len(front.lines.named("interval"))
        for _ in range(rounds):
            _list(agent, ADDRESSES[:5])
            _until(lambda: agent.ask(ADDRESSES[4]))
            _list(agent, ADDRESSES[:4])
            _until(lambda: not agent.ask(ADDRESSES[4]))
        counts = front.stop()
        rates = [event["rate_pps"] for event in front.lines.named("interval")]
    return {
        "rate before": round(sum(rates[alone:change]) / (change - alone)),
        "rate during": round(sum(rates[change:]) / max(1, len(rates) - change)),
        "sent": counts["sent"],
        "received": counts["received"],
        "lost": counts["lost"],
        "longest silence ms": counts["longest_silence_ms"],
    }


def idle(seconds: float) -> dict[str, Any]:
    """Memory and CPU of an agent that serves four devices and is asked nothing."""
    with _simulated(4) as agent:
        agent_pid, daemon_pid = agent.process.pid, agent.daemon_pid()
        before = _cpu_s(agent_pid), _cpu_s(daemon_pid), _switches(agent_pid)
        time.sleep(seconds)
        after = _cpu_s(agent_pid), _cpu_s(daemon_pid), _switches(agent_pid)
        return {
            "agent RSS MiB": round(_rss_mib(agent_pid), 1),
            "vdpad RSS MiB": round(_rss_mib(daemon_pid), 1),
            "agent CPU %": round((after[0] - before[0]) / seconds * 100, 2),
            "vdpad CPU %": round((after[1] - before[1]) / seconds * 100, 2),
            "agent wakeups/s": round((after[2] - before[2]) / seconds, 1),
            "over s": seconds,
        }


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="va-") as directory:
        yield Path(directory)


@contextmanager
def _simulated(devices: int) -> Iterator[AgentProcess]:
    vdpad = built("native/vdpad/vdpad", "native")
    with _directory() as directory:
        (directory / "pciList.dat").write_text("".join(f"{address}\n" for address in ADDRESSES[:devices]))
        with running(directory, "--simulate", "--memory=none", f"--vdpad={vdpad}", NO_RATE) as agent:
            for address in ADDRESSES[:devices]:
                _until(lambda address=address: agent.ask(address))  # type: ignore[misc]
            yield agent


def _list(agent: AgentProcess, addresses: Sequence[str]) -> None:
    write_atomically(agent.pci_list, "".join(f"{address}\n" for address in addresses))


def _pause(most_s: float) -> None:
    time.sleep(random.uniform(0.0, most_s))  # noqa: S311 - any moment will do


def _until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Asks without a pause: a pause would be part of what is measured."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            message = f"not within {timeout_s} s"
            raise TimeoutError(message)


def spread(times_s: list[float], scale: float) -> dict[str, float]:
    """The middle, the 99th percentile and the longest of some times, in seconds times `scale`."""
    ordered = sorted(times_s)
    last = len(ordered) - 1
    return {
        "p50": round(ordered[last // 2] * scale, 2),
        "p99": round(ordered[min(last, round(last * 0.99))] * scale, 2),
        "max": round(ordered[-1] * scale, 2),
        "n": len(ordered),
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1024**2


def _switches(pid: int) -> int:
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


if __name__ == "__main__":
    sys.exit(main())
