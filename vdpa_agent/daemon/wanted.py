"""Wanted: the devices of all sources together, in one value."""

import asyncio
from typing import Any

from vdpa_agent.latest import Latest
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import DeviceList
from vdpa_agent.model.pools import Pools, together


class Wanted:
    """Joins the device list and the pools.

    Attributes:
        devices: the union; nothing else writes it.
    """

    def __init__(self, listed: Latest[Loaded[DeviceList]], pools: Latest[Loaded[Pools]]) -> None:
        """Joins what there is now."""
        self.devices: Latest[Loaded[DeviceList]] = Latest(Loaded())
        self._listed = listed
        self._pools = pools
        self.join()

    def join(self) -> None:
        """Joins what there is now."""
        self.devices.set(together(self._listed.value, self._pools.value))

    async def run(self) -> None:
        """Joins after each change, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._join_on_change(self._listed))
            tasks.create_task(self._join_on_change(self._pools))

    async def _join_on_change(self, latest: Latest[Any]) -> None:
        async for _ in latest.changes():
            self.join()
