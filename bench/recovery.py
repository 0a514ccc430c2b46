"""Measures recovery: from kill -9 of the daemon to all devices served again, and to packets again in client mode."""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.figures import ADDRESSES, spread
from tests.processes import AgentProcess, built, eventually, front_end, running, write_list

RECOVERED_S: Final = 60.0

APART_S: Final = 16.0
"""From kill to kill: the daemon was healthy for 10 s before each, and five kills take more than a minute, so that none
is one of a crash loop. Any other kill makes the agent wait before it starts the daemon again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all rows and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--kills", type=int, default=50, help=f"how often to kill the daemon, per row, {APART_S:g} s apart"
    )
    options = parser.parse_args(argv)
    rows: dict[str, Callable[[], dict[str, float]]] = {
        "kill -9 to all served, 4 devices, s": lambda: to_served(4, options.kills),
        "kill -9 to all served, 64 devices, s": lambda: to_served(64, options.kills),
        "kill -9 to packets again, client mode, s": lambda: to_packets(options.kills),
    }
    figures = {}
    for name, row in rows.items():
        figures[name] = row()
        if not options.json:
            print(f"{name:42}  " + "  ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    if options.json:
        print(json.dumps(figures, indent=2))
    return 0


def to_served(devices: int, kills: int) -> dict[str, float]:
    """From a kill until each device's socket is answered again."""
    times = []
    with _served(devices) as agent:
        for number in range(1, kills + 1):
            began = _kill_after_health(agent, number)
            agent.wait_logged("daemon_ended", count=number)
            for address in ADDRESSES[:devices]:
                _wait_served(agent, address)
            times.append(time.monotonic() - began)
    return spread(times, 1)


def to_packets(kills: int) -> dict[str, float]:
    """As the front end itself measures it, from the last packet before to the first one after."""
    times = []
    with _served(4, "--vhost-mode=client") as agent:
        socket = agent.ask(ADDRESSES[0])
        with front_end(socket, "--server", "--rate=5000", "--interval=0.1", "--connect-timeout=20") as front:
            front.wait_passing()
            for number in range(1, kills + 1):
                _kill_after_health(agent, number)
                recovered = front.lines.wait(front.process, "recovered", count=number)
                times.append(recovered["recovered_after_ms"] / 1000)
    return spread(times, 1)


def _kill_after_health(agent: AgentProcess, number: int) -> float:
    """Kills the daemon of that number once it has run for long enough; returns when, in seconds of monotonic()."""
    agent.wait_logged("daemon_running", count=number)
    time.sleep(APART_S)
    began = time.monotonic()
    os.kill(agent.daemon_pid(), signal.SIGKILL)
    return began


@contextmanager
def _served(devices: int, *arguments: str) -> Iterator[AgentProcess]:
    vdpad = built("native/vdpad/vdpad", "native")
    with tempfile.TemporaryDirectory(prefix="va-") as name:
        directory = Path(name)
        (directory / "vhost").mkdir()
        write_list(directory / "pciList.dat", ADDRESSES[:devices])
        with running(directory, "--simulate", "--memory=none", f"--vdpad={vdpad}", *arguments) as agent:
            for address in ADDRESSES[:devices]:
                _wait_served(agent, address)
            yield agent


def _wait_served(agent: AgentProcess, address: str) -> None:
    eventually(address, lambda: agent.ask(address), timeout_s=RECOVERED_S)


if __name__ == "__main__":
    sys.exit(main())
