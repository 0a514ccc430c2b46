"""Devices: makes the devices of a running vdpad those of the list, one by one, and watches their sockets."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import structlog

from vdpa_agent.config import DaemonConfig, VhostMode
from vdpa_agent.daemon.answers import parse_facts
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.messages import ErrorCode
from vdpa_agent.errors import RequestRefused
from vdpa_agent.latest import Latest
from vdpa_agent.model.backoff import Backoff
from vdpa_agent.model.daemon import NOTHING_KNOWN, SERVED, DaemonStatus, Device, DeviceState
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.naming import SocketNaming, assign_names
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.preflight import assess, devargs_of, takes_hugepages
from vdpa_agent.node.sockets import dead_sockets
from vdpa_agent.node.sysfs import read_facts, read_hugepages, read_numa

_RETRY: Final = Backoff(first_s=1.0, cap_s=4.0)
"""When a device that the daemon refused to add or remove is asked for again: within 5 s of whatever mends it."""

log = structlog.get_logger(__name__)


class NameStore(Protocol):
    """Keeps socket names over restarts of the agent."""

    def read(self) -> dict[PciAddress, str]:
        """The names as last written."""

    def write(self, names: dict[PciAddress, str]) -> bool:
        """Keeps these names from now on; False: not now, and they should be written again."""


class Devices:
    """Follows the list by `device.add` and `device.remove`, and writes the devices of the status."""

    def __init__(
        self,
        config: DaemonConfig,
        *,
        socket_list: Path,
        wanted: Latest[Loaded[DeviceList]],
        mapping: Latest[Loaded[Mapping]],
        status: Latest[DaemonStatus],
        names: NameStore,
        spread: Callable[[], float],
    ) -> None:
        """Asks for nothing yet.

        Args:
            config: where sockets are and how they are named.
            socket_list: the mapping file that the daemon writes.
            wanted: what the list says.
            mapping: what the mapping file says.
            status: the status of which it writes `devices`.
            names: keeps the socket names.
            spread: where in its jitter a backoff is, -1 to 1.
        """
        self._config = config
        self._socket_list = socket_list
        self._wanted = wanted
        self._mapping = mapping
        self._status = status
        self._store = names
        self._names: dict[PciAddress, str] | None = None
        self._names_kept = True
        self._spread = spread
        self._added: set[PciAddress] = set()
        self._refusals: dict[PciAddress, tuple[int, float, str]] = {}
        self._drains: dict[PciAddress, float] = {}
        self._in_use: set[PciAddress] = set()
        self._doubts: dict[PciAddress, tuple[str, ...]] = {}
        self._wake = asyncio.Event()

    async def follow(self, control: Control) -> None:
        """Keeps a daemon that has just started at what the list says, until cancelled.

        Raises:
            DaemonLost: the control channel failed.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wake_on_change(), name="list")
            while True:
                self._wake.clear()
                await self._reconcile(control)
                await self._look(control)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._wake.wait()

    def look(self) -> None:
        """Looks at the sockets and the mapping without any event; to be called every few seconds."""
        self._wake.set()

    def forget(self, reason: str) -> None:
        """The daemon is gone: every device of the list is wanted again, for the given reason."""
        self._added.clear()
        self._refusals.clear()
        self._drains.clear()
        self._in_use.clear()
        self._show({})
        for device in self._known().values():
            self._set(device._replace(reason=reason, facts=NOTHING_KNOWN))

    def front_end(self, address: str, *, connected: bool) -> None:
        """The daemon told that a front end came to a device, or left it."""
        device = self._known().get(PciAddress(address))
        if device is None or connected == (device.address in self._in_use):
            return
        if connected:
            self._in_use.add(device.address)
            log.info("front_end_connected", device=address)
        else:
            self._in_use.discard(device.address)
            self._drains.pop(device.address, None)
            log.info("front_end_left", device=address)
        if device.state in SERVED:
            self._set_served(device)
        self._wake.set()

    async def _wake_on_change(self) -> None:
        async for _ in self._wanted.changes():
            self._wake.set()

    async def _reconcile(self, control: Control) -> None:
        wanted = self._wanted.value.value or ()
        for address in [address for address in self._known() if address not in wanted]:
            await self._remove(control, self._known()[address])
        # After the removals: their names are free again for what is new.
        self._show(self._known())
        for address in wanted:
            device = self._known()[address]
            if device.state is DeviceState.REMOVING:
                self._stay(device)
            elif device.state in {DeviceState.WANTED, DeviceState.FAILED} and self._is_due(address):
                await self._add(control, device)

    async def _add(self, control: Control, device: Device) -> None:
        if device.address in self._added and not await self._take_back(control, device):
            return
        devargs, refusal = self._examine(device.address)
        if refusal:
            self._refused(device._replace(state=DeviceState.FAILED, reason=refusal), "device_failed")
            return
        self._set(device._replace(state=DeviceState.STARTING, reason=""))
        request = {"device": device.address, "devargs": devargs, "socket": device.socket}
        try:
            Path(device.socket).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            told = await control.call("device.add", request, timeout_s=None)
        except RequestRefused as error:
            self._refused(device._replace(state=DeviceState.FAILED, reason=str(error)), "device_failed")
            return
        except OSError as error:
            reason = f"--socket-dir {error.filename}: {os.strerror(error.errno or 0).lower()}"
            self._refused(device._replace(state=DeviceState.FAILED, reason=reason), "device_failed")
            return
        self._added.add(device.address)
        self._refusals.pop(device.address, None)
        self._set_served(device._replace(facts=parse_facts(told)))
        log.info("device_ready", device=device.address, socket=device.socket)

    def _examine(self, address: PciAddress) -> tuple[str, str]:
        """The device arguments of a device, and why the daemon need not even be asked for it: empty if it may."""
        config = self._config
        if config.simulate:
            return config.devargs.get(address, ""), ""
        facts = read_facts(address, config.sysfs)
        numa = read_numa(os.sched_getaffinity(0), config.sysfs)
        sizes = read_hugepages(config.sysfs, Path("/proc/self"))
        verdict = assess(facts, numa, hugepages=takes_hugepages(config.memory, numa, sizes))
        if verdict.doubts != self._doubts.get(address, ()):
            for doubt in verdict.doubts:
                log.warning("device_doubtful", device=address, reason=doubt)
        self._doubts[address] = verdict.doubts
        return devargs_of(facts, config.devargs), verdict.refusal

    async def _take_back(self, control: Control, device: Device) -> bool:
        """Removes a device whose socket is dead from the daemon, so that it can be added anew."""
        try:
            await control.call("device.remove", {"device": device.address}, timeout_s=None)
        except RequestRefused as error:
            if error.code != ErrorCode.NO_SUCH_DEVICE:
                self._refused(device._replace(reason=str(error)), "device_not_removed")
                return False
        self._added.discard(device.address)
        return True

    async def _remove(self, control: Control, device: Device) -> None:
        if not self._is_due(device.address):
            return
        if device.address in self._added:
            if self._drains_still(device):
                return
            self._set(device._replace(state=DeviceState.REMOVING, reason="it left the list"))
            if not await self._take_back(control, self._known()[device.address]):
                return
        self._drains.pop(device.address, None)
        self._refusals.pop(device.address, None)
        self._doubts.pop(device.address, None)
        self._show({address: other for address, other in self._known().items() if address != device.address})
        log.info("device_removed", device=device.address, socket=device.socket)

    def _drains_still(self, device: Device) -> bool:
        """Whether a device that left the list is kept because a front end uses it."""
        now = asyncio.get_running_loop().time()
        if device.address in self._in_use and device.state is not DeviceState.REMOVING:
            self._drains[device.address] = now + self._config.drain_timeout_s
            reason = f"it left the list, a front end may use it for {self._config.drain_timeout_s:g} s more"
            self._set(device._replace(state=DeviceState.REMOVING, reason=reason))
            log.info("device_drains", device=device.address, timeout_s=self._config.drain_timeout_s)
        return now < self._drains.get(device.address, now)

    def _stay(self, device: Device) -> None:
        """A device that was to go is in the list again; what it had goes on."""
        self._drains.pop(device.address, None)
        self._refusals.pop(device.address, None)
        self._set_served(device)

    async def _look(self, control: Control) -> None:
        """Finds sockets that died without the daemon's doing, and a mapping file that somebody took away."""
        served = [device for device in self._known().values() if device.state in SERVED]
        if self._config.vhost_mode is VhostMode.SERVER:
            dead = dead_sockets(device.socket for device in served)
            for device in served:
                if reason := dead.get(device.socket):
                    self._refused(device._replace(state=DeviceState.FAILED, reason=reason), "device_failed")
        mapping = self._mapping.value.value
        if served and mapping is None and not self._socket_list_is_there():
            await control.call("mapping.write", timeout_s=None)

    def _socket_list_is_there(self) -> bool:
        return os.path.lexists(self._socket_list)

    def _refused(self, device: Device, event: str) -> None:
        refusals, _, told = self._refusals.get(device.address, (0, 0.0, ""))
        refusals += 1
        delay_s = _RETRY.delay_s(refusals, self._spread())
        self._refusals[device.address] = (refusals, asyncio.get_running_loop().time() + delay_s, device.reason)
        self._set(device)
        # The same reason again every few seconds would drown the others.
        tell = log.debug if device.reason == told else log.warning
        tell(event, device=device.address, reason=device.reason, retry_in_s=round(delay_s, 1))

    def _is_due(self, address: PciAddress) -> bool:
        if address not in self._refusals:
            return True
        # A device whose socket died while a front end uses it is left in peace until that goes.
        return asyncio.get_running_loop().time() >= self._refusals[address][1] and address not in self._in_use

    def _pause_s(self) -> float | None:
        """How long nothing needs to be done without an event, in seconds; None: for ever."""
        times = [due for _, due, _ in self._refusals.values()] + list(self._drains.values())
        return max(0.0, min(times) - asyncio.get_running_loop().time()) if times else None

    def _known(self) -> MappingProxyType[PciAddress, Device]:
        return self._status.value.devices

    def _show(self, known: "dict[PciAddress, Device] | MappingProxyType[PciAddress, Device]") -> None:
        """Publishes the list's devices in its order, the known ones as they are, then the known that left the list."""
        wanted = self._wanted.value.value or ()
        leaving = tuple(address for address in known if address not in wanted)
        self._name((*wanted, *leaving))
        devices = {
            address: known[address] if address in known else self._new(address) for address in (*wanted, *leaving)
        }
        self._status.set(self._status.value._replace(devices=MappingProxyType(devices)))

    def _name(self, addresses: tuple[PciAddress, ...]) -> None:
        """Gives each of these devices a name, and forgets those of all others."""
        kept = self._store.read() if self._names is None else self._names
        taken = {address: name for address, name in kept.items() if address in addresses}
        self._names = assign_names(self._config.socket_naming, taken, addresses)
        if self._names != kept:
            self._names_kept = self._config.socket_naming is not SocketNaming.INDEX
        if not self._names_kept:
            self._names_kept = self._store.write(self._names)

    def _new(self, address: PciAddress) -> Device:
        name = (self._names or {})[address]
        return Device(address, str(self._config.socket_dir / name), DeviceState.WANTED)

    def _set_served(self, device: Device) -> None:
        state = DeviceState.CONNECTED if device.address in self._in_use else DeviceState.READY
        self._set(device._replace(state=state, reason=""))

    def _set(self, device: Device) -> None:
        devices = {**self._known(), device.address: device}
        self._status.set(self._status.value._replace(devices=MappingProxyType(devices)))
