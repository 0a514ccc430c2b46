"""MappingOutput: keeps the mapping file at what several daemons serve, none of which writes it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from vdpa_agent.daemon.repair import MappingRepair
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED, Device, DeviceState
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.plan import Mapped

WriteMapping = Callable[[Mapping[PciAddress, str]], Awaitable[str]]
"""Replaces the mapping file; returns why it could not, empty if it did."""


class MappingOutput:
    """Writes the mapping after each change of the devices, and again when another process changed it."""

    def __init__(self, write: WriteMapping, *, retire: Callable[[], Awaitable[None]], repair: MappingRepair) -> None:
        """Writes nothing yet.

        Args:
            write: replaces the file.
            retire: takes it away.
            repair: compares it with what it should say.
        """
        self._write = write
        self._retire = retire
        self._repair = repair

    async def run(self, devices: Latest[Mapping[PciAddress, Device]]) -> None:
        """Keeps the file until cancelled, then takes it away."""
        repair = self._repair
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_wake_on_change(devices, repair.wake))
                tasks.create_task(repair.wake_on_change())
                written: dict[PciAddress, str] | None = {}
                while True:
                    repair.wake.clear()
                    expected = _mapped(devices.value)
                    if expected != written:
                        # What cannot be written now is reported by the repair, and tried again at each change too.
                        written = None if await self._write(expected) else expected
                    await repair.step(partial(self._write, expected), Mapped(expected))
                    await repair.pause()
        finally:
            await self._retire()


def _mapped(devices: Mapping[PciAddress, Device]) -> dict[PciAddress, str]:
    """What the file should say: the devices whose sockets are there."""
    states = SERVED | {DeviceState.REMOVING}
    return {address: device.socket for address, device in devices.items() if device.state in states}


async def _wake_on_change(latest: Latest[Any], wake: asyncio.Event) -> None:
    async for _ in latest.changes():
        wake.set()
