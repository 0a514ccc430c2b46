"""Tells when one of some files may have changed, whatever way it was written."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final

import structlog
from watchfiles import awatch

_STEP_MS: Final = 5
"""How long watchfiles gathers events before it tells: 5 ms answer in 10 ms, the default of 50 in 80."""

_GATHER_MAX_MS: Final = 50
"""A file that is written without a pause is told of at least this often."""

_RECHECK_MS: Final = 1000
"""Without any event the files are looked at again after this time: the kernel drops events when its queue is full."""

log = structlog.get_logger(__name__)


async def follow(files: Iterable[Path]) -> AsyncIterator[None]:
    """Yields at once, then after everything that may have changed one of `files`, and at least every second.

    Watched are the directories and their parents: a watch on a file sees only its first replacement, and a directory
    that was removed and made again is silent for ever. The reader compares contents; a yield promises nothing.

    Cancellation ends it and its thread.
    """
    directories = {file.parent for file in files}
    while True:
        armed = {path: _identity(path) for path in _present(directories)}
        yield
        try:
            # Nothing is filtered: a ConfigMap swap reports only `..data`.
            async with contextlib.aclosing(
                awatch(
                    *armed,
                    watch_filter=None,
                    recursive=False,
                    step=_STEP_MS,
                    debounce=_GATHER_MAX_MS,
                    rust_timeout=_RECHECK_MS,
                    yield_on_timeout=True,
                )
            ) as changes:
                yield  # what happened between the first look and the watch
                async for _ in changes:
                    if {path: _identity(path) for path in _present(directories)} != armed:
                        break  # a directory is another one now: watch that
                    yield
        except* (OSError, RuntimeError, UnicodeError) as group:
            # One undecodable file name, an exhausted fs.inotify limit: follow on, at worst by looking every second.
            reasons = "; ".join(str(error) for error in group.exceptions)
            log.warning("watch_interrupted", reason=reasons, remedy="see fs.inotify limits and the directory's names")
            await asyncio.sleep(_RECHECK_MS / 1000)


def _present(directories: Iterable[Path]) -> set[Path]:
    """Each directory and its parent; of those that do not exist, the nearest ancestor that does."""
    watched = set()
    for directory in directories:
        for path in (directory, directory.parent):
            while not path.is_dir() and path != path.parent:
                path = path.parent  # noqa: PLW2901
            watched.add(path)
    return watched


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
