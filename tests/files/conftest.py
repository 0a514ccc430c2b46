"""Fixtures of the tests of files."""

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

_MS_BIND = 0x1000
_MNT_DETACH = 2

NoDescriptors = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def no_descriptors() -> NoDescriptors:
    """A context in which this process can open nothing more."""

    @contextmanager
    def context() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return context


@pytest.fixture
def detached_mount(tmp_path: Path) -> Iterator[Path]:
    """A file that was mounted alone and replaced where it came from: it has no name left."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("mounted")
    target.touch()
    if libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None):
        pytest.skip(f"a bind mount needs root: {os.strerror(ctypes.get_errno())}")
    try:
        fresh = tmp_path / "fresh"
        fresh.write_text("fresh")
        fresh.rename(source)
        yield target
    finally:
        libc.umount2(os.fsencode(target), _MNT_DETACH)
