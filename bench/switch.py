"""Simulated VFs beside DPDK's own vhost PMD: frames that go round between two ports, or through one port and back.

usage: python -m bench.switch [--rounds N] [--before VDPAD]

One testpmd with virtio-user ports keeps 256 frames of each port under way; the back end has the other CPU. The peer is
a second testpmd, which forwards between its vhost ports. Both are measured in turn in each round; a ratio is the median
of those of the rounds.
"""

import argparse
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.processes import built, eventually

SIZES: Final = (64, 1518)
MEASURED_S: Final = 3.0
TESTPMD: Final = ("dpdk-testpmd", "--no-pci", "--no-telemetry", "--no-huge", "--no-shconf")


@contextmanager
def _process(command: list[str], cpu: int, output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with output.open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(cpu), *command], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _vdpad(program: str, directory: Path, network: str) -> list[str]:
    return [
        *(program, "--simulate", "--memory=none", f"--socket-dir={directory}"),
        *((f"--simulate-network={network}",) if network else ()),
        *(f"--socket-list={directory}/list", "82:00.2", "82:00.3"),
    ]


def _peer(directory: Path, ports: int, cpu: int) -> list[str]:
    sockets = [f"--vdev=net_vhost{n},iface={directory}/vdpa-{n}" for n in range(ports)]
    topology = "paired" if ports > 1 else "loop"
    return [
        *(*TESTPMD, "--lcores", f"0@{cpu},1@{cpu}", "--file-prefix=peer", "-m", "256", *sockets),
        *("--", "--total-num-mbufs=8192", "--no-mlockall", "--forward-mode=io", f"--port-topology={topology}"),
        *("--auto-start", "--stats-period=1"),
    ]


def _rate(back_end: list[str], directory: Path, ports: int, size: int, cpus: tuple[int, int]) -> float:
    """Frames a second that reach all ports together."""
    near, far = cpus
    vdevs = [
        f"--vdev=net_virtio_user{n},path={directory}/vdpa-{n},queue_size=1024,mac=02:00:00:00:01:0{n}"
        for n in range(ports)
    ]
    topology = "paired" if ports > 1 else "loop"
    front_end = [
        *(*TESTPMD, "--lcores", f"0@{near},1@{near}", "--file-prefix=front", "-m", "128", *vdevs),
        *("--", "--total-num-mbufs=8192", "--no-mlockall", "--forward-mode=io", f"--port-topology={topology}"),
        *("--rxd=1024", "--txd=1024", f"--txpkts={size - 4}", "--tx-first", "--burst=256", "--auto-start"),
        *("--stats-period=1",),
    ]
    log = directory / "front"
    with _process(back_end, far, directory / "back"):
        for n in range(ports):
            eventually("the socket", (directory / f"vdpa-{n}").exists)
        with _process(front_end, near, log):
            eventually("frames", lambda: _received(log) > 0)
            first, began = _next_report(log)
            time.sleep(MEASURED_S)
            last, ended = _next_report(log)
            return (last - first) / (ended - began)


def _next_report(log: Path) -> tuple[int, float]:
    """The counts of the report that comes next, and when it came."""
    before = log.read_text(errors="replace").count("Port statistics")
    eventually("a report", lambda: log.read_text(errors="replace").count("Port statistics") > before)
    return _received(log), time.monotonic()


def _received(log: Path) -> int:
    """The counts of the last complete report, of all ports."""
    reports = log.read_text(errors="replace").split("Port statistics")
    lines = reports[-2].splitlines() if len(reports) > 2 else []
    return sum(int(line.split("RX-packets:")[1].split()[0]) for line in lines if "RX-packets:" in line)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", help="an earlier vdpad, to compare the loopback with")
    options = parser.parse_args()
    vdpad = str(built("native/vdpad/vdpad", "native"))
    cpus = sorted(os.sched_getaffinity(0))[:2]
    near, far = cpus[0], cpus[-1]
    print("| ports | frame | this | peer | ratio |\n|---|---|---|---|---|")
    for ports, network, peer in ((2, "switch", "vhost PMD"), (1, "loopback", "vhost PMD"), (1, "loopback", "before")):
        for size in SIZES:
            rates: list[tuple[float, float]] = []
            for number in range(options.rounds if peer != "before" or options.before else 0):
                pair = [("this", 0.0), ("peer", 0.0)]
                for index in (0, 1) if number % 2 else (1, 0):
                    with tempfile.TemporaryDirectory(prefix="va-") as name:
                        directory = Path(name)
                        if index == 0:
                            command = _vdpad(vdpad, directory, network)
                        elif peer == "before":
                            command = _vdpad(options.before, directory, "")
                        else:
                            command = _peer(directory, ports, far)
                        pair[index] = (pair[index][0], _rate(command, directory, ports, size, (near, far)))
                rates.append((pair[0][1], pair[1][1]))
            if rates:
                ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
                ratio = statistics.median(a / b for a, b in rates)
                print(
                    f"| {network}, {ports} | {size} B | {ours / 1e6:.2f} M/s | {peer} {theirs / 1e6:.2f} M/s |"
                    f" {ratio:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
