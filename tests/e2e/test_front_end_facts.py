"""What the agent reports of real front ends: connected and configured are two things, and refusals have reasons."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.e2e.front_ends import GET_FEATURES, GET_INFLIGHT_FD, FrontEnd
from tests.e2e.test_device_service import _device, _status
from tests.processes import WITH_HTTP, AgentProcess, eventually, front_end, running, write_list
from vdpa_agent.serve.pb import device_service_pb2 as pb

Facts = tuple[bool, bool, int, int]

NONE: Facts = (False, False, 0, 4)
CONNECTED: Facts = (True, False, 0, 4)
TWO_OF_FOUR: Facts = (True, True, 2, 4)


@pytest.fixture
def agent(run_dir: Path, options: tuple[str, ...]) -> Iterator[AgentProcess]:
    write_list(run_dir / "pciList.dat", FOUR[:2])
    with running(run_dir, *options, WITH_HTTP) as started:
        started.wait_metric("vdpa_agent_devices", 2, state="ready")
        yield started


def _facts(device: pb.Device) -> Facts:
    return device.front_end_connected, device.front_end_configured, device.queue_pairs_in_use, device.queue_pairs


def _until(agent: AgentProcess, address: str, facts: Facts) -> None:
    eventually(f"{facts}", lambda: _facts(_device(agent, address)) == facts)


def _shown(agent: AgentProcess, command: str, *options: str) -> list[str]:
    """The words of the first device's line."""
    arguments = [sys.executable, "-m", "vdpa_agent", command, f"--address={agent.listen}", *options]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout
    return next(line.split() for line in printed.splitlines() if line.startswith(FOUR[0]))


def _row(agent: AgentProcess, name: str) -> str:
    """What a row of `status` says."""
    arguments = [sys.executable, "-m", "vdpa_agent", "status", f"--address={agent.listen}"]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout
    return next(line.removeprefix(name).strip() for line in printed.splitlines() if line.startswith(name))


def _gauges(agent: AgentProcess, address: str) -> Facts:
    connected = agent.metric("vdpa_agent_device_connected", pciAddr=address)
    used = agent.metric("vdpa_agent_device_queue_pairs_in_use", pciAddr=address)
    pairs = agent.metric("vdpa_agent_device_queue_pairs", pciAddr=address)
    assert connected is not None
    assert used is not None
    assert pairs is not None
    return bool(connected), used > 0, int(used), int(pairs)


def test_a_front_end_that_comes_is_configured_and_leaves(agent: AgentProcess) -> None:
    socket = agent.ask(FOUR[0])
    assert _facts(_device(agent, FOUR[0])) == _gauges(agent, FOUR[0]) == NONE
    assert _shown(agent, "list", "-o", "wide")[3:6] == ["-", "vdpa_sim", "0/4"]
    with FrontEnd(Path(socket)) as opened:
        opened.ask(GET_FEATURES)  # the socket is open, and nothing negotiated
        _until(agent, FOUR[0], CONNECTED)
        assert _gauges(agent, FOUR[0]) == CONNECTED
        assert _shown(agent, "list")[1:] == ["connected", socket, "connected"]
        assert _row(agent, "front ends") == "1 connected, 0 configured, 0 refused"
        assert _shown(agent, "top", "--once", "--interval=0.1")[1:4] == ["connected", "connected", "0/4"]
        # Neither does what one VF's front end does change the other's.
        assert _facts(_device(agent, FOUR[1])) == _gauges(agent, FOUR[1]) == NONE
    _until(agent, FOUR[0], NONE)
    with front_end(socket, "--queues=2", "--rate=1000") as front:
        front.wait_passing()
        _until(agent, FOUR[0], TWO_OF_FOUR)
        agent.wait_metric("vdpa_agent_device_queue_pairs_in_use", 2, pciAddr=FOUR[0])
        assert _gauges(agent, FOUR[0]) == TWO_OF_FOUR
        assert _shown(agent, "list", "-o", "wide")[3:6] == ["configured", "vdpa_sim", "2/4"]
        assert _shown(agent, "top", "--once", "--interval=0.1")[1:4] == ["connected", "configured", "2/4"]
        agent.wait_logged("front_end_configured", device=FOUR[0], queue_pairs=2)
        assert _row(agent, "front ends") == "1 connected, 1 configured, 0 refused"
        front.stop()
    _until(agent, FOUR[0], NONE)
    assert _gauges(agent, FOUR[0]) == NONE
    agent.wait_logged("front_end_unconfigured", device=FOUR[0])
    agent.wait_logged("front_end_left", count=2, device=FOUR[0])


def test_a_driver_that_stops_its_rings_stays_connected(agent: AgentProcess) -> None:
    with FrontEnd(Path(agent.ask(FOUR[0]))) as front:
        front.share()
        front.start_rings(4)
        _until(agent, FOUR[0], TWO_OF_FOUR)
        front.enable(2, on=False)  # as ethtool -L does in a guest
        _until(agent, FOUR[0], (True, True, 1, 4))
        front.stop_rings(4)
        _until(agent, FOUR[0], CONNECTED)
        front.start_rings(4)
        _until(agent, FOUR[0], TWO_OF_FOUR)


def test_what_testpmd_does(agent: AgentProcess, run_dir: Path) -> None:
    """DPDK's own testpmd, as users run it in a pod."""
    socket = agent.ask(FOUR[0])
    options = ["-l", "0,1", "--no-pci", "--no-telemetry", "--no-huge", "--no-shconf", "-m", "24"]
    device = f"--vdev=net_virtio_user0,path={socket},queues=2"
    testpmd = subprocess.Popen(
        ["dpdk-testpmd", *options, device, "--", "-i", "--rxq=2", "--txq=2", "--total-num-mbufs=2048", "--no-mlockall"],
        cwd=run_dir,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert testpmd.stdin is not None
    try:
        _until(agent, FOUR[0], TWO_OF_FOUR)
        testpmd.stdin.write(b"quit\n")
        testpmd.stdin.flush()
        _until(agent, FOUR[0], NONE)
    finally:
        testpmd.kill()
        testpmd.communicate()


def test_refusals_are_counted_by_device_and_reason(agent: AgentProcess) -> None:
    socket = Path(agent.ask(FOUR[0]))
    for _ in range(3):
        with FrontEnd(socket) as front:
            front.send(GET_INFLIGHT_FD, bytes(24))
            assert front.ended()
    agent.wait_metric("vdpa_agent_front_ends_refused_total", 3, pciAddr=FOUR[0], reason="request")
    assert agent.metric("vdpa_agent_front_ends_refused_total", pciAddr=FOUR[1], reason="request") is None
    assert dict(_device(agent, FOUR[0]).front_ends_refused) == {"request": 3}
    told = _status(agent).front_ends
    assert (told.connected, told.configured, told.refused) == (0, 0, 3)
    assert (told.last_refused_pci_address, told.last_refusal) == (FOUR[0], "request")
    assert 0 <= told.last_refusal_age.ToMilliseconds() < 60_000
    assert _row(agent, "front ends") == "0 connected, 0 configured, 3 refused"
    assert re.fullmatch(rf"{FOUR[0]}: request, [0-9]+ s ago", _row(agent, "last refused"))
    assert 1 <= agent.wait_logged("front_ends_refused", device=FOUR[0])["reasons"]["request"] <= 3
    write_list(agent.pci_list, FOUR[1:2])
    agent.wait_metric("vdpa_agent_devices", 1, state="ready")
    eventually("its series are gone", lambda: FOUR[0] not in agent.get("/metrics")[1])
