"""Child: one process in a group of its own, watched by its pidfd."""

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from vdpa_agent.daemon import launch
from vdpa_agent.errors import REMEDIES, DaemonLost, DaemonUnusable

RLIMIT_LOCKS: Final = 10
"""Of asm-generic/resource.h: a limit that Linux has not enforced since 2.4.25, and that goes along with fork and exec.

A child gets a number of its own there. By it all that descends from the child is known, whatever parent, session, user
or environment it takes, unless it sets that very limit.
"""

_LIMITS: Final = {"SIGXFSZ": REMEDIES[errno.EFBIG], "SIGXCPU": "raise the agent's limit of CPU time (ulimit -t)"}
"""What helps against the signals that the kernel sends for a limit."""

_MARK_BITS: Final = 40
"""The low bits of a mark are a time in microseconds, those above them the agent's process id."""


_NEVER: Final = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""The errors of execve(2) that no waiting mends."""

_NUMBER_BYTES: Final = 16
"""More than the number of an error has digits."""


class Child:
    """A running child process.

    Attributes:
        pid: its process id, which is also that of its group.
        launched: becomes 0 when it has become its program or has ended, else the number of the error that kept it.
        exited: becomes its return code as of subprocess: minus the signal's number if a signal ended it.
        mark: the soft RLIMIT_LOCKS of it and its descendants, and of no other process.
        core_dumped: whether it left a core dump when it ended.
        reaped: whether it has ended and that was taken.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: int, report: FileIO) -> None:
        self.pid = process.pid
        self.mark = mark
        self.launched: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.core_dumped = False
        self.reaped = False
        self._process = process
        self._report = report
        asyncio.get_running_loop().add_reader(report, self._reported)
        self._pidfd: int | None = None
        # Where the kernel or a seccomp profile refuses pidfds, the reaper tells of its end.
        with suppress(OSError):
            self._pidfd = os.pidfd_open(process.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self.reap)

    def reap(self) -> None:
        """Takes the end of the process, which must have ended; once is enough."""
        if self.reaped:
            return
        # While the leader is a zombie its number, and so that of its group, cannot be somebody else's.
        self._signal_group(signal.SIGKILL)
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.core_dumped = ended is not None and ended.si_code == os.CLD_DUMPED
        code = self._process.wait()
        self.reaped = True
        self._reported()
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
        if not self.exited.done():
            self.exited.set_result(code)

    def send_signal(self, number: signal.Signals) -> None:
        """Signals the process alone; one that ended is left in peace."""
        # subprocess would look first whether it has ended, and take its end away from reap().
        if not self.reaped:
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Ends the whole process group at once; does nothing after the process ended, which takes its group along."""
        if not self.reaped:
            self._signal_group(signal.SIGKILL)

    def _reported(self) -> None:
        """The launcher wrote a number; or its end of the pipe was closed, by the program's start or by death."""
        if self._report.closed:
            return
        said = self._report.read(_NUMBER_BYTES)
        asyncio.get_running_loop().remove_reader(self._report)
        self._report.close()
        if not self.launched.done():
            self.launched.set_result(int(said or b"0"))

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def spawn(argv: Sequence[str], *, output: int, control: int, cpus: frozenset[int] | None = None) -> Child:
    """Starts a program in a session of its own, without waiting for the program's file system.

    Args:
        argv: the program, a path or a name on the PATH, and its arguments.
        output: a descriptor that takes its standard output and error.
        control: a descriptor that it inherits under the same number.
        cpus: those that it is to run on; None: those of this process.

    Raises:
        DaemonLost: the machine lacks something now: memory, processes, descriptors.
    """
    mark = os.getpid() << _MARK_BITS | time.monotonic_ns() // 1000 % (1 << _MARK_BITS)
    try:
        read_end, write_end = os.pipe()
        report = open(read_end, "rb", buffering=0)  # noqa: SIM115, PTH123 - the child closes it
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(write_end)]
        try:
            with _marking(mark), _pinned(cpus):
                process = subprocess.Popen(
                    [*launcher, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(control, write_end),
                    start_new_session=True,
                )
        except OSError:
            report.close()
            raise
        finally:
            os.close(write_end)
    except OSError as error:
        message = f"{argv[0]} cannot be started now: {os.strerror(error.errno or 0).lower()}"
        raise DaemonLost(message) from error
    return Child(process, mark, report)


def refuse_failed(number: int, program: str, remedy: str) -> None:
    """Raises what the error means that a program could not be started with; nothing for 0.

    Args:
        number: as of errno(3).
        program: its name or path.
        remedy: what to do where it can never start.

    Raises:
        DaemonUnusable: there is no such program, or it cannot be executed.
        DaemonLost: the machine lacks something now.
    """
    words = os.strerror(number).lower()
    if number in {errno.ENOENT, errno.ENOTDIR}:
        message = f"{program} is not an executable program; {remedy}"
        raise DaemonUnusable(message)
    if number == errno.ENOEXEC:
        message = f"{program} is not a program of this machine; {remedy}"
        raise DaemonUnusable(message)
    if number in _NEVER:
        message = f"{program} cannot be executed: {words}; {remedy}"
        raise DaemonUnusable(message)
    if number:
        message = f"{program} cannot be started now: {words}"
        raise DaemonLost(message)


def read_mark(pid: int) -> int | None:
    """The mark of that child of this process which a process is or descends from; None if there is none."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
            if line.startswith("Max file locks "):
                soft = line.split()[3]
                mark = int(soft) if soft.isdecimal() else 0
                return mark if mark >> _MARK_BITS == os.getpid() else None
    return None


@contextmanager
def _marking(mark: int) -> Iterator[None]:
    """Has processes that start meanwhile inherit a mark; without one where the hard limit leaves no room."""
    soft, hard = resource.getrlimit(RLIMIT_LOCKS)
    with suppress(ValueError):
        resource.setrlimit(RLIMIT_LOCKS, (mark, hard))
    try:
        yield
    finally:
        resource.setrlimit(RLIMIT_LOCKS, (soft, hard))


@contextmanager
def _pinned(cpus: frozenset[int] | None) -> Iterator[None]:
    """Has processes that start meanwhile run on these CPUs, from their first instruction on; where that may be."""
    before = os.sched_getaffinity(0)
    if cpus is None:
        yield
        return
    with suppress(OSError):
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def describe_exit(code: int, *, core_dumped: bool = False) -> str:
    """How a process ended, in words.

    Args:
        code: its return code as of subprocess.
        core_dumped: whether it left a core dump.
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    limit = _LIMITS.get(name, "")
    return f"killed by {name}{', core dumped' if core_dumped else ''}{limit and f': {limit}'}"
