"""File systems that answer nothing: FUSE mounts whose server never reads a request, or never answers one."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_MNT_DETACH: Final = 2
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_READER: Final = """
import os, signal, struct, sys
server = int(sys.argv[1])
signal.alarm(60)
request = os.read(server, 1 << 20)
header = struct.unpack_from("<IIQ", request)
init = struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0, *[0] * 7)
os.write(server, struct.pack("<IiQ", 16 + len(init), 0, header[2]) + init)
while True:
    os.read(server, 1 << 20)
"""
"""A server that greets the kernel, takes every request after that (FUSE_INIT of linux/fuse.h), and answers none."""


@contextmanager
def hung(directory: Path) -> Iterator[None]:
    """Everything below a directory hangs while the context lasts, and fails after it; who hangs there can be killed."""
    # Held by another process, which ends by itself: whoever hangs here after all gets an error then.
    with _mounted(directory, lambda server: ["sleep", "60"]):  # noqa: ARG005
        yield


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """The same, and not even SIGKILL ends a process that hangs there."""
    with _mounted(directory, lambda server: [sys.executable, "-c", _READER, str(server)]):
        yield


@contextmanager
def _mounted(directory: Path, holder_of: Callable[[int], Sequence[str]]) -> Iterator[None]:
    try:
        server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/fuse: {error}")
    holder: subprocess.Popen[bytes] | None = None
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        failed = _LIBC.mount(b"hung", os.fsencode(directory), b"fuse", 0, options)
        if failed:
            pytest.skip(f"a FUSE mount needs root: {os.strerror(ctypes.get_errno())}")
        holder = subprocess.Popen(holder_of(server), pass_fds=(server,))
        os.close(server)
        try:
            yield
        finally:
            _LIBC.umount2(os.fsencode(directory), _MNT_DETACH)
    finally:
        if holder is None:
            os.close(server)
        else:
            holder.kill()
            holder.wait()
