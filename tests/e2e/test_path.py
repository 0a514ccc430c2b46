"""The whole path: from a list of VFs to packets through the socket that gRPC named."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.processes import AgentProcess, built, eventually, front_end, running, write_atomically


def test_from_a_list_to_packets(run_dir: Path, each_build: tuple[str, ...]) -> None:
    with running(run_dir, *each_build) as agent:
        assert agent.ask(FOUR[0]) == ""
        write_atomically(agent.pci_list, "".join(f"{address}\n" for address in FOUR))
        for number, address in enumerate(FOUR):
            agent.wait_answer(address, str(run_dir / "vhost" / f"vdpa-{number}"))
        assert agent.ask("0000:87:00.5") == ""
        mapping = json.loads(agent.socket_list.read_text())
        assert {entry["pciAddress"]: entry["socketpath"] for entry in mapping} == {
            address: agent.ask(address) for address in FOUR
        }
        with front_end(agent.ask(FOUR[2]), "--packets=20000", "--rate=20000") as front:
            counts = front.result()
        assert (counts["sent"], counts["received"], counts["lost"], counts["corrupt"]) == (20000, 20000, 0, 0)
        assert counts["exit_code"] == 0


def test_several_queue_pairs(four: AgentProcess) -> None:
    with front_end(four.ask(FOUR[0]), "--packets=20000", "--rate=20000", "--queues=2") as front:
        counts = front.result()
    assert (counts["exit_code"], counts["lost"]) == (0, 0)
    assert all(queue["received"] > 0 for queue in counts["per_queue"])
    assert len(counts["per_queue"]) == 2


def test_devices_come_and_go_without_touching_the_others(four: AgentProcess) -> None:
    pid = four.daemon_pid()
    with front_end(four.ask(FOUR[0]), "--rate=10000", "--interval=0.1") as front:
        front.wait_passing()
        for round_number in range(10):
            write_atomically(four.pci_list, "".join(f"{address}\n" for address in (*FOUR, "0000:82:00.7")))
            four.wait_answer("0000:82:00.7", str(four.directory / "vhost" / "vdpa-4"))
            write_atomically(four.pci_list, "".join(f"{address}\n" for address in FOUR))
            four.wait_answer("0000:82:00.7", "")
            four.wait_logged("device_removed", count=round_number + 1)
        counts = front.stop()
    assert (counts["lost"], counts["corrupt"], counts["exit_code"]) == (0, 0, 0)
    assert counts["received"] > 1000
    assert four.daemon_pid() == pid
    assert not (four.directory / "vhost" / "vdpa-4").exists()


def test_a_device_keeps_its_socket_when_others_leave(four: AgentProcess) -> None:
    sockets = {address: four.ask(address) for address in FOUR}
    write_atomically(four.pci_list, f"{FOUR[3]}\n{FOUR[1]}\n0000:82:01.0\n")
    four.wait_answer("0000:82:01.0", str(four.directory / "vhost" / "vdpa-4"))  # no number is given to another
    assert four.ask(FOUR[0]) == four.ask(FOUR[2]) == ""
    assert (four.ask(FOUR[1]), four.ask(FOUR[3])) == (sockets[FOUR[1]], sockets[FOUR[3]])


def test_a_list_in_the_older_place_is_a_request(run_dir: Path, options: tuple[str, ...]) -> None:
    with running(run_dir, *options) as agent:
        agent.socket_list.write_text("0000:82:00.2\n")
        agent.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))
        assert agent.pci_list.read_text() == "0000:82:00.2\n"
        # Once more, now in place of a living mapping, and by an editor's rename.
        write_atomically(agent.socket_list, "0000:82:00.2\n0000:82:00.3\n")
        agent.wait_answer("0000:82:00.3", str(run_dir / "vhost" / "vdpa-1"))
        assert agent.ask("0000:82:00.2") == str(run_dir / "vhost" / "vdpa-0")
        assert agent.pci_list.read_text() == "0000:82:00.2\n0000:82:00.3\n"


def test_a_bad_list_changes_nothing_and_is_told_of(four: AgentProcess) -> None:
    sockets = {address: four.ask(address) for address in FOUR}
    write_atomically(four.pci_list, f"{FOUR[0]}\n\nens1f0v0\n")
    refusal = four.wait_logged("file_refused", file=str(four.pci_list))
    assert refusal["reason"].startswith("line 3: 'ens1f0v0' is not a PCI address")
    assert {address: four.ask(address) for address in FOUR} == sockets


def test_socket_mode_is_applied_again_after_each_restart(run_dir: Path, options: tuple[str, ...]) -> None:
    (run_dir / "pciList.dat").write_text("0000:82:00.2\n")
    path = run_dir / "vhost" / "vdpa-0"
    with running(run_dir, *options, "--socket-mode=0622", f"--socket-group={os.getgid()}") as agent:
        for restarts in (1, 2):
            agent.wait_logged("device_ready", count=restarts)
            agent.wait_answer("0000:82:00.2", str(path))
            assert stat.S_IMODE(path.stat().st_mode) == 0o622
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            eventually("the death", lambda: agent.ask("0000:82:00.2") == "")
        agent.wait_logged("device_ready", count=3)


def test_a_stale_socket_is_replaced_and_a_live_one_left_alone(run_dir: Path, options: tuple[str, ...]) -> None:
    vhost = run_dir / "vhost"
    vhost.mkdir()
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX) as live:
        stale.bind(str(vhost / "vdpa-0"))
        stale.close()
        live.bind(str(vhost / "vdpa-1"))
        live.listen()
        (run_dir / "pciList.dat").write_text("0000:82:00.2\n0000:82:00.3\n")
        with running(run_dir, *options) as agent:
            agent.wait_answer("0000:82:00.2", str(vhost / "vdpa-0"))
            refusal = agent.wait_logged("device_failed", device="0000:82:00.3")
            assert str(vhost / "vdpa-1") in refusal["reason"]
            assert agent.ask("0000:82:00.3") == ""
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(vhost / "vdpa-1"))
    live_gone = vhost / "vdpa-1"
    assert live_gone.exists()


def test_daemon_by_hand(run_dir: Path) -> None:
    process = subprocess.Popen(
        [
            built("native/vdpad/vdpad", "native"),
            "--memory=none",
            "--simulate",
            f"--socket-dir={run_dir}",
            f"--socket-list={run_dir / 'socketList.dat'}",
            "0000:82:00.2",
            "82:00.3",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually("the mapping", (run_dir / "socketList.dat").exists)
        eventually("both devices", lambda: len(json.loads((run_dir / "socketList.dat").read_text())) == 2)
        with front_end(str(run_dir / "vdpa-1"), "--packets=1000") as front:
            assert front.result()["exit_code"] == 0
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0, said
        assert list(run_dir.iterdir()) == []
    finally:
        process.kill()
        process.wait()


BLOCKING = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_signals_that_were_blocked_stop_it_too(run_dir: Path) -> None:
    with running(run_dir, "--example-data", under=(sys.executable, "-c", BLOCKING)) as agent:
        assert agent.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_stops_in_order(run_dir: Path, options: tuple[str, ...], number: signal.Signals) -> None:
    (run_dir / "pciList.dat").write_text("0000:82:00.2\n")
    with running(run_dir, *options) as agent:
        agent.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))
        pid = agent.daemon_pid()
        assert agent.stop(number) == 0
        assert not Path(f"/proc/{pid}").exists()
        assert sorted(path.name for path in run_dir.iterdir()) == [
            ".pciList.last",
            "devices",
            "pciList.dat",
            "socketNames.json",
            "vhost",
        ]
        assert list((run_dir / "vhost").iterdir()) == []
        ended = agent.log.named("daemon_ended")
        assert [event["reason"] for event in ended] == ["exit code 0"]
