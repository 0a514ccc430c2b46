"""Discovery: finds the VFs of the node, follows them as they come and go, and publishes the pools."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from vdpa_agent.errors import AddressError
from vdpa_agent.latest import Latest
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import DeviceList, PciAddress, parse_pci_address
from vdpa_agent.model.pools import Pools, ResourceConfig, VfFacts, Vfs, assign, named_addresses, named_drivers
from vdpa_agent.node.sysfs import read_identity, read_link, read_names
from vdpa_agent.node.worker import Stuck, Worker

_LOOK_S: Final = 0.8
"""How often sysfs is looked at, which reports nothing by itself: a VF that is gone is missed twice, within 2 s."""

_DISK_S: Final = 5.0
"""How long a look may take."""

_SHOWN: Final = 8
"""So many devices are named in a line of the log."""

log = structlog.get_logger(__name__)


class Discovery:
    """Looks at sysfs, cheaply and often, in a thread.

    Attributes:
        pools: the pools with their VFs; nothing else writes it. Its problem is that of the config, or of sysfs.
    """

    def __init__(
        self, config: Latest[Loaded[ResourceConfig]], sysfs: Path, changed: Callable[[], None] | None = None
    ) -> None:
        """Looks at nothing yet.

        Args:
            config: the pools that are wanted.
            sysfs: where sysfs is, normally /sys.
            changed: called right after each change of `pools`.
        """
        self.pools: Latest[Loaded[Pools]] = Latest(Loaded(), changed)
        self._config = config
        self._devices = Devices(sysfs)
        self._worker = Worker("discovery")
        self._assigned_for: tuple[ResourceConfig, Vfs] | None = None
        self._missed: frozenset[PciAddress] = frozenset()

    async def first(self) -> None:
        """Looks for the first time."""
        await self._look()

    async def run(self) -> None:
        """Looks again and again, and at once when the config changes, until cancelled."""
        while True:
            before = self._config.value
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._config.wait_for(_other_than(before))
            await self._look()

    async def _look(self) -> None:
        loaded = self._config.value
        config, problem = loaded.value, loaded.problem
        if config is None:
            self.pools.set(Loaded(None, problem, loaded.refused))
            return
        named, drivers = named_addresses(config.pools), named_drivers(config.pools)
        try:
            vfs = await self._worker.run(lambda: self._devices.look(named, drivers), timeout_s=_DISK_S)
        except (OSError, RuntimeError, Stuck) as error:
            reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "no answer, or no thread"
            problem = problem or f"the VFs of the last good look count: {self._devices.path}: {reason}"
            self.pools.set(Loaded(self.pools.value.value or Pools(), problem, loaded.refused))
            return
        self._take(config, vfs, problem, refused=loaded.refused)

    def _take(self, config: ResourceConfig, vfs: Vfs, problem: str, *, refused: bool) -> None:
        before = self.pools.value.value
        pools, made_for = before, self._assigned_for
        if pools is None or made_for is None or made_for[0] is not config or made_for[1] != vfs:
            pools = assign(config.pools, vfs)
            missed = frozenset(before.devices if before else ()) - frozenset(pools.devices)
            if made_for is not None and made_for[0] is config and missed - self._missed:
                # A driver is changed in two steps: a VF counts as gone when it is missed twice.
                self._missed = missed
                return
            self._assigned_for = (config, vfs)
            self._log(before or Pools(), pools)
        self._missed = frozenset()
        self.pools.set(Loaded(pools, problem, refused))

    def _log(self, before: Pools, after: Pools) -> None:
        old, new = frozenset(before.devices), frozenset(after.devices)
        if came := [address for address in after.devices if address not in old]:
            log.info("vfs_found", devices=_some(came), count=len(came), all=len(new))
        if left := [address for address in before.devices if address not in new]:
            remedy = "vdpa-agent status has the reason where they are still there"
            log.warning("vfs_left", devices=_some(left), count=len(left), all=len(new), remedy=remedy)
        if after.left_out and not before.left_out:
            remedy = "narrow the selectors of the resource config"
            log.warning("vfs_left_out", count=after.left_out, remedy=remedy)
        known = frozenset(before.contested)
        by_pools: dict[tuple[str, str], list[PciAddress]] = {}
        for claim in after.contested:
            if claim not in known:
                by_pools.setdefault((claim.owner, claim.other), []).append(claim.address)
        for (owner, other), devices in by_pools.items():
            remedy = "the first one has them: have the selectors exclude each other"
            log.warning("vfs_contested", pool=owner, other=other, devices=_some(devices), remedy=remedy)


class Devices:
    """The VFs below a sysfs root, read again only as far as they can have changed.

    What never changes of a device is kept for as long as the inode of its entry is the same.

    Attributes:
        path: the directory of the devices.
    """

    def __init__(self, sysfs: Path) -> None:
        """Reads nothing yet.

        Args:
            sysfs: where sysfs is, normally /sys.
        """
        self.path = sysfs / "bus" / "pci" / "devices"
        self._known: dict[str, VfFacts | None] = {}
        self._present: dict[str, int] = {}
        self._named: frozenset[PciAddress] = frozenset()

    def look(self, named: frozenset[PciAddress], drivers: frozenset[str]) -> Vfs:
        """What there is now.

        Args:
            named: devices that count although they are not VFs.
            drivers: the drivers that matter; where there are none, no VF's is read.

        Raises:
            OSError: the directory cannot be read.
        """
        with os.scandir(self.path) as entries:
            present = {entry.name: entry.inode() for entry in entries}
        if named != self._named:
            self._known, self._named = {}, named
        known = {name: facts for name, facts in self._known.items() if present.get(name) == self._present.get(name)}
        numbers: dict[str, dict[str, int]] = {}
        read = {name: self._read(name, numbers) for name in present if name not in known}
        # One that has just come is read again: the kernel makes its links after its directory.
        settled = {name: facts for name, facts in read.items() if self._present.get(name) == present[name]}
        self._known, self._present = known | settled, present
        vfs = {facts.address: facts for facts in (*known.values(), *read.values()) if facts is not None}
        pfs = {facts.pf for facts in vfs.values() if facts.pf is not None}
        interfaces = {pf: read_names(self.path / pf / "net") for pf in pfs}
        # A driver's list of devices is one file to read; those that are on no list are few.
        bound = {name: driver for driver in drivers for name in read_names(self.path.parent / "drivers" / driver)}
        for address, facts in vfs.items():
            driver = bound.get(address) or (read_link(f"{self.path}/{address}/driver") if drivers else "")
            names = interfaces[facts.pf] if facts.pf is not None else ()
            if (driver, names) != (facts.driver, facts.pf_names):
                vfs[address] = facts._replace(driver=driver, pf_names=names)
                if address in self._known:
                    self._known[address] = vfs[address]
        return vfs

    def _read(self, name: str, numbers: dict[str, dict[str, int]]) -> VfFacts | None:
        """What never changes of a device; None: it does not count."""
        try:
            address = parse_pci_address(name)
        except AddressError:
            return None
        directory = self.path / name
        pf = read_link(f"{directory}/physfn")
        if not pf and address not in self._named:
            return None
        vendor, device, node = read_identity(directory)
        of_pf = None
        with suppress(AddressError):
            of_pf = parse_pci_address(pf)
            if pf not in numbers:
                numbers[pf] = _vf_numbers(self.path / pf)
        return VfFacts(
            address=address,
            vendor=vendor,
            device=device,
            is_vf=bool(pf),
            pf=of_pf,
            number=numbers.get(pf, {}).get(name),
            numa_node=node,
        )


def _vf_numbers(pf: Path) -> dict[str, int]:
    """The number of each VF of a PF, by the name of the VF."""
    prefix = "virtfn"
    links = [name for name in read_names(pf) if name.startswith(prefix) and name[len(prefix) :].isdecimal()]
    return {read_link(f"{pf}/{link}"): int(link[len(prefix) :]) for link in links}


def _some(devices: list[PciAddress] | DeviceList) -> list[str]:
    more = len(devices) - _SHOWN
    return [*devices[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _other_than(before: object) -> Callable[[object], bool]:
    return lambda now: now is not before
