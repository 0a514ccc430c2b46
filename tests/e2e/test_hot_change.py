"""Devices that come and go, and what a front end of another device notices of it: nothing."""

from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.e2e.conftest import FOUR
from tests.processes import AgentProcess, eventually, front_end, running, write_list

CHANGES: Final = 200
POOL: Final = tuple(f"0000:83:{device:02x}.{function}" for device in range(2) for function in range(8))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [3])
def test_a_neighbour_loses_no_packet_over_200_random_changes(
    run_dir: Path, options: tuple[str, ...], seed: int
) -> None:
    random = Random(seed)
    present = set(POOL[:4])
    write_list(run_dir / "pciList.dat", [FOUR[0], *present])
    with running(run_dir, *options) as agent:
        agent.wait_logged("device_ready", count=1 + len(present))
        socket = str(run_dir / "vhost" / "vdpa-0")
        agent.wait_answer(FOUR[0], socket)  # the mapping is read a little later
        with front_end(socket, "--rate=10000", "--interval=0.1") as front:
            front.wait_passing()
            for change in range(CHANGES):
                address = random.choice(POOL)
                present ^= {address}
                write_list(agent.pci_list, random.sample([FOUR[0], *sorted(present)], 1 + len(present)))
                _wait(agent, f"change {change}", address, served=address in present)
            counts = front.stop()
        assert len(agent.log.named("daemon_started")) == 1
        assert not agent.log.named("device_failed")
        assert {address for address in POOL if agent.ask(address)} == present
    assert (counts["exit_code"], counts["lost"], counts["corrupt"], counts["outages"]) == (0, 0, 0, 0)
    assert counts["sent"] > CHANGES * 100


def _wait(agent: AgentProcess, change: str, address: str, *, served: bool) -> None:
    eventually(f"{change}: {address} served: {served}", lambda: bool(agent.ask(address)) == served)
