"""Child: one process in a group of its own, watched by its pidfd."""

import asyncio
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from vdpa_agent.errors import DaemonLost, DaemonUnusable


class Child:
    """A running child process.

    Attributes:
        pid: its process id, which is also that of its group.
        exited: becomes its return code as of subprocess: minus the signal's number if a signal ended it.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        # While the leader is a zombie its number, and so that of its group, cannot be somebody else's.
        self._signal_group(signal.SIGKILL)
        code = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set_result(code)

    def send_signal(self, number: signal.Signals) -> None:
        """Signals the process alone; one that ended is left in peace."""
        self._process.send_signal(number)

    def kill_group(self) -> None:
        """Ends the whole process group at once; does nothing after the process ended, which takes its group along."""
        if not self.exited.done():
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def spawn(argv: Sequence[str], *, output: int, control: int) -> Child:
    """Starts a program in a session of its own.

    Args:
        argv: the program, a path or a name on the PATH, and its arguments.
        output: a descriptor that takes its standard output and error.
        control: a descriptor that it inherits under the same number.

    Raises:
        DaemonUnusable: there is no such program, or it cannot be executed.
        DaemonLost: the machine lacks something now: memory, processes, descriptors.
    """
    program = shutil.which(argv[0])
    if program is None:
        message = f"{argv[0]} is not an executable program; install vdpad or name it with --vdpad"
        raise DaemonUnusable(message)
    try:
        process = subprocess.Popen(
            argv,
            executable=program,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(control,),
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        message = f"{program} cannot be executed: {os.strerror(error.errno or 0).lower()}; check --vdpad"
        raise DaemonUnusable(message) from error
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            message = f"{program} is not a program of this machine; build vdpad here, or check --vdpad"
            raise DaemonUnusable(message) from error
        message = f"{program} cannot be started now: {os.strerror(error.errno or 0).lower()}"
        raise DaemonLost(message) from error
    return Child(process)


def describe_exit(code: int) -> str:
    """How a process ended, in words, from its return code as of subprocess."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}"
