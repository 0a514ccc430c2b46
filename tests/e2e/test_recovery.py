"""What happens when the daemon dies, cannot start, or must not be managed."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from tests.e2e.conftest import FOUR
from tests.processes import (
    WITH_HTTP,
    AgentProcess,
    eventually,
    front_end,
    mapping_text,
    running,
    write_atomically,
)


def test_after_a_kill_nothing_dead_is_served_and_all_is_served_again(four: AgentProcess) -> None:
    sockets = {address: four.ask(address) for address in FOUR}
    pid = four.daemon_pid()
    os.kill(pid, signal.SIGKILL)
    four.wait_logged("daemon_ended", reason="killed by SIGKILL")
    assert {four.ask(address) for address in FOUR} == {""}
    assert not four.socket_list.exists()
    for address, path in sockets.items():
        four.wait_answer(address, path)
    assert four.daemon_pid() != pid
    with front_end(sockets[FOUR[0]], "--packets=1000") as front:
        assert front.result()["exit_code"] == 0


def test_front_ends_that_own_their_socket_pass_packets_again_by_themselves(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    (run_dir / "vhost").mkdir()
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    socket = str(run_dir / "vhost" / "vdpa-0")
    with running(run_dir, *options, "--vhost-mode=client") as agent:
        agent.wait_answer("0000:82:00.2", socket)
        with front_end(socket, "--server", "--rate=5000", "--interval=0.1", "--connect-timeout=20") as front:
            front.wait_passing()
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            agent.wait_logged("device_ready", count=2)
            before = len(front.lines.named("interval"))
            eventually(
                "packets after the restart",
                lambda: any(event["rate_pps"] > 1000 for event in front.lines.named("interval")[before:]),
            )
            counts = front.stop()
        assert counts["outages"] >= 1
        assert counts["corrupt"] == 0


def test_a_missing_daemon_ends_the_agent_with_3_and_the_remedy(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    agent = AgentProcess(run_dir, ["--vdpad=/nowhere/vdpad"], {})
    try:
        assert agent.process.wait(20) == 3
        agent.log.end()
        said = agent.log.raw[-1]
        assert said == (
            "vdpa-agent: /nowhere/vdpad is not an executable program; install vdpad or name it with --vdpad\n"
        )
    finally:
        agent.kill()


def test_refused_arguments_end_the_agent_with_3_and_the_daemons_words(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    agent = AgentProcess(run_dir, [*options, "--socket-group=no-such-group"], {})
    try:
        assert agent.process.wait(20) == 3
        agent.log.end()
        assert "refused its arguments" in agent.log.raw[-1]
        assert "no-such-group" in agent.log.raw[-1]
    finally:
        agent.kill()


def test_a_daemon_that_dies_at_once_is_started_again_with_growing_pauses(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    daemon = run_dir / "dies"
    daemon.write_text("#!/bin/sh\necho 'error: no hugepages left' >&2\nexit 7\n")
    daemon.chmod(0o755)
    with running(run_dir, f"--vdpad={daemon}") as agent:
        agent.wait_logged("daemon_restart_waits", count=3)
        waits = [event["delay_s"] for event in agent.log.named("daemon_restart_waits")[:3]]
        for wait, plain in zip(waits, (1, 2, 4), strict=True):
            assert 0.8 * plain <= wait <= 1.2 * plain
        ended = agent.log.named("daemon_ended")[0]
        assert (ended["reason"], ended["last_lines"]) == (
            "exit code 7: no hugepages left",
            ["error: no hugepages left"],
        )
        assert agent.ask("0000:82:00.2") == ""


def test_a_killed_agent_leaves_no_daemon_and_no_obstacle(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    agent = AgentProcess(run_dir, options, {})
    try:
        agent.wait_logged("device_ready")
        pid = agent.daemon_pid()
    finally:
        agent.kill()
    eventually("the daemon's end", lambda: not _alive(pid), timeout_s=1)
    with running(run_dir, *options) as second:
        second.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))


def test_only_a_mapping_means_that_somebody_else_owns_the_sockets(run_dir: Path) -> None:
    write_atomically(run_dir / "socketList.dat", mapping_text({"0000:82:00.2": "/v/foreign"}))
    with running(run_dir, "--vdpad=/nowhere/vdpad") as agent:
        agent.wait_answer("0000:82:00.2", "/v/foreign")
        assert not agent.log.named("daemon_started")


def test_a_device_list_that_comes_later_makes_the_agent_manage(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "socketList.dat", mapping_text({"0000:82:00.2": "/v/foreign"}))
    with running(run_dir, *options) as agent:
        agent.wait_answer("0000:82:00.2", "/v/foreign")
        write_atomically(agent.pci_list, "0000:82:00.2\n")
        agent.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))


def test_daemon_none_never_manages(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    write_atomically(run_dir / "socketList.dat", mapping_text({"0000:82:00.3": "/v/foreign"}))
    with running(run_dir, "--daemon=none", "--vdpad=/nowhere/vdpad") as agent:
        agent.wait_answer("0000:82:00.3", "/v/foreign")
        assert not agent.log.named("daemon_started")


def test_a_second_agent_is_sent_away_and_the_first_answers_on(four: AgentProcess, options: tuple[str, ...]) -> None:
    second = AgentProcess(four.directory, options, {})
    try:
        assert second.process.wait(20) == 100
        second.log.end()
        assert f"process {four.process.pid} on {socket.gethostname()}, holds {four.socket_list}" in second.log.raw[-1]
    finally:
        second.kill()
    assert four.ask(FOUR[0]).endswith("vdpa-0")


def test_a_second_agent_with_a_socket_of_its_own_takes_nothing_from_the_first(
    four: AgentProcess, options: tuple[str, ...]
) -> None:
    before = four.socket_list.read_text()
    second = AgentProcess(four.directory, [*options, f"--listen={four.directory / 'second.sock'}"], {})
    try:
        assert second.process.wait(20) == 100
        second.log.end()
        assert f"holds {four.socket_list}; stop it or choose another --socket-list" in second.log.raw[-1]
    finally:
        second.kill()
    assert four.socket_list.read_text() == before
    assert not list(four.directory.glob("second.sock*"))
    # Only one that manages is in the way: another one may serve the same mapping.
    reader = [*options, f"--listen={four.directory / 'second.sock'}", "--daemon=none"]
    third = AgentProcess(four.directory, reader, {})
    try:
        third.wait_logged("role_decided", role="serving")
        third.wait_logged("listening")
        assert third.stop() == 0
    finally:
        third.kill()


def test_settings_come_from_the_environment_too(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    settings = {"VDPA_AGENT_SOCKET_NAMING": "pci", "VDPA_AGENT_SIMULATE": "true", "VDPA_AGENT_MEMORY": "none"}
    with running(run_dir, options[-1], environment=settings) as agent:
        agent.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0000:82:00.2"))


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_mapping_that_a_killed_agent_left_is_not_taken_for_anothers(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    agent = AgentProcess(run_dir, options, {})
    try:
        agent.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))
        pid = agent.daemon_pid()
    finally:
        agent.kill()
    eventually("the daemon's end", lambda: not _alive(pid))
    (run_dir / "pciList.dat").unlink()
    # Sometimes the daemon notices the agent's end before it is killed, and takes both away.
    path = run_dir / "vhost" / "vdpa-0"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    write_atomically(run_dir / "socketList.dat", mapping_text({"0000:82:00.2": str(path)}))
    with running(run_dir, *options, "--hold-timeout=0", WITH_HTTP) as second:
        second.wait_metric("vdpa_agent_role", 1, role="waiting")
        assert second.ask("0000:82:00.2") == ""
        write_atomically(second.pci_list, "0000:82:00.2\n")
        second.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))


def test_a_removed_socket_is_noticed_at_once_and_made_again(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    path = run_dir / "vhost" / "vdpa-0"
    with running(run_dir, *options, "--hold-timeout=0") as agent:
        agent.wait_answer("0000:82:00.2", str(path))
        for count in (1, 2, 3):
            path.unlink()
            agent.wait_logged("device_failed", count=count, reason=f"the socket file {path} is gone")
            agent.wait_answer("0000:82:00.2", str(path))
            assert path.is_socket()
