"""The tree of errors that vdpa-agent raises on purpose.

AgentError                 exit code 1
├── ConfigError            2    a setting is wrong
├── AddressError           2    a text is not a PCI address
├── FileRefused            1    the content of a list or mapping file is refused as a whole
├── DaemonError            1    something went wrong with the supervised daemon
│   ├── DaemonUnusable     3    it can never start: a missing program, refused arguments
│   ├── DaemonLost         1    it ended, or its control channel did
│   │   └── Unanswered     1    it did not answer a control request in time
│   └── RequestRefused     1    it answered a control request with an error
├── SocketDirUnusable      1    the directory of the vhost-user sockets cannot be used
├── Starved                1    the machine, or a limit, leaves no memory, open file or file size for the agent
│   └── NoThread           1    the same of threads
├── SystemLacks            1    the system lacks what the agent needs: /proc, /dev/null
├── LibraryMissing         1    a shared library that the agent needs is not there, or too old
├── ListenError            1    the gRPC socket or the HTTP address cannot be opened
│   └── AlreadyRunning     100  another instance holds it
├── NoSuchDevice           4    the agent knows no socket for an address
├── NotReachable           5    no agent answers
├── NotReady               5    it answers, and is not ready
└── OutputLost             1    what a command prints cannot be written

Messages are lower case, without a full stop; they name the offending value and what to do about it.
"""

import errno
import os
from typing import ClassVar, Final

REMEDIES: Final = {
    errno.ENOMEM: "raise the limit of memory (ulimit -v, or that of the container)",
    errno.EMFILE: "raise the agent's limit of open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit of open files",
    errno.EFBIG: "raise the agent's limit of file size (ulimit -f)",
}
"""What helps where a call fails for want of what a limit leaves, whatever the call was."""

_NO_LIBRARY: Final = ("failed to map segment", "allocate memory", "too many open files")
"""What the dynamic loader says of a library for which the process has no room: dl-load.c of glibc."""


class AgentError(Exception):
    """Base of all errors of this program; `exit_code` is what the process ends with if nobody handles it."""

    exit_code: ClassVar[int] = 1


class ConfigError(AgentError):
    """A setting is wrong; the message names the option."""

    exit_code = 2


class AddressError(AgentError):
    """A text is not a PCI address."""

    exit_code = 2


class FileRefused(AgentError):
    """The content of a file is refused as a whole; the message names the line or the entry."""


class DaemonError(AgentError):
    """Something went wrong with the supervised daemon."""


class DaemonUnusable(DaemonError):
    """The daemon can never start as configured; trying again is of no use."""

    exit_code = 3


class DaemonLost(DaemonError):
    """The daemon ended, or its control channel did."""


class Unanswered(DaemonLost):
    """The daemon did not answer a control request in time; whether it is lost is for the caller to decide."""


class RequestRefused(DaemonError):
    """The daemon answered a control request with an error.

    Attributes:
        code: the JSON-RPC error code.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class SocketDirUnusable(AgentError):
    """The directory of the vhost-user sockets cannot be used; the message says why and what to do."""


class Starved(AgentError):
    """The machine, or a limit, leaves no memory, open file or file size for the agent; the message says which."""


class NoThread(Starved):
    """The machine has no thread left for the agent, which does all file work in threads."""

    def __init__(self) -> None:
        # The kernel says EAGAIN for want of either.
        remedy = "raise the limit of processes (nproc, or pids of the container), or of memory (ulimit -v)"
        super().__init__(f"no thread can be started; {remedy}")


class SystemLacks(AgentError):
    """The system lacks what the agent needs; the message says what, and how to get it."""


class LibraryMissing(AgentError):
    """A shared library that the agent needs is not there, or too old.

    Attributes:
        problem: what is wrong.
        remedy: how to get it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


class ListenError(AgentError):
    """The gRPC socket or the HTTP address cannot be opened."""


class AlreadyRunning(ListenError):
    """Another instance holds the gRPC socket."""

    exit_code = 100


class NoSuchDevice(AgentError):
    """The agent knows no live socket for an address."""

    exit_code = 4


class NotReachable(AgentError):
    """No agent answers on the socket."""

    exit_code = 5


class NotReady(AgentError):
    """The agent answers, and is not ready."""

    exit_code = 5


class OutputLost(AgentError):
    """What a command prints cannot be written: no space, or nobody reads it any more."""


def unwrapped(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of a group's errors if all are this program's own; else the group, which has a defect among them."""
    _, defects = group.split(AgentError)
    return group if defects else leaf(group)


def starved(error: BaseException) -> Starved | None:
    """What an error of Python's says that the process lacks; None if it is about anything else."""
    error = leaf(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():  # as protobuf says it
        return Starved(f"no memory is left; {REMEDIES[errno.ENOMEM]}")
    if isinstance(error, SystemError):  # C code that lost the error that it had, which is for want of memory
        return Starved(f"{error}; if that was for want of memory, {REMEDIES[errno.ENOMEM]}")
    if isinstance(error, ImportError) and any(words in str(error).lower() for words in _NO_LIBRARY):
        return Starved(f"{error}; {REMEDIES[errno.ENOMEM]}, or that of open files (ulimit -n)")
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return Starved(f"{os.strerror(error.errno).lower()}; {REMEDIES[error.errno]}")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":  # of threading.py
        return NoThread()
    return None


def leaf(error: BaseException) -> BaseException:
    """The first error in a group, however deep; one that is no group is its own leaf."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
