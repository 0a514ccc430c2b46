"""top in a real terminal, beside a running agent with packets, and without one."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.processes import AgentProcess, built, eventually, front_end, running, write_list
from vdpa_agent.cli.top import rates

DEVICES: Final = tuple(f"0000:82:00.{function}" for function in range(2, 6))
ESCAPE: Final = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
LEFT: Final = b"\x1b[?1049l"


class Terminal:
    """A pseudo-terminal with `vdpa-agent top` in it; what is written there is kept."""

    def __init__(self, address: Path, *, own: bool, keys: bool, interval_s: float) -> None:
        """Starts it.

        Args:
            address: the agent's socket.
            own: whether the terminal is that of its session, so that resizing and hanging up are signalled.
            keys: whether its standard input is the terminal, and not empty.
            interval_s: how often it counts packets, in seconds.
        """
        self._master, self.slave = pty.openpty()
        self.resize(200, 24)
        self.before = termios.tcgetattr(self.slave)
        self.written = b""
        self.process = subprocess.Popen(
            [
                *(("setsid", "--ctty") if own else ()),
                *(sys.executable, "-m", "vdpa_agent", "top"),
                f"--address={address}",
                f"--interval={interval_s}",
                "--timeout=3",
            ],
            stdin=self.slave if keys else subprocess.DEVNULL,
            stdout=self.slave,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            # Never for long in the kernel: a terminal that is being read is not gone when it is closed.
            while (master := self._master) >= 0:
                if select.select([master], [], [], 0.02)[0]:
                    self.written += os.read(master, 65536)

    def screen(self) -> list[str]:
        """The lines of the newest picture."""
        frames = self.written.decode(errors="replace").split("\x1b[H")[1:]
        whole = [frame for frame in frames if "\x1b[J" in frame]
        return [ESCAPE.sub("", line).rstrip() for line in whole[-1].split("\r\n")] if whole else []

    def row(self, address: str) -> list[str]:
        """The words of a device's line; none if it has none."""
        return next((line.split() for line in self.screen() if line.startswith(address)), [])

    def wait(self, what: str) -> str:
        """Waits for a line with a text in it."""
        return eventually(f"{what!r} in a line", lambda: next((line for line in self.screen() if what in line), None))

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def hang_up(self) -> None:
        """Takes the terminal away, as a lost connection does."""
        master, self._master = self._master, -1
        self._reader.join(20)
        os.close(self.slave)
        os.close(master)

    def end(self) -> tuple[int, str]:
        """Waits for the end of top; returns its exit code and what it complained about."""
        assert self.process.stderr is not None
        complaint = self.process.stderr.read().decode()
        return self.process.wait(20), complaint

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        if self._master >= 0:
            self.hang_up()
        self._reader.join(20)


@contextmanager
def terminal(address: Path, *, own: bool = True, keys: bool = True, interval_s: float = 0.2) -> Iterator[Terminal]:
    taken = Terminal(address, own=own, keys=keys, interval_s=interval_s)
    try:
        yield taken
    finally:
        taken.close()


@contextmanager
def simulated(directory: Path) -> Iterator[AgentProcess]:
    """An agent that serves the devices."""
    vdpad = built("native/vdpad/vdpad", "native")
    write_list(directory / "pciList.dat", DEVICES)
    with running(directory, "--simulate", "--memory=none", f"--vdpad={vdpad}") as agent:
        for number, address in enumerate(DEVICES):
            agent.wait_answer(address, str(directory / "vhost" / f"vdpa-{number}"))
        yield agent


def _rate(top: Terminal, address: str) -> float:
    """The packets a second that a connected front end sends, as the screen has it."""
    row = top.row(address)
    return float(row[5]) if row[1:3] == ["connected", "configured"] and row[5] != "-" else 0.0


def test_what_is_seen(run_dir: Path) -> None:
    with simulated(run_dir) as agent, terminal(agent.listen) as top:
        head = top.wait("vdpa-agent 0.1.0, managing, ready")
        assert f"daemon running, process {agent.daemon_pid()}, 0 restarts" in head
        eventually("four ready devices", lambda: all(top.row(address)[1:2] == ["ready"] for address in DEVICES))
        assert top.row(DEVICES[0])[2] == "-"
        eventually("no packets", lambda: top.row(DEVICES[0])[4:6] == ["0", "0"])
        with front_end(agent.ask(DEVICES[1]), "--rate=2000") as front:
            front.wait_passing()
            eventually("packets", lambda: _rate(top, DEVICES[1]) > 0)
            assert float(top.row(DEVICES[1])[4]) > 0  # they come back
            assert top.row(DEVICES[0])[4:6] == ["0", "0"]
        eventually("the front end has gone", lambda: top.row(DEVICES[1])[1:3] == ["ready", "-"])
        write_list(agent.pci_list, DEVICES[:3])
        eventually("three devices", lambda: not top.row(DEVICES[3]))
        top.type(b"xq")
        assert top.end() == (0, "")
        eventually("the terminal as it was", lambda: top.written.endswith(LEFT))
        assert termios.tcgetattr(top.slave) == top.before


def test_the_daemon_is_killed_and_the_agent_restarted(run_dir: Path) -> None:
    with simulated(run_dir) as agent, terminal(agent.listen) as top:
        eventually("ready", lambda: top.row(DEVICES[0])[1:2] == ["ready"])
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        top.wait("daemon backoff")
        top.wait("1 restarts")
        eventually("ready again", lambda: top.row(DEVICES[0])[1:2] == ["ready"])
        agent.process.send_signal(signal.SIGSTOP)
        try:
            top.wait("did not answer within 3 s")
        finally:
            agent.process.send_signal(signal.SIGCONT)
        top.wait("1 restarts")
    with terminal(run_dir / "vdpa.sock") as top:
        top.wait(f"no agent answers at {run_dir}/vdpa.sock")
        assert not top.row(DEVICES[0])
        with simulated(run_dir):
            eventually("ready", lambda: top.row(DEVICES[0])[1:2] == ["ready"])
            top.wait("vdpa-agent 0.1.0, managing, ready")
        top.wait(f"no agent answers at {run_dir}/vdpa.sock")
        assert not top.row(DEVICES[0])


def test_resizing(run_dir: Path) -> None:
    with simulated(run_dir) as agent, terminal(agent.listen, interval_s=600) as top:
        eventually("four ready devices", lambda: all(top.row(address)[1:2] == ["ready"] for address in DEVICES))
        top.resize(30, 5)
        top.wait("3 more")
        assert [len(line) <= 30 for line in top.screen()] == [True] * 5
        top.resize(200, 24)
        eventually("all of it", lambda: all(top.row(address) for address in DEVICES))


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "q without an agent"])
def test_it_ends_when_asked_and_gives_the_terminal_back(run_dir: Path, how: str) -> None:
    with terminal(run_dir / "vdpa.sock") as top:
        top.wait("no agent answers")
        assert termios.tcgetattr(top.slave) != top.before
        if how == "SIGTERM":
            top.process.terminate()
        else:
            top.type(b"\x03" if how == "ctrl-c" else b"q")
        assert top.end() == (0, "")
        eventually("the terminal as it was", lambda: top.written.endswith(LEFT))
        assert termios.tcgetattr(top.slave) == top.before


def test_it_ends_when_its_terminal_hangs_up(run_dir: Path) -> None:
    with terminal(run_dir / "vdpa.sock") as top:
        top.wait("no agent answers")
        top.hang_up()
        assert top.end() == (0, "")


@pytest.mark.parametrize(("keys", "interval_s"), [(True, 600), (False, 0.2)], ids=["read", "written"])
def test_it_ends_when_a_terminal_that_signals_nothing_is_gone(run_dir: Path, *, keys: bool, interval_s: float) -> None:
    with (
        running(run_dir, "--example-data") as agent,
        terminal(agent.listen, own=False, keys=keys, interval_s=interval_s) as top,
    ):
        top.wait("vdpa-agent 0.1.0")
        top.hang_up()
        assert top.end() == (0, "")


def _once(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vdpa_agent", "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_once(run_dir: Path) -> None:
    with simulated(run_dir) as agent, front_end(agent.ask(DEVICES[0]), "--rate=2000") as front:
        front.wait_passing()
        shown = _once("--once", f"--address={agent.listen}", "--interval=0.5")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("vdpa-agent 0.1.0, managing, ready, up ")
    row = next(line.split() for line in lines if line.startswith(DEVICES[0]))
    assert row[1:3] == ["connected", "configured"]
    assert float(row[5]) > 0
    assert "\x1b" not in shown.stdout


def test_a_device_whose_packets_nobody_counts(run_dir: Path) -> None:
    with running(run_dir, "--example-data") as agent:
        shown = _once("--once", f"--address={agent.listen}", "--interval=0.1")
    row = next(line.split() for line in shown.stdout.splitlines() if line.startswith("0000:82:00.2"))
    assert row == ["0000:82:00.2", "ready", "-", "-", "-", "-", "/var/run/vdpa/vhost/vdpa-0", "-", "-"]


def test_refusals(run_dir: Path) -> None:
    without_agent = _once("--once", f"--address={run_dir}/s")
    assert (without_agent.returncode, without_agent.stdout) == (5, "")
    assert f"no agent answers at {run_dir}/s" in without_agent.stderr
    without_terminal = _once(f"--address={run_dir}/s")
    assert (without_terminal.returncode, without_terminal.stdout) == (2, "")
    assert "standard output is no terminal, give --once" in without_terminal.stderr


_RATES = [
    ((1000, 10), (3000, 10), (1000.0, 0.0)),
    ((1000, 10), (1000, 10), (0.0, 0.0)),
    ((1000, 10), (0, 0), None),
    ((1000, 10), (999, 4000), None),
    ((1000, 10), (4000, 9), None),
    (None, (4000, 9), None),
]


@pytest.mark.parametrize(("before", "now", "rate"), _RATES)
def test_a_counter_that_began_anew_has_no_rate(
    before: tuple[int, int] | None, now: tuple[int, int], rate: tuple[float, float] | None
) -> None:
    earlier = {"a": before} if before else {}
    assert rates((5.0, earlier), (7.0, {"a": now})) == ({"a": rate} if rate else {})


def test_no_time_between_two_counts_is_no_rate() -> None:
    assert rates((5.0, {"a": (1, 1)}), (5.0, {"a": (2, 2)})) == {}
