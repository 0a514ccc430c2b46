"""View: the three snapshots that everything served is made of, and one number that changes with them."""

import asyncio
from collections.abc import Callable, Iterable
from collections.abc import Mapping as ReadOnly
from typing import Final

from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED, DaemonStatus, Device, DeviceState
from vdpa_agent.model.health import Check, Health, assess
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress

_LOOK_S: Final = 1.0
"""How often the sockets of a foreign mapping are looked at, where they decide readiness."""

DeadSockets = Callable[[Iterable[str]], dict[str, str]]
"""Of some socket paths, those that nobody can connect to, each with the reason."""


class View:
    """Reads the snapshots; writes none of them.

    Attributes:
        wanted: the device list.
        mapping: the mapping.
        daemon: the daemon and its devices.
        revision: changes after each change of one of them, and for good at the end of the agent.
        ended: whether the agent stops: nothing may be promised any more.
    """

    def __init__(
        self,
        wanted: Latest[Loaded[DeviceList]],
        mapping: Latest[Loaded[Mapping]],
        daemon: Latest[DaemonStatus],
        *,
        dead_sockets: DeadSockets = lambda _paths: {},
        require_sockets: bool = False,
    ) -> None:
        """Follows nothing yet.

        Args:
            wanted: the device list.
            mapping: the mapping.
            daemon: the daemon and its devices.
            dead_sockets: looks at the kernel's socket table.
            require_sockets: whether a foreign mapping is ready only if all of its sockets listen.
        """
        self.wanted = wanted
        self.mapping = mapping
        self.daemon = daemon
        self.revision = Latest(0)
        self.ended = False
        self._dead_sockets = dead_sockets
        self._require_sockets = require_sockets

    async def run(self) -> None:
        """Turns changes of the snapshots into revisions, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(self.wanted))
            tasks.create_task(self._follow(self.mapping))
            tasks.create_task(self._follow(self.daemon))
            if self._require_sockets:
                tasks.create_task(self._look())

    def end(self) -> None:
        """The agent stops: tells everybody who follows."""
        self.ended = True
        self.revision.set(self.revision.value + 1)

    def dead(self) -> dict[str, str]:
        """The sockets of a foreign mapping that nobody can connect to, each with the reason."""
        if self.daemon.value.managed or self.mapping.value.value is None:
            return {}
        return self._dead_sockets(path for _, path in self.mapping.value.value)

    def devices(self) -> ReadOnly[PciAddress, Device]:
        """Every device that the daemon has or should have, or that somebody else's mapping names."""
        daemon, mapping = self.daemon.value, self.mapping.value.value
        if daemon.managed or mapping is None:
            return daemon.devices
        dead = self.dead()
        return {
            address: Device(
                address, path, DeviceState.FAILED if path in dead else DeviceState.READY, dead.get(path, "")
            )
            for address, path in mapping
        }

    def serves(self, device: Device) -> bool:
        """Whether the socket of such a device can be used now."""
        daemon = self.daemon.value
        return daemon.serves(device.address) if daemon.managed else device.state in SERVED

    def health(self) -> Health:
        """Whether the agent is live and ready now."""
        if self.ended:
            return Health(live=True, checks=(Check("agent", "the agent stops"),))
        dead = self.dead() if self._require_sockets else {}
        return assess(self.wanted.value, self.mapping.value, self.daemon.value, dead)

    async def _follow(
        self, latest: "Latest[Loaded[DeviceList]] | Latest[Loaded[Mapping]] | Latest[DaemonStatus]"
    ) -> None:
        async for _ in latest.changes():
            self.revision.set(self.revision.value + 1)

    async def _look(self) -> None:
        before: dict[str, str] = {}
        while True:
            await asyncio.sleep(_LOOK_S)
            dead = self.dead()
            if dead != before:
                before = dead
                self.revision.set(self.revision.value + 1)
