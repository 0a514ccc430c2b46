"""Roles: keeps the agent's role current; nothing else decides it."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from vdpa_agent.config import DaemonConfig, DaemonMode
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.names import NameStore
from vdpa_agent.errors import AlreadyRunning, ListenError
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList
from vdpa_agent.model.role import is_own, role_after
from vdpa_agent.node.lock import Lock
from vdpa_agent.node.sockets import dead_sockets
from vdpa_agent.node.worker import Stuck, Worker

_LOOK_S: Final = 1.0
"""How often a mapping that looks like this agent's own is looked at, as long as it decides the role."""

_DISK_S: Final = 2.0
"""How long the file system of the sockets may take to answer."""

log = structlog.get_logger(__name__)


class Roles:
    """Decides who owns the vhost-user sockets, by what is there.

    Attributes:
        role: the role; nothing else writes it.
    """

    def __init__(
        self,
        config: DaemonConfig,
        *,
        wanted: Latest[Loaded[DeviceList]],
        mapping: Latest[Loaded[Mapping]],
        names: NameStore,
        socket_list: Path,
        directory: SocketDirectory,
    ) -> None:
        """Looks at nothing yet.

        Args:
            config: whether a daemon is managed, and where its sockets are.
            wanted: the device list.
            mapping: the mapping file.
            names: the socket names that agents before this one gave.
            socket_list: the mapping file; one agent alone manages the sockets that it names.
            directory: that of the sockets, likewise.
        """
        manages = config.mode in {DaemonMode.VDPAD, DaemonMode.COMMAND}
        self.role = Latest(Role.MANAGING if manages else Role.WAITING)
        self._config = config
        self._wanted = wanted
        self._mapping = mapping
        self._names = names
        self._worker = Worker("roles")
        self._wake = asyncio.Event()
        self._lock = Lock(socket_list.with_name(f".{socket_list.name}.lock"), socket_list, "--socket-list")
        self._directory = directory
        self._claimed = False
        self._not_locked = ""

    async def run(self) -> None:
        """Follows what decides the role, until cancelled.

        Raises:
            AlreadyRunning: another agent manages the sockets that this one is to manage.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wake_on_change(self._wanted))
            tasks.create_task(self._wake_on_change(self._mapping))
            while True:
                self._wake.clear()
                looks_own = await self.decide()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S if looks_own or self._claimed else None):
                        await self._wake.wait()
                if self._claimed:
                    try:
                        await self._lock_mapping()
                    except AlreadyRunning as error:  # what that agent finds in use it leaves alone
                        self._note(str(error))

    async def decide(self) -> bool:
        """Decides now; returns whether a mapping has a say that looks like this agent's own.

        Raises:
            AlreadyRunning: another agent manages the sockets that this one is to manage.
        """
        mapping = self._mapping.value
        looks_own = leftover = False
        may_manage = self._config.mode is DaemonMode.AUTO
        if may_manage and mapping.value is not None and self.role.value is not Role.MANAGING:
            names = (await self._names.read()).names
            looks_own = is_own(mapping.value, names, self._config.socket_dir, self._config.device_dir)
            leftover = looks_own and await self._is_dead(mapping.value)
        role = role_after(self.role.value, self._wanted.value, mapping, may_manage=may_manage, leftover=leftover)
        if role is Role.MANAGING and not self._claimed:
            await self._claim()
        if role is not self.role.value:
            log.info("role_decided", role=str(role), mapping_is_own_leftover=leftover)
        self.role.set(role)
        return looks_own

    async def aclose(self) -> None:
        """Lets another agent manage the sockets."""
        with suppress(Stuck):
            await self._worker.run(self._lock.leave, timeout_s=_DISK_S)
        with suppress(Stuck):
            await self._directory.leave()

    async def _claim(self) -> None:
        """Keeps other agents from the mapping and its sockets, before anything of them is touched."""
        self._claimed = True
        await self._lock_mapping()
        await self._directory.claim()

    async def _lock_mapping(self) -> None:
        """Holds the lock, also after another process took it away.

        Raises:
            AlreadyRunning: another agent holds it.
        """
        reason = ""
        try:
            await self._worker.run(self._lock.take, timeout_s=_DISK_S)
        except AlreadyRunning:
            raise
        except (ListenError, Stuck) as error:
            # Where this agent cannot write, it replaces nothing of another one either.
            reason = str(error)
        self._note(reason)

    def _note(self, not_locked: str) -> None:
        if not_locked and not_locked != self._not_locked:
            log.warning("mapping_not_locked", reason=not_locked)
        self._not_locked = not_locked

    async def _is_dead(self, mapping: Mapping) -> bool:
        """Whether nothing serves any socket of a mapping; where front ends open them, that cannot be seen."""
        if self._config.vhost_mode is VhostMode.CLIENT:
            return True
        paths = [path for _, path in mapping if Path(path).parent.parent != self._config.device_dir]
        try:
            return len(await self._worker.run(lambda: dead_sockets(paths), timeout_s=_DISK_S)) == len(paths)
        except Stuck:
            return False

    async def _wake_on_change(self, latest: Latest[Any]) -> None:
        async for _ in latest.changes():
            self._wake.set()
