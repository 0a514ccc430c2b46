"""Becomes another program on what looks like a kernel before 6.16: one that knows no SO_PASSRIGHTS.

usage: python -m tests.abuse.older_kernel PROGRAM [ARGUMENT...]
"""

import ctypes
import errno
import os
import struct
import sys
from typing import Final

SO_PASSRIGHTS: Final = 83

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBERS: Final = {"x86_64": 54, "aarch64": 208}
"""Of setsockopt(2)."""

_NUMBER_AT, _OPTION_AT = 0, 32
"""Where a system call's number and its third argument are."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def forget_passrights() -> None:
    """Has setsockopt(SO_PASSRIGHTS) fail as an option that nobody knows, for this process and its children."""
    steps = (
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_EQUAL, 0, 3, _NUMBERS[os.uname().machine]),
        (_LOAD, 0, 0, _OPTION_AT),
        (_JUMP_IF_EQUAL, 0, 1, SO_PASSRIGHTS),
        (_RETURN, 0, 0, _ERRNO | errno.ENOPROTOOPT),
        (_RETURN, 0, 0, _ALLOW),
    )
    program = _Program(len(steps), b"".join(struct.pack("=HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero),
        (_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), zero, zero),
    ):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forget_passrights()
    os.execvp(sys.argv[1], sys.argv[1:])
