"""Launch: a process of its own that becomes another program, and reports why it could not.

The file system of that program may not answer: then this process waits for it, and not the agent. It needs no more of
Python than starts in some milliseconds.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGPIPE, _SIGKILL, _SIGXFSZ = 13, 9, 25
_SIG_DFL = 0

NOT_LAUNCHED = 127
"""What it ends with when it could not become the program, as a shell would."""


def launch(agent: int, report: int, argv: list[str]) -> None:
    """Becomes a program that the kernel ends with the agent; returns only if it cannot.

    Args:
        agent: the process id of the agent, which must be the parent.
        report: a descriptor to which the number of the error goes.
        argv: the program, a path or a name on the PATH, and its arguments.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != agent:
        return  # it died before that
    for ignored in (_SIGPIPE, _SIGXFSZ):  # by Python as it starts, and then by what comes after it
        libc.signal(ignored, _SIG_DFL)
    os.set_inheritable(report, False)  # noqa: FBT003 - the name says it
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - there is to be no shell
    except OSError as error:
        os.write(report, str(error.errno).encode())


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    sys.exit(NOT_LAUNCHED)
