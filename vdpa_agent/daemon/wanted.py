"""Wanted: the devices of all sources together, in one value."""

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
        """Joins what there is now.

        Args:
            listed: the device list.
            pools: the pools; whoever changes them calls `join` in the same step.
        """
        self.devices: Latest[Loaded[DeviceList]] = Latest(Loaded())
        self._listed = listed
        self._pools = pools
        self.join()

    def join(self) -> None:
        """Joins what there is now."""
        self.devices.set(together(self._listed.value, self._pools.value))

    async def run(self) -> None:
        """Joins after each change of the list, until cancelled."""
        async for _ in self._listed.changes():
            self.join()
