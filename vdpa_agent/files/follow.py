"""Tells when one of some files may have changed, whatever way it was written."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from pathlib import Path
from stat import S_ISDIR
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
        with _held(_present(directories)) as watched:
            async with contextlib.aclosing(_events(watched)) as events:
                async for _ in events:
                    yield
                    if _present(directories) != watched:
                        break  # a directory is another one now: watch that


async def _events(directories: Iterable[Path]) -> AsyncGenerator[None]:
    """Yields once the kernel watches, then after each change and each second; ends when the watch fails."""
    changes = awatch(
        *directories,
        watch_filter=None,  # a ConfigMap swap reports only `..data`
        recursive=False,
        step=_STEP_MS,
        debounce=_GATHER_MAX_MS,
        rust_timeout=_RECHECK_MS,
        yield_on_timeout=True,
    )
    try:
        async with contextlib.aclosing(changes):
            # awatch sets up its watch in the first step of its first wait; what changed before is looked at after.
            first = asyncio.ensure_future(anext(changes))
            try:
                await asyncio.sleep(0)
                yield
                await first
            finally:
                first.cancel()
                await asyncio.wait({first})
            yield
            async for _ in changes:
                yield
    except* (OSError, RuntimeError, UnicodeError) as group:
        # One undecodable file name, an exhausted fs.inotify limit: follow on, at worst by looking every second.
        reasons = "; ".join(str(error) for error in group.exceptions)
        log.warning("watch_interrupted", reason=reasons, remedy="see fs.inotify limits and the directory's names")
        await asyncio.sleep(_RECHECK_MS / 1000)


@contextlib.contextmanager
def _held(directories: dict[Path, tuple[int, int]]) -> Iterator[dict[Path, tuple[int, int]]]:
    """Keeps the numbers of these directories from being given to others, should they be removed and made again."""
    with contextlib.ExitStack() as open_directories:
        for path in directories:
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                open_directories.callback(os.close, descriptor)
        yield directories


def _present(directories: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Each directory and its parent with what they are now; of those that do not exist, the nearest ancestor."""
    watched = {}
    for directory in directories:
        for path in (directory, directory.parent):
            while (identity := _identity(path)) is None and path != path.parent:
                path = path.parent  # noqa: PLW2901
            if identity is not None:
                watched[path] = identity
    return watched


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if S_ISDIR(status.st_mode) else None
