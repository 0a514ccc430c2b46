"""Supervision of the real daemon: drains, hangs, lost sockets, names, and any other program in its place."""

import os
import shutil
import signal
import time
from pathlib import Path

from tests.e2e.conftest import FOUR
from tests.processes import AgentProcess, built, eventually, front_end, running, write_atomically


def _list(agent: AgentProcess, *addresses: str) -> None:
    write_atomically(agent.pci_list, "".join(f"{address}\n" for address in addresses))


def test_a_device_in_use_is_kept_for_the_drain_timeout(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n{FOUR[1]}\n")
    with running(run_dir, *options, "--drain-timeout=2") as agent:
        agent.wait_logged("device_ready", count=2)
        agent.wait_answer(FOUR[0], str(run_dir / "vhost" / "vdpa-0"))
        with front_end(str(run_dir / "vhost" / "vdpa-0"), "--rate=5000", "--interval=0.1") as front:
            front.wait_passing()
            began = time.monotonic()
            _list(agent, FOUR[1])
            agent.wait_logged("device_drains", device=FOUR[0])
            assert agent.ask(FOUR[0]) == ""
            passed = len(front.lines.named("interval"))
            eventually("a second of packets", lambda: len(front.lines.named("interval")) >= passed + 10)
            rates = [event["rate_pps"] for event in front.lines.named("interval")[passed : passed + 10]]
            assert sum(rates) / len(rates) > 1000
            assert not agent.log.named("device_removed")
            agent.wait_logged("device_removed", device=FOUR[0])
            assert time.monotonic() - began >= 2
        assert agent.ask(FOUR[1]) == str(run_dir / "vhost" / "vdpa-1")
        assert len(agent.log.named("daemon_started")) == 1


def test_a_device_that_comes_back_during_its_drain_loses_nothing(four: AgentProcess) -> None:
    socket = four.ask(FOUR[0])
    with front_end(socket, "--rate=5000", "--interval=0.1") as front:
        front.wait_passing()
        _list(four, *FOUR[1:])
        four.wait_logged("device_drains", device=FOUR[0])
        four.wait_answer(FOUR[0], "")
        _list(four, *FOUR)
        four.wait_answer(FOUR[0], socket)
        counts = front.stop()
    assert (counts["exit_code"], counts["lost"]) == (0, 0)
    assert not four.log.named("device_removed")


def test_a_device_goes_as_soon_as_its_front_end_has_left(four: AgentProcess) -> None:
    with front_end(four.ask(FOUR[0]), "--rate=5000", "--interval=0.1") as front:
        front.wait_passing()
        _list(four, *FOUR[1:])
        four.wait_logged("device_drains", device=FOUR[0])
        front.stop()
        four.wait_logged("device_removed", device=FOUR[0])  # before the drain time-out, which is longer than a wait


def test_a_hung_daemon_is_unhealthy_then_killed_then_replaced(four: AgentProcess) -> None:
    pid = four.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    four.wait_logged("daemon_unhealthy")
    assert {four.ask(address) for address in FOUR} == {""}
    eventually("the kill", lambda: four.log.named("daemon_killed"), timeout_s=40)
    assert time.monotonic() - began > 25
    for number, address in enumerate(FOUR):
        four.wait_answer(address, str(four.directory / "vhost" / f"vdpa-{number}"))
    assert four.daemon_pid() != pid


def test_a_daemon_that_hung_for_a_while_goes_on(four: AgentProcess) -> None:
    pid = four.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    four.wait_logged("daemon_unhealthy")
    os.kill(pid, signal.SIGCONT)
    four.wait_logged("daemon_healthy")
    four.wait_answer(FOUR[0], str(four.directory / "vhost" / "vdpa-0"))
    assert len(four.log.named("daemon_started")) == 1


def test_a_removed_socket_is_not_promised_and_is_made_again(four: AgentProcess) -> None:
    socket = Path(four.ask(FOUR[1]))
    socket.unlink()
    failure = four.wait_logged("device_failed", device=FOUR[1])
    assert failure["reason"] == f"the socket file {socket} is gone"
    four.wait_answer(FOUR[1], str(socket))
    with front_end(str(socket), "--packets=1000") as front:
        assert front.result()["exit_code"] == 0
    assert len(four.log.named("daemon_started")) == 1


def test_a_removed_socket_directory_is_made_again(four: AgentProcess) -> None:
    shutil.rmtree(four.directory / "vhost")
    for address in FOUR:
        four.wait_logged("device_failed", device=address)
    for number, address in enumerate(FOUR):
        four.wait_answer(address, str(four.directory / "vhost" / f"vdpa-{number}"))


def test_a_removed_mapping_is_written_again(four: AgentProcess) -> None:
    socket = four.ask(FOUR[0])
    four.socket_list.unlink()
    eventually("the mapping", four.socket_list.exists)
    four.wait_answer(FOUR[0], socket)
    assert len(four.log.named("daemon_started")) == 1


def test_numbers_stay_with_their_devices_over_restarts_of_daemon_and_agent(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    write_atomically(run_dir / "pciList.dat", "".join(f"{address}\n" for address in FOUR))
    with running(run_dir, *options) as agent:
        agent.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))
    write_atomically(run_dir / "pciList.dat", f"{FOUR[3]}\n0000:83:00.0\n{FOUR[1]}\n")
    with running(run_dir, *options) as agent:
        for restart in (1, 2):
            agent.wait_logged("device_ready", count=3 * restart)
            agent.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))
            agent.wait_answer(FOUR[1], str(run_dir / "vhost" / "vdpa-1"))
            agent.wait_answer("0000:83:00.0", str(run_dir / "vhost" / "vdpa-4"))
            if restart == 1:
                os.kill(agent.daemon_pid(), signal.SIGKILL)
    agent_process = AgentProcess(run_dir, options, {})
    try:
        agent_process.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))
    finally:
        agent_process.kill()
    with running(run_dir, *options) as agent:
        agent.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))


def test_nonsense_in_the_names_file_numbers_anew(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n")
    for content in ("[", "[1]", '{"x": "vdpa-1"}', f'{{"{FOUR[0]}": "../../etc"}}', f'{{"{FOUR[0]}": 7}}'):
        (run_dir / "socketNames.json").write_text(content)
        with running(run_dir, *options) as agent:
            agent.wait_answer(FOUR[0], str(run_dir / "vhost" / "vdpa-0"))
            agent.wait_logged("names_unreadable")


def test_a_daemon_that_cannot_live_is_in_a_crash_loop_and_tried_on(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n")
    daemon = run_dir / "dies"
    daemon.write_text("#!/bin/sh\nexit 1\n")
    daemon.chmod(0o755)
    with running(run_dir, "--simulate", "--memory=none", f"--vdpad={daemon}") as agent:
        eventually("a crash loop", lambda: agent.log.named("daemon_crash_loop"), timeout_s=40)
        assert len(agent.log.named("daemon_started")) == 5
        daemon.unlink()
        daemon.write_text(f'#!/bin/sh\nexec {built("native/vdpad/vdpad", "native")} --simulate "$@"\n')
        daemon.chmod(0o755)
        eventually("the recovery", lambda: agent.ask(FOUR[0]), timeout_s=40)


def test_any_other_program_is_run_and_started_again_with_each_new_list(run_dir: Path) -> None:
    """vdpad by hand stands for a program that knows nothing of our control channel."""
    vdpad = built("native/vdpad/vdpad", "native")
    command = f"{vdpad} --simulate --memory none --socket-dir {{socket_dir}} --socket-list {{socket_list}} {{devices}}"
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n{FOUR[1]}\n")
    with running(run_dir, f"--daemon-command={command}") as agent:
        agent.wait_answer(FOUR[1], str(run_dir / "vhost" / "vdpa-1"))
        with front_end(agent.ask(FOUR[1]), "--packets=1000") as front:
            assert front.result()["exit_code"] == 0
        _list(agent, *FOUR)
        agent.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))
        assert len(agent.log.named("daemon_started")) == 2
        assert not agent.log.named("daemon_restart_waits")
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        agent.wait_logged("daemon_ended", reason="killed by SIGKILL")
        assert agent.ask(FOUR[3]) == ""
        agent.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))
        pid = agent.daemon_pid()
    assert not Path(f"/proc/{pid}").exists()


def test_a_killed_agent_takes_any_program_along(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n")
    agent = AgentProcess(run_dir, ["--daemon-command=sleep 1000"], {})
    try:
        pid = agent.daemon_pid()
        eventually("sleep", lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()[:6])
    finally:
        agent.kill()
    eventually("the end of sleep", lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), timeout_s=1)


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
