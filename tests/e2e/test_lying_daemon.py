"""A daemon that acknowledges what it has not done, or does not answer: what others see of its devices."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT, AgentProcess, eventually, running, write_list

FAKE: Final = ROOT / "tests" / "daemon" / "fake_vdpad.py"
THREE: Final = tuple(f"0000:82:00.{function}" for function in (2, 3, 4))
ONE: Final = THREE[0]

LIES: Final = {
    "no-socket": "the socket file {} is gone",
    "no-file": "the daemon did not say which file its socket is (socket_file); install the vdpad of this agent",
    "datagram": "what is bound at {} takes no streams",
}


def _agent_options(*others: str) -> tuple[str, ...]:
    return ("--simulate", f"--vdpad={FAKE}", *others)


def _status(agent: AgentProcess) -> str:
    command = [sys.executable, "-m", "vdpa_agent", "list", "--output=wide", f"--address={agent.listen}"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True).stdout


def _sockets(run_dir: Path) -> list[str]:
    return [str(run_dir / "vhost" / f"vdpa-{number}") for number in range(3)]


@pytest.mark.parametrize("isolation", ["shared", "device"])
@pytest.mark.parametrize(("lie", "reason"), LIES.items(), ids=LIES.keys())
def test_a_socket_that_is_not_what_the_daemon_says_is_never_served(
    run_dir: Path, isolation: str, lie: str, reason: str
) -> None:
    write_list(run_dir / "pciList.dat", THREE)
    options = _agent_options(f"--isolation={isolation}")
    with running(run_dir, *options, environment={"FAKE_VDPAD": lie}) as agent:
        for address, socket in zip(THREE, _sockets(run_dir), strict=True):
            failed = agent.wait_logged("device_failed", device=address)
            assert failed["reason"] == reason.format(socket)
        assert {agent.ask(address) for address in THREE} == {""}
        assert reason.partition(" {}")[0] in _status(agent)
        assert not agent.log.named("device_ready")


def test_two_devices_never_have_one_socket(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", THREE)
    with running(run_dir, *_agent_options(), environment={"FAKE_VDPAD": "one-file"}) as agent:
        first, *others = _sockets(run_dir)
        agent.wait_answer(ONE, first)
        for address, socket in zip(THREE[1:], others, strict=True):
            failed = agent.wait_logged("device_failed", device=address)
            assert failed["reason"] == f"the socket file {socket} is that of {first} as well"
            assert agent.ask(address) == ""


def test_in_client_mode_no_socket_of_the_daemon_is_looked_for(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", THREE)
    with running(run_dir, *_agent_options("--vhost-mode=client"), environment={"FAKE_VDPAD": "no-socket"}) as agent:
        for address, socket in zip(THREE, _sockets(run_dir), strict=True):
            agent.wait_answer(address, socket)


def test_a_daemon_that_runs_in_another_mode_than_it_was_started_in_is_lost(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", THREE)
    with running(run_dir, *_agent_options(), environment={"FAKE_VDPAD": "other-mode"}) as agent:
        killed = agent.wait_logged("daemon_killed", count=2)
        assert killed["reason"] == "vdpad runs as vhost 'client', and was started as server"
        assert {agent.ask(address) for address in THREE} == {""}


@pytest.mark.parametrize("also", ["", ",does:device.add"])
def test_a_device_that_is_not_answered_for_says_so_and_holds_no_other_up(run_dir: Path, also: str) -> None:
    write_list(run_dir / "pciList.dat", THREE)
    environment = {"FAKE_VDPAD": f"silent:device.add{also}"}
    with running(run_dir, *_agent_options(), environment=environment) as agent:
        for address, socket in zip(THREE[1:], _sockets(run_dir)[1:], strict=True):
            agent.wait_answer(address, socket)
        late = agent.wait_logged("device_unanswered", device=ONE)
        assert late["reason"] == "the daemon has not answered device.add for 5 s"
        assert late["reason"] in _status(agent)
        write_list(run_dir / "pciList.dat", THREE[:2])  # hot changes go on
        agent.wait_logged("device_removed", device=THREE[2])
        eventually("the end of the wait", lambda: agent.log.named("device_failed", device=ONE), timeout_s=60)
        failed = agent.log.named("device_failed", device=ONE)[0]
        assert failed["reason"] == "the daemon has not answered device.add for 30 s"
        assert agent.ask(THREE[1]) == _sockets(run_dir)[1]
        assert agent.ask(ONE) == ""
        assert len(agent.log.named("daemon_started")) == 1
        assert not agent.log.named("mapping_repaired")


def test_a_removal_that_is_not_answered_holds_no_other_up(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", THREE)
    environment = {"FAKE_VDPAD": "silent:device.remove"}
    with running(run_dir, *_agent_options(), environment=environment) as agent:
        agent.wait_logged("device_ready", count=3)
        write_list(run_dir / "pciList.dat", (THREE[1], "0000:82:00.5"))
        agent.wait_logged("device_removed", device=THREE[2])
        agent.wait_answer("0000:82:00.5", str(run_dir / "vhost" / "vdpa-3"))
        late = agent.wait_logged("device_unanswered", device=ONE)
        assert late["reason"] == "the daemon has not answered device.remove for 5 s"
        assert late["reason"] in _status(agent)
        assert agent.ask(ONE) == ""


def test_a_list_of_devices_that_never_comes_holds_nothing_up(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", THREE)
    with running(run_dir, *_agent_options(), environment={"FAKE_VDPAD": "silent:device.list"}) as agent:
        agent.wait_logged("device_ready", count=3)
        agent.wait_logged("front_ends_unknown")
        Path(_sockets(run_dir)[0]).unlink()
        agent.wait_logged("device_failed", device=ONE)
        agent.wait_answer(ONE, _sockets(run_dir)[0])
        assert len(agent.log.named("daemon_started")) == 1


@pytest.mark.parametrize("isolation", ["shared", "device"])
def test_a_daemon_that_answers_for_no_device_is_started_again(run_dir: Path, isolation: str) -> None:
    write_list(run_dir / "pciList.dat", [ONE])
    options = _agent_options(f"--isolation={isolation}")
    with running(run_dir, *options, environment={"FAKE_VDPAD": "silent:device.add"}) as agent:
        eventually("the kill", lambda: agent.log.named("daemon_killed"), timeout_s=60)
        assert agent.log.named("daemon_killed")[0]["reason"] == "the daemon has not answered device.add for 30 s"
        agent.wait_logged("daemon_started", count=2)
