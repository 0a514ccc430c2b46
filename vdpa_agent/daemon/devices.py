"""Devices: makes the devices of a running daemon those of the list, one by one."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import structlog

from vdpa_agent.config import DaemonConfig
from vdpa_agent.daemon.control import Control
from vdpa_agent.errors import RequestRefused
from vdpa_agent.latest import Latest
from vdpa_agent.model.backoff import Backoff
from vdpa_agent.model.daemon import DaemonStatus, Device, DeviceState
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.naming import assign_names
from vdpa_agent.model.pci import DeviceList, PciAddress

_RETRY: Final = Backoff(first_s=1.0, cap_s=60.0)
"""When a device that the daemon refused to add or remove is asked for again."""

log = structlog.get_logger(__name__)


class Devices:
    """Follows the list by `device.add` and `device.remove`, and writes the devices of the status."""

    def __init__(
        self,
        config: DaemonConfig,
        wanted: Latest[Loaded[DeviceList]],
        status: Latest[DaemonStatus],
        spread: Callable[[], float],
    ) -> None:
        """Asks for nothing yet.

        Args:
            config: where sockets are and how they are named.
            wanted: what the list says.
            status: the status of which it writes `devices`.
            spread: where in its jitter a backoff is, -1 to 1.
        """
        self._config = config
        self._wanted = wanted
        self._status = status
        self._spread = spread
        self._names: dict[PciAddress, str] = {}
        self._refusals: dict[PciAddress, tuple[int, float]] = {}

    async def follow(self, control: Control) -> None:
        """Keeps a daemon that has just started at what the list says, until cancelled.

        Raises:
            DaemonLost: the control channel failed.
        """
        self._refusals.clear()
        self._show({})
        while True:
            seen = self._wanted.value
            await self._reconcile(control, seen.value or ())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._next_retry_s()):
                    await self._wanted.wait_for(lambda loaded, seen=seen: loaded is not seen)  # type: ignore[misc]

    def forget(self, reason: str) -> None:
        """The daemon is gone: every device of the list is wanted again, for the given reason."""
        self._show({})
        for device in self._known().values():
            self._set(replace(device, reason=reason))

    async def _reconcile(self, control: Control, wanted: DeviceList) -> None:
        # Removals first: their names are free again for what is new.
        for address in [address for address in self._known() if address not in wanted]:
            await self._remove(control, self._known()[address])
        self._show(self._known())
        for address in wanted:
            device = self._known()[address]
            if device.state in {DeviceState.WANTED, DeviceState.FAILED} and self._is_due(address):
                await self._add(control, device)

    async def _add(self, control: Control, device: Device) -> None:
        self._set(replace(device, state=DeviceState.STARTING, reason=""))
        request = {"device": device.address, "devargs": "", "socket": device.socket}
        try:
            await control.call("device.add", request)
        except RequestRefused as error:
            self._refused(replace(device, state=DeviceState.FAILED, reason=str(error)), "device_failed")
            return
        self._refusals.pop(device.address, None)
        self._set(replace(device, state=DeviceState.READY, reason=""))
        log.info("device_ready", device=device.address, socket=device.socket)

    async def _remove(self, control: Control, device: Device) -> None:
        if not self._is_due(device.address):
            return
        if device.state is not DeviceState.WANTED:
            self._set(replace(device, state=DeviceState.REMOVING, reason="it left the list"))
            try:
                await control.call("device.remove", {"device": device.address})
            except RequestRefused as error:
                if error.code != _NO_SUCH_DEVICE:
                    self._refused(replace(device, state=DeviceState.REMOVING, reason=str(error)), "device_not_removed")
                    return
        self._refusals.pop(device.address, None)
        self._names.pop(device.address, None)
        self._show({address: other for address, other in self._known().items() if address != device.address})
        log.info("device_removed", device=device.address, socket=device.socket)

    def _refused(self, device: Device, event: str) -> None:
        refusals = self._refusals.get(device.address, (0, 0.0))[0] + 1
        delay_s = _RETRY.delay_s(refusals, self._spread())
        self._refusals[device.address] = (refusals, asyncio.get_running_loop().time() + delay_s)
        self._set(device)
        log.warning(event, device=device.address, reason=device.reason, retry_in_s=round(delay_s, 1))

    def _is_due(self, address: PciAddress) -> bool:
        return address not in self._refusals or asyncio.get_running_loop().time() >= self._refusals[address][1]

    def _next_retry_s(self) -> float | None:
        if not self._refusals:
            return None
        return max(0.0, min(due for _, due in self._refusals.values()) - asyncio.get_running_loop().time())

    def _known(self) -> MappingProxyType[PciAddress, Device]:
        return self._status.value.devices

    def _show(self, known: "dict[PciAddress, Device] | MappingProxyType[PciAddress, Device]") -> None:
        """Publishes the list's devices in its order, the known ones as they are, then the known that left the list."""
        wanted = self._wanted.value.value or ()
        leaving = {address: device for address, device in known.items() if address not in wanted}
        taken = {address: name for address, name in self._names.items() if address in wanted or address in leaving}
        self._names = assign_names(self._config.socket_naming, taken, (*wanted, *leaving))
        devices = {
            address: known[address] if address in known else self._new(address) for address in (*wanted, *leaving)
        }
        self._status.set(replace(self._status.value, devices=MappingProxyType(devices)))

    def _new(self, address: PciAddress) -> Device:
        return Device(address, str(self._config.socket_dir / self._names[address]), DeviceState.WANTED)

    def _set(self, device: Device) -> None:
        devices = {**self._known(), device.address: device}
        self._status.set(replace(self._status.value, devices=MappingProxyType(devices)))


_NO_SUCH_DEVICE: Final = -32001
"""The daemon's code for a device that it does not have (any more)."""
