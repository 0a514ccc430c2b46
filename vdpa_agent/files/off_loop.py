"""OffLoop: does file work off the event loop, within a time, and gives every failure in words."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from vdpa_agent.errors import FileRefused
from vdpa_agent.files.disk import words
from vdpa_agent.node.worker import Stuck, Worker

T = TypeVar("T")

_ANSWER_S: Final = 3.0
"""How long a file system may take: a healthy one answers in milliseconds, a hung one never."""

_REASONS_MAX: Final = 64
"""So many reasons are remembered: what a file is refused for can quote the file."""


class OffLoop:
    """One thread for file work, one job at a time."""

    def __init__(self, name: str) -> None:
        """Starts no thread yet.

        Args:
            name: the thread's, for people who look at the process.
        """
        self._worker = Worker(name)
        self._turn = asyncio.Lock()

    async def do(self, job: Callable[[], T], place: Path | str) -> T:
        """Returns what `job` returns. Cancellation leaves the job to the thread.

        While a job of before is stuck, a further one is refused at once.

        Args:
            job: what may block.
            place: the file that it works on, or several, for messages.

        Raises:
            FileRefused: the job refused something, failed with an OSError, or did not end in time.
        """
        try:
            async with self._turn:
                return await self._worker.run(job, timeout_s=_ANSWER_S)
        except Stuck as error:
            message = f"{place}: {error}"
            raise FileRefused(message) from error
        except OSError as error:
            raise FileRefused(words(error)) from error


class Once:
    """Which reasons have been logged already, so that a fault that stays is not logged at every try."""

    def __init__(self) -> None:
        """Knows none yet."""
        self._known: set[str] = set()

    def is_new(self, reason: str) -> bool:
        """Whether a reason comes for the first time since the last success."""
        if reason in self._known:
            return False
        if len(self._known) >= _REASONS_MAX:
            self._known.clear()
        self._known.add(reason)
        return True

    def forget(self) -> bool:
        """It works again; whether it did not before."""
        failed = bool(self._known)
        self._known.clear()
        return failed
