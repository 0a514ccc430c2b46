"""Yields whenever one of some files may have changed, whatever way it was written."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from vdpa_agent.errors import FileRefused
from vdpa_agent.files.off_loop import OffLoop, Once
from vdpa_agent.files.watch import Watch
from vdpa_agent.node.mounts import on_mounts

_AT_ONCE: Final = 32
"""So many events are passed on at once; what comes then, before a pause, is gathered."""

_GATHER_MS: Final = 50
"""A file that is written without a pause is passed on at least this often; a pause of so long ends the gathering."""

_STEP_MS: Final = 2
"""How long nothing more must happen for what was gathered to be passed on."""

_RECHECK_S: Final = 4.0
"""Without any event the files are looked at again after this time: the kernel drops events when its queue is full,
and has none for what is done on another machine.
"""

_BROKEN_S: Final = 1.0
"""The same where there is no watch."""

log = structlog.get_logger(__name__)


async def follow(files: Iterable[Path], *, quiet: bool = False) -> AsyncGenerator[None]:
    """Yields at once, then after everything that may have changed one of `files`, and at least every 4 s.

    Where there is no watch, from the start or later, it yields every second, until there is one. The reader compares
    contents; a yield promises nothing.

    Args:
        files: what to follow; their directories are watched.
        quiet: whether a watch that fails is logged at debug level alone: for what is looked at now and then anyway.
    """
    directories = frozenset(file.parent for file in files)
    place = ", ".join(sorted(map(str, directories)))
    off_loop = OffLoop("watch")
    failures = Once()
    pace = _Pace(directories)
    yield
    with on_mounts(pace.rung.set):
        while True:
            try:
                with await off_loop.do(partial(Watch, directories), place) as watch:
                    if failures.forget() and not quiet:
                        log.info("watch_restored")
                    yield  # for what came before the watch
                    while await off_loop.do(watch.is_current, place):
                        await pace.wait(watch)
                        yield
                await asyncio.sleep(_GATHER_MS / 1000)  # a directory is another one now; that may go on without a pause
            except FileRefused as error:
                if failures.is_new(str(error)):
                    remedy = "meanwhile the files are looked at every second"
                    report = log.debug if quiet else log.warning
                    report("watch_interrupted", reason=str(error), remedy=remedy)
                await pace.rest()
                yield


class _Pace:
    """Waits for events; passes a few on at once, and gathers those of a writer who leaves no pause.

    Attributes:
        rung: whether something has happened since the last wait.
    """

    def __init__(self, directories: Collection[Path]) -> None:
        self.rung = asyncio.Event()
        self._directories = sorted(map(str, directories))
        self._off_loop = OffLoop("gather")
        self._at_once = _AT_ONCE

    async def wait(self, watch: Watch) -> None:
        """Waits until something happened, for at most 4 s."""
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        rung = await self._rings(watch.queue)
        if loop.time() - since_s > _GATHER_MS / 1000:
            self._at_once = _AT_ONCE
        if rung and not self._at_once:
            began_s = loop.time()
            watch.drain()
            await self._off_loop.do(partial(_gather, self._directories), ", ".join(self._directories))
            if watch.drain():  # it goes on, where watchfiles may see nothing: a directory that is made again
                await asyncio.sleep(max(0.0, began_s + _GATHER_MS / 1000 - loop.time()))
        elif rung:
            self._at_once -= 1
        # Before the files are read: what comes later rings again.
        watch.drain()

    async def rest(self) -> None:
        """Waits for a second where there is no watch, or until a mount; mounts may go on without a pause."""
        await asyncio.sleep(_GATHER_MS / 1000)
        await self._rung_within(_BROKEN_S - _GATHER_MS / 1000)

    async def _rings(self, queue: int) -> bool:
        """Waits for something in the queue, or mounted; false if there was nothing in 4 s."""
        loop = asyncio.get_running_loop()
        loop.add_reader(queue, self.rung.set)
        try:
            return await self._rung_within(_RECHECK_S)
        finally:
            loop.remove_reader(queue)

    async def _rung_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.rung.wait()
        except TimeoutError:
            return False
        finally:
            self.rung.clear()
        return True


def _gather(directories: Collection[str]) -> None:
    """Has watchfiles see to the end of what happens; where it cannot, a pause does."""
    try:
        # watchfiles starts a thread, and ends the whole process where there is none left; Python's raises.
        probe = threading.Thread(target=_nothing)
        probe.start()
        probe.join()
        # Imported by the few nodes that need it: it brings more along than all the rest of this.
        from watchfiles import watch  # noqa: PLC0415

        events = watch(
            *directories,
            watch_filter=None,
            debounce=_GATHER_MS,
            step=_STEP_MS,
            rust_timeout=_STEP_MS,
            yield_on_timeout=True,
            recursive=False,
        )
        with closing(events):
            next(events, None)
    except BaseException:  # noqa: BLE001 - out of threads or descriptors, a name that is not UTF-8, a panic of Rust's
        time.sleep(_GATHER_MS / 1000)


def _nothing() -> None:
    """What a thread does that is only to be there."""
