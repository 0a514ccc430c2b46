"""Calls that wait for their device: the CNI plugin's pod gets it late instead of not at all."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tests.e2e.conftest import FOUR
from tests.processes import AgentProcess, running, write_atomically

HOLD_S = 8.0
HELD = f"--hold-timeout={HOLD_S:g}"


class _Asking(threading.Thread):
    """Asks for one address in the background."""

    def __init__(self, agent: AgentProcess, address: str, timeout_s: float = 10) -> None:
        super().__init__(daemon=True)
        self.answer: str | None = None
        self.error: grpc.StatusCode | None = None
        self._ask: Callable[[], str] = lambda: agent.ask(address, timeout_s=timeout_s)
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except grpc.RpcError as error:
            self.error = error.code()


def test_a_call_before_the_list_is_answered_when_its_device_is_ready(run_dir: Path, options: tuple[str, ...]) -> None:
    with running(run_dir, *options, HELD) as agent:
        askers = [_Asking(agent, address) for address in FOUR for _ in range(10)]
        write_atomically(agent.pci_list, "".join(f"{address}\n" for address in FOUR))
        for number, asker in enumerate(askers):
            asker.join(20)
            assert asker.answer == str(run_dir / "vhost" / f"vdpa-{number // 10}")


def test_a_call_during_a_restart_of_the_daemon_gets_the_socket(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n")
    with running(run_dir, *options, HELD) as agent:
        socket = agent.ask(FOUR[0])
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        agent.wait_logged("daemon_ended")
        assert agent.ask(FOUR[0]) == socket == str(run_dir / "vhost" / "vdpa-0")


def test_an_unknown_address_is_answered_at_once(run_dir: Path, options: tuple[str, ...]) -> None:
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n")
    with running(run_dir, *options, HELD) as agent:
        agent.ask(FOUR[0])
        began = time.monotonic()
        assert agent.ask(FOUR[1]) == ""
        assert time.monotonic() - began < HOLD_S


def test_a_held_call_ends_half_a_second_before_the_clients_deadline(run_dir: Path) -> None:
    with running(run_dir, HELD) as agent:
        for _ in range(5):  # a loaded machine may take longer than half a second for the way back
            began = time.monotonic()
            with suppress(grpc.RpcError):
                assert agent.ask(FOUR[0], timeout_s=2) == ""
                break
        else:
            pytest.fail("no call ended before its deadline")
        assert time.monotonic() - began > 1.3


def test_a_held_call_ends_with_the_hold_timeout(run_dir: Path) -> None:
    with running(run_dir, "--hold-timeout=1") as agent:
        began = time.monotonic()
        assert agent.ask(FOUR[0]) == ""
        assert time.monotonic() - began > 0.9


def test_the_stop_of_the_agent_answers_held_calls(run_dir: Path, options: tuple[str, ...]) -> None:
    daemon = run_dir / "mute"
    daemon.write_text("#!/bin/sh\nexec sleep 60\n")
    daemon.chmod(0o755)
    write_atomically(run_dir / "pciList.dat", f"{FOUR[0]}\n")
    agent = AgentProcess(run_dir, [*options[:-1], f"--vdpad={daemon}", HELD], {})
    try:
        agent.wait_logged("daemon_started")
        asker = _Asking(agent, FOUR[0])
        connected = _Asking(agent, FOUR[1])  # an unknown one: its answer shows that the channel works
        connected.join(20)
        assert connected.answer == ""
        agent.process.send_signal(signal.SIGTERM)
        asker.join(20)
        assert (asker.answer, asker.error) == ("", None)
    finally:
        agent.kill()
