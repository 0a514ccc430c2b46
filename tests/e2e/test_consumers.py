"""Real consumers of a VF's socket: QEMU with a Linux guest, and DPDK's testpmd with all sorts of rings."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.e2e.consumers import Frames, Guest, guest, virtio_user
from tests.processes import PATIENCE_S, WITH_HTTP, AgentProcess, eventually, running, write_list

pytestmark = pytest.mark.timeout(600)  # of an emulated machine on a busy one

ONE = FOUR[0]
FRAMES = 1500  # so that there is one of each size
PACKETS = 10_000


@contextmanager
def _served(run_dir: Path, *options: str) -> Iterator[AgentProcess]:
    """An agent with one software device."""
    (run_dir / "vhost").mkdir()
    write_list(run_dir / "pciList.dat", [ONE])
    with running(run_dir, *options, WITH_HTTP) as agent:
        _wait_served(agent)
        yield agent


@pytest.fixture
def listening(run_dir: Path, options: tuple[str, ...]) -> Iterator[AgentProcess]:
    """vdpad listens on the socket."""
    with _served(run_dir, *options) as agent:
        yield agent


@pytest.fixture
def connecting(run_dir: Path, options: tuple[str, ...]) -> Iterator[AgentProcess]:
    """vdpad connects to the socket, on which the front end listens."""
    with _served(run_dir, *options, "--vhost-mode=client") as agent:
        yield agent


def _socket(agent: AgentProcess) -> str:
    return str(agent.directory / "vhost" / "vdpa-0")


def _wait_served(agent: AgentProcess) -> None:
    agent.wait_answer(ONE, _socket(agent), timeout_s=2 * PATIENCE_S)


def _counted(agent: AgentProcess) -> tuple[int, int]:
    """The packets that the front end received and sent, as vdpad counts them."""
    labels = {"pciAddr": ONE, "statistic": "packets"}
    received, sent = (
        sum(agent.metric("vdpa_agent_device_statistic_total", queue=str(queue), **labels) or 0 for queue in queues)
        for queues in (range(0, 8, 2), range(1, 8, 2))
    )
    return int(received), int(sent)


def _kill_daemon(agent: AgentProcess) -> None:
    """Kills vdpad, and waits until the agent serves the device by another one."""
    starts = len(agent.log.named("daemon_started"))
    os.kill(agent.daemon_pid(), signal.SIGKILL)
    agent.wait_logged("daemon_started", count=starts + 1)
    _wait_served(agent)


def _all_frames_return(machine: Guest) -> None:
    assert machine.frames(FRAMES) == Frames(sent=FRAMES, returned=FRAMES, corrupt=0)


def test_a_guest_through_all_that_befalls_it(listening: AgentProcess, run_dir: Path) -> None:
    with guest(_socket(listening), run_dir, chardev="reconnect=1", queues=2) as machine:
        machine.wait_up()
        _all_frames_return(machine)
        # Guest, kernel and device agree on every packet, those of the kernel's own included.
        eventually("equal counts", lambda: machine.packets() == _counted(listening))
        machine.say("reboot -f")
        machine.wait_up()
        _all_frames_return(machine)
        _kill_daemon(listening)
        machine.wait_passing()
        _all_frames_return(machine)
    # It was killed; the next one finds the socket as the first one did.
    eventually("the end of the connection", lambda: listening.metric("vdpa_agent_device_connected", pciAddr=ONE) == 0)
    with guest(_socket(listening), run_dir) as machine:
        machine.wait_up()
        _all_frames_return(machine)


def test_a_guest_that_owns_its_socket_outlives_its_back_end(connecting: AgentProcess, run_dir: Path) -> None:
    with guest(_socket(connecting), run_dir, chardev="server=on") as machine:
        machine.wait_up()
        _all_frames_return(machine)
        _kill_daemon(connecting)
        machine.wait_passing()
        _all_frames_return(machine)


@pytest.mark.parametrize(
    ("virtio", "queues"),
    [
        ("", 1),
        (",mrg_rxbuf=0", 1),
        (",in_order=1", 1),
        (",packed_vq=1", 1),  # not offered: split it is
        (",queue_size=64", 1),
        ("", 2),
    ],
)
def test_testpmd(listening: AgentProcess, run_dir: Path, virtio: str, queues: int) -> None:
    with virtio_user(_socket(listening), run_dir, virtio=virtio, queues=queues) as application:
        application.wait_received(PACKETS)
        _agree(application.stop(), listening)


def test_testpmd_that_owns_its_socket_outlives_its_back_end(connecting: AgentProcess, run_dir: Path) -> None:
    with virtio_user(_socket(connecting), run_dir, virtio=",server=1") as application:
        application.wait_received(PACKETS)
        _kill_daemon(connecting)
        application.wait_received(application.received() + PACKETS)
        application.stop()


def _agree(totals: tuple[int, int], agent: AgentProcess) -> None:
    """What testpmd has got is what the device gave it, and the device gave no more than testpmd sent."""
    received, sent = totals
    given, taken = _counted(agent)
    assert PACKETS <= received <= given == taken <= sent
