"""What one vdpad for each device costs beside one for all: memory and start, at 4, 16 and 64 simulated devices.

usage: python -m bench.isolation
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from tests.processes import AgentProcess, built, eventually, running, write_list

ROUNDS: Final = 3
COUNTS: Final = (4, 16, 64)
START_S: Final = 300.0
"""When a start is given up."""


class Cost(NamedTuple):
    """What was measured, the median of the rounds.

    Attributes:
        start_s: from the list's rename until every device is answered with its socket.
        pss_mib: of all daemons together, shared pages counted once.
        threads: of all daemons together.
        agent_mib: of the agent.
    """

    start_s: float
    pss_mib: float
    threads: int
    agent_mib: float


def main() -> None:
    """Prints the table of docs/deployment.md."""
    print("| devices | `--isolation` | all served after | memory of the daemons | their threads | the agent's memory |")
    print("|---|---|---|---|---|---|")
    for devices in COUNTS:
        for isolation in ("shared", "device"):
            cost = Cost(
                *map(statistics.median, zip(*(_measure(devices, isolation) for _ in range(ROUNDS)), strict=True))
            )
            print(
                f"| {devices} | {isolation} | {cost.start_s:.1f} s | {cost.pss_mib:.0f} MiB | {cost.threads} |"
                f" {cost.agent_mib:.0f} MiB |",
                flush=True,
            )


def _measure(devices: int, isolation: str) -> Cost:
    addresses = [f"0000:{0x80 + number // 256:02x}:{number // 8 % 32:02x}.{number % 8}" for number in range(devices)]
    with tempfile.TemporaryDirectory() as name:
        vdpad = built("native/vdpad/vdpad", "native")
        options = ("--simulate", "--memory=none", f"--vdpad={vdpad}", f"--isolation={isolation}")
        with running(Path(name), *options) as agent:
            began = time.monotonic()
            write_list(agent.pci_list, addresses)
            for address in addresses:
                eventually(address, lambda address=address: agent.ask(address), timeout_s=START_S)  # type: ignore[misc]
            start_s = time.monotonic() - began
            daemons = _daemons(agent)
            return Cost(
                start_s,
                sum(map(_pss_mib, daemons)),
                sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in daemons),
                _pss_mib(agent.process.pid),
            )


def _daemons(agent: AgentProcess) -> list[int]:
    return [int(event["pid"]) for event in agent.log.named("daemon_started")]


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    message = f"no Pss of process {pid}"
    raise AssertionError(message)


if __name__ == "__main__":
    main()
