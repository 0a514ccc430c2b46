"""SocketDirectory: makes and looks at the directory of the sockets, off the event loop, for all daemons."""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.node.sockets import dead_sockets, make_directory, remove_stale_sockets
from vdpa_agent.node.worker import Worker

T = TypeVar("T")

_DISK_S: Final = 2.0
"""How long the file system of the sockets may take to answer."""

log = structlog.get_logger(__name__)


class SocketDirectory:
    """The directory of the sockets; one job at a time, and each waits for its turn.

    Every method raises Stuck where the file system does not answer.

    Attributes:
        touched: changes after each change in it.
    """

    def __init__(self, path: Path, steps: DestructiveSteps, touched: Latest[int]) -> None:
        """Touches nothing yet.

        Args:
            path: the directory.
            steps: where removed sockets are counted.
            touched: changes after each change in it.
        """
        self.touched = touched
        self._path = path
        self._steps = steps
        self._worker = Worker("sockets")
        self._turn = asyncio.Lock()

    async def make(self) -> None:
        """Makes it, should it be gone.

        Raises:
            OSError: it cannot be made.
        """
        await self._do(partial(make_directory, self._path))

    async def remove_stale(self, name: str | None = None) -> None:
        """Removes the sockets of daemons that ended.

        Args:
            name: the only one to look at; None: all. A daemon that starts is for a moment as deaf as one that ended.
        """
        for socket in await self._do(partial(remove_stale_sockets, self._path, name)):
            self._steps[Destructive.STALE_SOCKET_REMOVED] += 1
            log.warning("stale_socket_removed", socket=socket)

    async def dead(self, paths: Collection[str]) -> dict[str, str]:
        """Of these sockets, those that nobody listens on, each with the reason."""
        return await self._do(lambda: dead_sockets(paths))

    async def _do(self, job: Callable[[], T]) -> T:
        async with self._turn:
            return await self._worker.run(job, timeout_s=_DISK_S)
