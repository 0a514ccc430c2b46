"""Packets a second of a simulated VF beside DPDK's vhost PMD; the front end of both is testpmd's virtio-user.

usage: python -m bench.rates [--rounds N] [--seconds N] [--sizes N...] [--pairs N...]
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Final

from tests.e2e.consumers import Program
from tests.processes import built, eventually

DEVICE: Final = "0000:82:00.2"
SIZES: Final = (64, 1518)
PAIRS: Final = (1, 4)
PLACES: Final = ("apart", "on the worker's CPU")
"""Where the front end's busy thread is pinned to: where the other end was not to be seen, or where it was."""

SETTLED: Final = 1
"""How many seconds pass before a rate counts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of docs/benchmark.md."""
    parser = argparse.ArgumentParser(prog="python -m bench.rates", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="how long each run counts")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the frames, in bytes")
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS, help="how many queue pairs")
    options = parser.parse_args(argv)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        print("two CPUs are needed: one for each end's busy thread", file=sys.stderr)
        return 1
    print(
        "| frame | queue pairs | the front end's thread | simulated VF, Mpps | vhost PMD, Mpps | ratio | all ratios |"
    )
    print("|---|---|---|---|---|---|---|")
    for size, pairs, place in product(options.sizes, options.pairs, PLACES):
        rounds = [
            (_simulated(size, pairs, place, cpus, options.seconds), _vhost_pmd(size, pairs, cpus, options.seconds))
            for _ in range(options.rounds)
        ]
        ratios = [ours / theirs for ours, theirs in rounds]
        ours, theirs = (statistics.median(rates) / 1e6 for rates in zip(*rounds, strict=True))
        print(
            f"| {size} B | {pairs} | {place} | {ours:.2f} | {theirs:.2f} | {statistics.median(ratios):.2f} |"
            f" {', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))} |",
            flush=True,
        )
    return 0


def _simulated(size: int, pairs: int, place: str, cpus: Sequence[int], seconds: int) -> float:
    """The rate by vdpad, whose worker is not pinned."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        back = [
            *(str(built("native/vdpad/vdpad", "native")), "--simulate", "--memory=none", f"--socket-dir={directory}"),
            *(f"--socket-list={directory / 'socketList.dat'}", DEVICE),
        ]
        with _gone_at_the_end(Program(back, directory)) as vdpad:
            vdpad.wait("served at")
            with _front_end(str(directory / "vdpa-0"), directory, size, pairs, cpus) as front:
                _wait_seconds(front, 1)
                if place != PLACES[0]:
                    worker = _cpu(_thread(vdpad.process.pid, "sim-"))
                    os.sched_setaffinity(_thread(front.process.pid, "worker"), {worker})
                return _rate(front, seconds)


def _vhost_pmd(size: int, pairs: int, cpus: Sequence[int], seconds: int) -> float:
    """The rate by a testpmd that sends back what it gets, each end's busy thread on a CPU of its own."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        socket = directory / "vhost"
        back = [
            *_testpmd(f"0@{cpus[0]},1@{cpus[0]}", f"--vdev=net_vhost0,iface={socket},queues={pairs}", pairs),
            *("--forward-mode=io", "--port-topology=loop", "--auto-start"),
        ]
        with _gone_at_the_end(Program(back, directory)):
            eventually("the socket", socket.exists)
            with _front_end(str(socket), directory, size, pairs, cpus) as front:
                return _rate(front, seconds)


@contextmanager
def _front_end(socket: str, directory: Path, size: int, pairs: int, cpus: Sequence[int]) -> Iterator[Program]:
    """A testpmd that sends as fast as it can; its busy thread is on the second CPU."""
    command = [
        *_testpmd(f"0@{cpus[0]},1@{cpus[1]}", f"--vdev=net_virtio_user0,path={socket},queues={pairs}", pairs),
        *("--forward-mode=flowgen", f"--txpkts={size}", "--auto-start"),
    ]
    with _gone_at_the_end(Program(command, directory)) as front:
        yield front


def _testpmd(lcores: str, device: str, pairs: int) -> list[str]:
    return [
        *("dpdk-testpmd", f"--lcores={lcores}", "--no-pci", "--no-telemetry", "--no-huge", "--no-shconf", "-m", "64"),
        *(device, "--", "--total-num-mbufs=8192", "--no-mlockall", "--stats-period=1"),
        *(f"--rxq={pairs}", f"--txq={pairs}"),
    ]


@contextmanager
def _gone_at_the_end(program: Program) -> Iterator[Program]:
    try:
        yield program
    finally:
        program.kill()


def _rates(front: Program) -> list[int]:
    """The packets that came back in each second so far."""
    return [int(found[1]) for found in front.printed(r"Rx-pps:\s+(\d+)")]


def _wait_seconds(front: Program, seconds: int) -> None:
    """Waits until packets have come back in so many seconds."""
    eventually("packets", lambda: sum(rate > 0 for rate in _rates(front)) >= seconds, timeout_s=60)


def _rate(front: Program, seconds: int) -> float:
    _wait_seconds(front, sum(rate > 0 for rate in _rates(front)) + SETTLED + seconds)
    return statistics.median(_rates(front)[-seconds:])


def _thread(pid: int, name: str) -> int:
    """The thread with this in its name; DPDK's releases do not name theirs alike."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if name in (task / "comm").read_text():
            return int(task.name)
    message = f"process {pid} has no thread {name}"
    raise AssertionError(message)


def _cpu(thread: int) -> int:
    """The CPU on which a thread ran last."""
    return int(Path(f"/proc/{thread}/stat").read_text().rpartition(")")[2].split()[36])


if __name__ == "__main__":
    sys.exit(main())
