"""The consumers of a VF's socket as users run them: QEMU with a Linux guest, and DPDK's testpmd."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.processes import built, eventually

BOOT_S: Final = 90.0
"""How long a guest may take to boot: an emulated processor on a machine that does other things."""

MEMORY_MIB: Final = 128


class Program:
    """A program with what it has printed so far; it is gone at the end."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        """Starts it."""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=directory,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def printed(self, pattern: str) -> list[re.Match[str]]:
        """All matches in what it has printed."""
        return [match for line in list(self.lines) for match in re.finditer(pattern, line)]

    def wait(self, pattern: str, *, count: int = 1, timeout_s: float = BOOT_S) -> re.Match[str]:
        """Waits until something was printed `count` times; returns the newest."""

        def seen() -> re.Match[str] | None:
            ended = self.process.poll()
            found = self.printed(pattern)
            assert found or ended is None or self._reader.is_alive(), f"it ended with {ended}"
            return found[-1] if len(found) >= count else None

        return eventually(f"{pattern} x{count}", seen, timeout_s=timeout_s)

    def say(self, line: str) -> None:
        """Types a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


@contextmanager
def _shown(program: Program) -> Iterator[None]:
    """Whatever fails meanwhile shows what was printed; the program is gone at the end."""
    try:
        yield
    except BaseException as error:
        error.add_note("".join(program.lines))
        raise
    finally:
        program.kill()


class Frames(NamedTuple):
    """What became of frames that the guest sent."""

    sent: int
    returned: int
    corrupt: int


class Guest(Program):
    """QEMU with a small Linux, whose network device is a VF's socket; commands go to its serial console."""

    def __init__(
        self,
        socket: str,
        directory: Path,
        *,
        chardev: str = "reconnect=1",
        queues: int = 1,
        mac: str = "52:54:00:12:34:56",
        device: str = "",
    ) -> None:
        """Starts it; `chardev` is options of the connection, `device` further ones of the device."""
        multi = "on" if queues > 1 else "off"
        super().__init__(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
                *("-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB)),
                *("-machine", "q35,memory-backend=ram"),
                *("-object", f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"),
                *("-kernel", str(built("guest/vmlinuz", "guest")), "-initrd", str(built("guest/initrd", "guest"))),
                # Unchecked, a timer that a busy machine keeps waiting is taken for one that does not work.
                *("-append", "console=ttyS0 quiet no_timer_check"),
                *("-chardev", f"socket,id=vf,path={socket},{chardev}"),
                *("-netdev", f"vhost-user,id=net,chardev=vf,queues={queues}"),
                # Emulated, Debian's QEMU crashes with interrupt vectors and any vhost-user back end.
                *("-device", f"virtio-net-pci,netdev=net,mac={mac},vectors=0,romfile=,mq={multi}{device}"),
            ],
            directory,
        )
        self._boots = 0
        self._runs = 0
        self._counts = 0
        self._commands = 0

    def wait_up(self) -> None:
        """Waits until it has booted once more."""
        self._boots += 1
        self.wait("guest is up", count=self._boots)

    def frames(self, count: int, *, patience_s: float = BOOT_S) -> Frames:
        """Has it send frames of all sizes, and look at each that comes back; one that does not ends the run."""
        self._runs += 1
        self.say(f"frames {count} {patience_s:.0f}")
        done = self.wait(r"frames sent (\d+) returned (\d+) corrupt (\d+)", count=self._runs, timeout_s=2 * BOOT_S)
        return Frames(*map(int, done.groups()))

    def run(self, command: str) -> str:
        """Has its shell run a command, which must end well; returns what it printed."""
        self._commands += 1
        begin = len(self.lines)
        self.say(f"{command}; echo ended-{self._commands} $?")
        done = self.wait(rf"^ended-{self._commands} (\d+)", timeout_s=2 * BOOT_S)
        said = "".join(self.lines[begin:])
        assert done[1] == "0", f"{command}: {said}"
        return said

    def wait_passing(self) -> None:
        """Waits until frames come back again."""
        eventually("frames", lambda: self.frames(1, patience_s=1).returned, timeout_s=BOOT_S)

    def packets(self) -> tuple[int, int]:
        """What its kernel has received and sent by the device since it booted."""
        self._counts += 1
        self.say("cd /sys/class/net/eth0/statistics; echo counted $(cat rx_packets) $(cat tx_packets)")
        found = self.wait(r"counted (\d+) (\d+)", count=self._counts)
        return int(found[1]), int(found[2])


@contextmanager
def guest(socket: str, directory: Path, **options: Any) -> Iterator[Guest]:
    """A guest that is starting; the options are those of `Guest`."""
    machine = Guest(socket, directory, **options)
    with _shown(machine):
        yield machine


class VirtioUser(Program):
    """DPDK's own application, a virtio-user front end that sends packets and counts what comes back."""

    def __init__(self, socket: str, directory: Path, *, virtio: str, queues: int) -> None:
        """Starts it; `virtio` is more of its device's options."""
        super().__init__(
            [
                # Two threads on whatever CPUs there are: pinned, two at a time would share one and leave the other.
                *("dpdk-testpmd", f"--lcores=(0,1)@({','.join(map(str, sorted(os.sched_getaffinity(0))))})"),
                *("--no-pci", "--no-telemetry", "--no-huge", "--no-shconf", "-m", "32"),
                f"--vdev=net_virtio_user0,path={socket},queues={queues}{virtio}",
                "--",
                *("--total-num-mbufs=2048", "--no-mlockall", "--forward-mode=flowgen", "--auto-start"),
                *(f"--rxq={queues}", f"--txq={queues}", "--stats-period=1"),
            ],
            directory,
        )

    def received(self) -> int:
        """The packets that have come back, as it counts them."""
        return max((int(found[1]) for found in self.printed(r"RX-packets:\s+(\d+)")), default=0)

    def wait_received(self, count: int) -> None:
        """Waits until so many packets have come back."""

        def seen() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}"
            return self.received() >= count

        eventually(f"{count} packets", seen, timeout_s=BOOT_S)

    def stop(self) -> tuple[int, int]:
        """Asks it to end; returns the packets received and sent, as it counts them at the end."""
        self.process.terminate()
        self.process.wait(BOOT_S)
        self._reader.join()
        totals = re.search(
            r"Accumulated forward statistics.*?RX-packets:\s*(\d+).*?TX-packets:\s*(\d+)",
            "".join(self.lines),
            re.DOTALL,
        )
        assert totals is not None, "no statistics at the end"
        return int(totals[1]), int(totals[2])


@contextmanager
def virtio_user(socket: str, directory: Path, *, virtio: str = "", queues: int = 1) -> Iterator[VirtioUser]:
    """A testpmd that is starting."""
    application = VirtioUser(socket, directory, virtio=virtio, queues=queues)
    with _shown(application):
        yield application
