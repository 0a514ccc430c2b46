"""Names: gives the devices their socket names, in one place for all daemons."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import structlog

from vdpa_agent.config import DaemonConfig
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.naming import DEVICE_SOCKET, SocketNaming, assign_names
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Pool

_LOOK_S: Final = 1.0
"""How often it is looked at most whether the names are still kept; each daemon asks for it every few seconds."""

log = structlog.get_logger(__name__)


class KeptNames(Protocol):
    """The socket names of earlier agents, as they were kept."""

    @property
    def names(self) -> Mapping[PciAddress, str]:
        """By address, in the order in which they were written."""

    @property
    def this_boot(self) -> bool:
        """Whether they were written since the node booted: then a pod may still have been given them."""


class NameStore(Protocol):
    """Keeps socket names over restarts of the agent."""

    async def read(self) -> KeptNames:
        """The names as last written."""

    async def write(self, names: Mapping[PciAddress, str]) -> bool:
        """Keeps these names from now on; False: not now, and they should be written again."""

    async def is_current(self, names: Mapping[PciAddress, str]) -> bool:
        """Whether these names are what is kept."""


class Names:
    """The socket names of all devices of the list, and of those that were on it."""

    def __init__(
        self, naming: SocketNaming, *, wanted: Latest[Loaded[DeviceList]], store: NameStore, steps: DestructiveSteps
    ) -> None:
        """Names nothing yet.

        Args:
            naming: the scheme.
            wanted: what the whole list says.
            store: keeps the names.
            steps: where renumbered devices are counted.
        """
        self._naming = naming
        self._wanted = wanted
        self._store = store
        self._steps = steps
        self._names: dict[PciAddress, str] | None = None
        self._named_for: DeviceList = ()
        self._are_kept = True
        self._looked_s = 0.0
        self._turn = asyncio.Lock()

    async def give(self) -> Mapping[PciAddress, str]:
        """The names by address; each device of the list has one."""
        async with self._turn:
            wanted = self._wanted.value.value or ()
            before = await self._first(wanted) if self._names is None else self._names
            if self._names is None or wanted is not self._named_for:
                self._named_for = wanted
                names, taken_over = assign_names(self._naming, before, wanted)
                for address in taken_over:
                    self._steps[Destructive.DEVICE_RENUMBERED] += 1
                    log.warning("device_number_reused", device=address, socket=before[address])
                if names != before:
                    self._are_kept = self._naming is not SocketNaming.INDEX
                self._names = names
            await self._keep()
            return MappingProxyType(self._names)

    async def look(self) -> None:
        """Has the names kept again if they are not any more."""
        if self._naming is not SocketNaming.INDEX or self._turn.locked():
            return
        async with self._turn:
            now_s = asyncio.get_running_loop().time()
            if self._names is None or now_s < self._looked_s + _LOOK_S:
                return
            self._looked_s = now_s
            self._are_kept = self._are_kept and await self._store.is_current(self._names)
            await self._keep()

    async def _first(self, wanted: DeviceList) -> dict[PciAddress, str]:
        """The names of earlier agents that still count."""
        if self._naming is not SocketNaming.INDEX:
            return {}
        kept = await self._store.read()
        # After a boot of the node no pod has a path of before: only the devices of the list keep theirs.
        present = frozenset(wanted)
        return {address: name for address, name in kept.names.items() if kept.this_boot or address in present}

    async def _keep(self) -> None:
        if not self._are_kept and self._names is not None:
            self._are_kept = await self._store.write(self._names)


def place_of(config: DaemonConfig, address: PciAddress, name: str, pool: Pool | None) -> tuple[VhostMode, str]:
    """Which end opens the socket of a device, and where: a front end of a pool's device in that one's directory."""
    mode = (pool.vhost_mode if pool else None) or config.vhost_mode
    if pool is not None and mode is VhostMode.CLIENT:
        return mode, str(config.device_dir / address / DEVICE_SOCKET)
    return mode, str(config.socket_dir / name)
