"""Tells when one of some files may have changed, whatever way it was written."""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from stat import S_ISDIR
from typing import Final

import structlog

_STEP_MS: Final = 1
"""How long nothing more must happen before watchfiles tells."""

_GATHER_MAX_MS: Final = 50
"""A file that is written without a pause is told of at least this often."""

_AT_ONCE: Final = 32
"""So many events are told of at once; what comes then, before a pause of 50 ms, watchfiles gathers."""

_NOTHING_MS: Final = 2
"""How long watchfiles is asked where there is nothing more to gather, or nothing that it tells of."""

_RECHECK_S: Final = 4.0
"""Without any event the files are looked at again after this time: the kernel drops events when its queue is full."""

_BROKEN_S: Final = 1.0
"""The same where there is no watch."""

_NAMES: Final = 0x00000FC0
"""Of linux/inotify.h: IN_MOVED_FROM to IN_MOVE_SELF, what comes and goes. Of a parent it is all that matters."""

_CHANGES: Final = _NAMES | 0x0000000E
"""The same with IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE: all but what reading the files does."""

_QUEUE_BYTES: Final = 64 * 1024

log = structlog.get_logger(__name__)


async def follow(files: Iterable[Path]) -> AsyncIterator[None]:
    """Yields at once, then after everything that may have changed one of `files`, and at least every 4 s.

    Watched are the directories and their parents: a watch on a file sees only its first replacement, and a directory
    that was removed and made again is silent for ever. The reader compares contents; a yield promises nothing.

    Cancellation ends it and its thread.
    """
    directories = {file.parent for file in files}
    while True:
        with _held(_present(directories)) as watched:
            there = directories & watched.keys()
            async with contextlib.aclosing(_events(there, watched.keys() - there)) as events:
                async for _ in events:
                    yield
                    if _present(directories) != watched:
                        break  # a directory is another one now: watch that


async def _events(directories: Collection[Path], parents: Collection[Path]) -> AsyncGenerator[None]:
    """Yields once the kernel watches, then after each change and every 4 s; ends when the watch fails.

    A queue of our own says that there is something. watchfiles, which would look for that up to 1,000 times a second,
    gathers what a writer does who leaves no pause.
    """
    loop = asyncio.get_running_loop()
    paths = [str(path) for path in directories]
    masks = dict.fromkeys(parents, _NAMES) | dict.fromkeys(directories, _CHANGES)
    try:
        with _bell(masks) as bell:
            yield
            at_once = _AT_ONCE
            while True:
                since_s = loop.time()
                rung = await _readable(bell)
                if loop.time() - since_s > _GATHER_MAX_MS / 1000:
                    at_once = _AT_ONCE
                if rung:
                    if at_once:
                        at_once -= 1
                    else:
                        await _gathered(paths)
                    # Before the files are read: what comes later rings again.
                    with contextlib.suppress(BlockingIOError):
                        os.read(bell, _QUEUE_BYTES)
                yield
    except (OSError, ImportError, RuntimeError, UnicodeError) as error:
        # One undecodable file name, an exhausted limit of the kernel: follow on, at worst by looking every second.
        log.warning("watch_interrupted", reason=str(error), remedy="see fs.inotify limits and the directory's names")
        await asyncio.sleep(_BROKEN_S)


@contextlib.contextmanager
def _bell(masks: Mapping[Path, int]) -> Iterator[int]:
    """An inotify queue, readable when what its mask tells of has happened in one of these directories.

    Raises:
        OSError: a limit of the kernel is reached, or a directory is gone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if queue < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        for path, mask in masks.items():
            if libc.inotify_add_watch(queue, os.fsencode(path), mask) < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        yield queue
    finally:
        os.close(queue)


async def _readable(queue: int) -> bool:
    """Waits for something in the queue; false if there was nothing in 4 s."""
    loop = asyncio.get_running_loop()
    rung = asyncio.Event()
    loop.add_reader(queue, rung.set)
    try:
        async with asyncio.timeout(_RECHECK_S):
            await rung.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(queue)
    return True


async def _gathered(paths: list[str]) -> None:
    """Lets watchfiles see to the end of what happens; a cancelled one still waits for its thread.

    Raises:
        ImportError, OSError, RuntimeError, UnicodeError: it has no descriptor left, or meets an undecodable name.
    """
    # Imported by who needs it: few nodes ever do, and it brings more along than all the rest of this.
    from watchfiles._rust_notify import RustNotify  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    with RustNotify(paths, False, False, 0, False, False) as watch:  # noqa: FBT003
        gathering = loop.run_in_executor(None, watch.watch, _GATHER_MAX_MS, _STEP_MS, _NOTHING_MS, None)
        try:
            await asyncio.shield(gathering)
        finally:
            await asyncio.wait({gathering})


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
