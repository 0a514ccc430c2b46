"""A file system that answers nothing: a FUSE mount whose server never reads a request."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_MNT_DETACH: Final = 2
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def hung(directory: Path) -> Iterator[None]:
    """Everything below a directory hangs while the context lasts, and fails after it."""
    try:
        server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/fuse: {error}")
    # Held by another process, which ends by itself: whoever hangs here after all gets an error then.
    holder = subprocess.Popen(["sleep", "60"], pass_fds=(server,))
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        failed = _LIBC.mount(b"hung", os.fsencode(directory), b"fuse", 0, options)
        os.close(server)
        if failed:
            pytest.skip(f"a FUSE mount needs root: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            _LIBC.umount2(os.fsencode(directory), _MNT_DETACH)
    finally:
        holder.kill()
        holder.wait()
