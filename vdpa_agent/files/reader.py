"""Reader: shows one file to its LastGood, off the event loop, when it may have changed."""

import asyncio
from collections.abc import Callable, Sized
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Content, Found, Unreadable
from vdpa_agent.files.last_good import LastGood
from vdpa_agent.files.off_loop import OffLoop

T = TypeVar("T", bound=Sized)

_FIRST_WAIT_S: Final = 0.2
"""The longest wait of the first look: for what is refused to stay so."""

_FIRST_LOOKS: Final = 5
"""The most looks of the first: a file may be written all the time."""

log = structlog.get_logger(__name__)


def content_of(found: Found | Unreadable | None, _now: float) -> Content:
    """What was read, as it was read."""
    return found.content if isinstance(found, Found) else found


class Reader(Generic[T]):
    """Shows one file to its LastGood, off the event loop, when it may have changed.

    Attributes:
        name: the file's.
        changed: set when the file may have changed.
        off_loop: where its file is worked on.
    """

    def __init__(
        self,
        path: Path,
        last_good: LastGood[T],
        take: Callable[[Found | Unreadable | None, float], Content] = content_of,
    ) -> None:
        """Reads nothing yet.

        Args:
            path: the file.
            last_good: what it is shown to.
            take: what to make of what was read, in the thread that reads.
        """
        self.name = path.name
        self.changed = asyncio.Event()
        self._path = path
        self._last_good = last_good
        self._take = take
        self.off_loop = OffLoop(f"read {path.name}")
        self._detached = False

    async def run(self) -> None:
        """Looks whenever the file may have changed, until cancelled."""
        while True:
            self.changed.clear()
            wait_s = await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.changed.wait()

    async def first(self) -> None:
        """Looks until what is there has settled, for some tenths of a second."""
        for _ in range(_FIRST_LOOKS):
            wait_s = await self._look()
            if wait_s is None or wait_s > _FIRST_WAIT_S:
                return
            await asyncio.sleep(wait_s)

    async def _look(self) -> float | None:
        now = asyncio.get_running_loop().time()
        try:
            content = await self.off_loop.do(partial(self._read, now), self._path)
        except FileRefused as error:
            content = Unreadable(str(error))
        return self._last_good.look(content, now)

    def _read(self, now: float) -> Content:
        found = disk.find(self._path)
        if isinstance(found, Found) and found.detached and not self._detached:
            log.warning(
                "file_detached",
                file=str(self._path),
                remedy="it was replaced where it is mounted from and never changes here: mount its directory",
            )
        self._detached = isinstance(found, Found) and found.detached
        return self._take(found, now)
