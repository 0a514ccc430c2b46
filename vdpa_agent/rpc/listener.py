"""Serves the gRPC socket, and makes it again when another process has taken it away."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import structlog

from vdpa_agent.config import ServeConfig
from vdpa_agent.errors import ListenError
from vdpa_agent.latest import Latest
from vdpa_agent.model.health import Standing
from vdpa_agent.node.mounts import on_mounts
from vdpa_agent.node.worker import Stuck, Worker
from vdpa_agent.rpc.connections import Connections
from vdpa_agent.rpc.handled import Handled
from vdpa_agent.rpc.peers import Peers
from vdpa_agent.rpc.place import Place
from vdpa_agent.rpc.repeats import Repeats

_OTHER_FILES: Final = 256
"""Descriptors that the agent needs beside those of its connections."""

_LOOK_S: Final = 1.0
"""How often the place on disk is looked at, and how long that may take."""

_GATHER_S: Final = 0.01
"""How long mounts that follow one another are gathered."""

_START_S: Final = 10.0
"""How long the file system may take when the socket is made first."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


@asynccontextmanager
async def listening(
    config: ServeConfig, services: Collection[Any], standing: Latest[Standing]
) -> AsyncIterator[tuple[Peers, Handled]]:
    """Serves `services` on the socket while the context lasts; yields what counts who calls.

    Args:
        config: where, and whom.
        services: what can be called.
        standing: is set to what is wrong with the socket and its directory, while something is.

    Raises:
        AlreadyRunning: another instance holds the socket.
        ListenError: the socket cannot be opened there.
    """
    _raise_file_limit(config.limits.connections + _OTHER_FILES)
    keeper = _Keeper(config, standing)
    try:
        await keeper.take()
        peers = Peers(config.limits, asyncio.get_running_loop().time)
        connections = Connections(services, peers)
        try:
            keeper.adopt(connections)
            log.info("listening", socket=str(config.listen), mode=f"{config.listen_mode:04o}")
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(keeper.run(connections), name="listener")
                yield peers, connections.handled
                keeping.cancel()
        finally:
            await connections.end()
    finally:
        await keeper.leave()


class _Keeper:
    """Has the socket made, looked at, and made again, by a thread: any file system may hang."""

    def __init__(self, config: ServeConfig, standing: Latest[Standing]) -> None:
        self._config = config
        self._standing = standing
        self._place = Place(config)
        self._worker = Worker("listener")
        self._repeats = Repeats(asyncio.get_running_loop().time, at_once=3, every_s=10.0, of_all=10)

    async def take(self) -> None:
        """Makes the socket.

        Raises:
            ListenError: it cannot be made there.
        """
        try:
            await self._worker.run(self._place.take, timeout_s=_START_S)
        except Stuck as error:
            message = f"--listen: {self._config.listen}: {error}"
            raise ListenError(message) from None

    async def leave(self) -> None:
        """Takes the socket away, unless the file system hangs."""
        with suppress(Stuck):
            await self._worker.run(self._place.leave, timeout_s=_LOOK_S)

    def adopt(self, connections: Connections) -> None:
        """Has connections taken by the socket that was made last."""
        bound, self._place.bound = self._place.bound, None
        if bound is not None:
            connections.listen(bound)

    async def run(self, connections: Connections) -> None:
        """Looks after the place, now and then and at once when something was mounted, until cancelled."""
        mounted = asyncio.Event()
        with on_mounts(mounted.set):
            while True:
                mounted.clear()
                with suppress(Stuck):
                    await self._look_after(connections)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await mounted.wait()
                await asyncio.sleep(_GATHER_S)

    async def _look_after(self, connections: Connections) -> None:
        standing = await self._in_time(self._place.look)
        self.adopt(connections)  # what was late
        self._standing.set(standing)
        if not standing.not_ready:
            return
        if count := self._repeats.due(standing):
            log.warning("socket_lost", reason=standing.not_ready, count=count)
        if standing.not_live:
            return
        try:
            await self._in_time(self._place.take)
        except ListenError as error:
            reason = str(error)
            self._standing.set(Standing(not_ready=reason))
            if count := self._repeats.due(reason):
                log.error("socket_not_restored", reason=reason, count=count)
        else:
            self.adopt(connections)
            self._standing.set(Standing())
            if count := self._repeats.due("restored"):
                log.info("socket_restored", socket=str(self._config.listen), count=count)

    async def _in_time(self, job: Callable[[], T]) -> T:
        """What a job returns.

        Raises:
            Stuck: it takes too long; everybody was informed.
        """
        try:
            return await self._worker.run(job, timeout_s=_LOOK_S)
        except Stuck as error:
            reason = f"{self._config.listen.parent}: {error}"
            self._standing.set(Standing(not_ready=reason))
            if count := self._repeats.due(reason):
                log.warning("socket_lost", reason=reason, count=count)
            raise


def _raise_file_limit(needed: int) -> None:
    """Lets the process have so many descriptors, or as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        log.warning(
            "file_limit_low",
            limit=most,
            needed=needed,
            remedy="raise the hard limit of open files, or lower --max-connections",
        )
