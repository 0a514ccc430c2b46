"""Pools: which VF belongs to which resource, by selectors, and why another one belongs to none."""

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as ReadOnly
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Final, NamedTuple

from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.loaded import ABSENT, Loaded
from vdpa_agent.model.mapping import ENTRIES_MAX
from vdpa_agent.model.pci import DeviceList, PciAddress

SIMULATED_MAX: Final = 256
"""The most simulated VFs of a pool, and the most pools: a bus has 32 devices of 8 functions, a domain 256 buses."""

_SHOWN_REASONS: Final = 4


class VfFacts(NamedTuple):
    """What selectors go by; empty or None where sysfs says nothing.

    Attributes:
        address: its PCI address.
        vendor: its vendor id, four hexadecimal digits, as is the device's.
        device: its device id.
        driver: the kernel driver that it is bound to.
        is_vf: whether the kernel knows it as a virtual function.
        pf: the physical function that it belongs to.
        pf_names: the network interfaces of that.
        number: its number among the VFs of that, from 0.
        numa_node: the NUMA node that it is attached to.
    """

    address: PciAddress
    vendor: str = ""
    device: str = ""
    driver: str = ""
    is_vf: bool = True
    pf: PciAddress | None = None
    pf_names: tuple[str, ...] = ()
    number: int | None = None
    numa_node: int | None = None


Vfs = ReadOnly[PciAddress, VfFacts]


class Functions(NamedTuple):
    """Some VFs of a physical function, such as `ens1f0#0-3,7`.

    Attributes:
        pf: the physical function: the name of its network interface, or its address.
        ranges: the first and the last number of each range of its VFs; empty: all of them.
    """

    pf: str
    ranges: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        parts = (str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)
        return f"{self.pf}#{','.join(parts)}" if self.ranges else self.pf

    def has(self, number: int | None) -> bool:
        """Whether the VF of that number is one of them."""
        return not self.ranges or (number is not None and any(first <= number <= last for first, last in self.ranges))


class Selector(NamedTuple):
    """What a VF must be; of each list one entry must be true of it, an empty list asks for nothing."""

    vendors: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    pci_addresses: tuple[PciAddress, ...] = ()
    pf_names: tuple[Functions, ...] = ()
    root_devices: tuple[Functions, ...] = ()

    def __str__(self) -> str:
        lists: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("vendors", self.vendors),
            ("devices", self.devices),
            ("drivers", self.drivers),
            ("pciAddresses", self.pci_addresses),
            ("pfNames", self.pf_names),
            ("rootDevices", self.root_devices),
        )
        return "; ".join(f"{name} {_several(entries)}" for name, entries in lists if entries) or "every VF"

    def why_not(self, vf: VfFacts) -> str:
        """Why a VF is not what this asks for; empty if it is."""
        if not vf.is_vf and vf.address not in self.pci_addresses:
            return "it is not a VF, and pciAddresses does not name it"
        for what, value, wanted in (
            ("vendor", vf.vendor, self.vendors),
            ("device", vf.device, self.devices),
            ("driver", vf.driver, self.drivers),
        ):
            if wanted and value not in wanted:
                return f"its {what} is {value or 'not known'}, not {_several(wanted)}"
        if self.pci_addresses and vf.address not in self.pci_addresses:
            return f"its address is not {_several(self.pci_addresses)}"
        if self.pf_names and not vf.pf_names:
            return f"its PF {vf.pf or ''} has no network interface that is seen here; rootDevices goes by address"
        return _not_of(vf, vf.pf_names, self.pf_names) or _not_of(vf, (vf.pf,) if vf.pf else (), self.root_devices)


class Pool(NamedTuple):
    """One resource.

    Attributes:
        resource: its name with its prefix, such as `vdpa.io/net`.
        selectors: a VF that is what one of them asks for belongs to it; the first one counts.
        vhost_mode: which end opens the sockets of its VFs; None: as of VFs that are in no pool.
        exclude_topology: whether the NUMA nodes of its VFs are kept to ourselves.
        simulated: how many software devices it has beside them.
        info: what pods get to know besides, by the address of a VF, or `*` for all.
    """

    resource: str
    selectors: tuple[Selector, ...] = ()
    vhost_mode: VhostMode | None = None
    exclude_topology: bool = False
    simulated: int = 0
    info: ReadOnly[str, ReadOnly[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ResourceConfig:
    """What the resource config says.

    Attributes:
        pools: the resources, in the order of the file.
        text: the file, to be kept as it is.
    """

    pools: tuple[Pool, ...]
    text: bytes = b""

    def __len__(self) -> int:
        return len(self.pools)


class Members(NamedTuple):
    """The VFs of a pool.

    Attributes:
        pool: the pool.
        devices: their addresses, in order; simulated ones last.
        taken: how many VFs each of its selectors has, in its order.
    """

    pool: Pool
    devices: DeviceList
    taken: tuple[int, ...] = ()


class Contested(NamedTuple):
    """A VF that two pools claim.

    Attributes:
        address: the VF.
        owner: the resource that has it, the first one of the file.
        other: the next one that would have it.
    """

    address: PciAddress
    owner: str
    other: str


class Pools(NamedTuple):
    """All pools with what belongs to them.

    Attributes:
        members: each pool with its VFs, in the order of the file.
        contested: the VFs that several pools claim.
        outside: the VFs that belong to no pool, by the reason.
        vfs: what is known of each.
        left_out: how many more VFs belong to pools than a node may have devices.
    """

    members: tuple[Members, ...] = ()
    contested: tuple[Contested, ...] = ()
    outside: tuple[tuple[str, DeviceList], ...] = ()
    vfs: Vfs = MappingProxyType({})
    left_out: int = 0

    @property
    def devices(self) -> DeviceList:
        """The VFs of all pools."""
        return tuple(address for members in self.members for address in members.devices)

    @property
    def by_device(self) -> dict[PciAddress, Pool]:
        """The pool of each VF that has one."""
        return {address: members.pool for members in self.members for address in members.devices}


def assign(pools: tuple[Pool, ...], vfs: Vfs) -> Pools:
    """Which VF belongs to which pool: the first one of the file that claims it has it.

    Args:
        pools: the pools, in the order of the file.
        vfs: the VFs of the node, and what else pciAddresses may name.
    """
    taken: list[list[PciAddress]] = [[] for _ in pools]
    by_selector = [[0] * len(pool.selectors) for pool in pools]
    contested: list[Contested] = []
    outside: dict[str, list[PciAddress]] = {}
    room, left_out = ENTRIES_MAX, 0
    for address in sorted(vfs, key=_order):
        claims = list(islice(_claims(pools, vfs[address]), 2))
        if not claims:
            outside.setdefault(_why_outside(pools, vfs[address]), []).append(address)
            continue
        number, selector = claims[0]
        contested += (Contested(address, pools[number].resource, pools[other].resource) for other, _ in claims[1:])
        if not room:
            left_out += 1
            continue
        room -= 1
        taken[number].append(address)
        by_selector[number][selector] += 1
    members = []
    for number, pool in enumerate(pools):
        simulated = _simulated(number, min(pool.simulated, room))
        room, left_out = room - len(simulated), left_out + pool.simulated - len(simulated)
        members.append(Members(pool, (*taken[number], *simulated), tuple(by_selector[number])))
    return Pools(
        members=tuple(members),
        contested=tuple(contested),
        outside=tuple((reason, tuple(addresses)) for reason, addresses in outside.items()),
        vfs=vfs,
        left_out=left_out,
    )


def named_addresses(pools: Iterable[Pool]) -> frozenset[PciAddress]:
    """The addresses that selectors name: in a guest a VF looks like any other device."""
    return frozenset(address for pool in pools for selector in pool.selectors for address in selector.pci_addresses)


def named_drivers(pools: Iterable[Pool]) -> frozenset[str]:
    """The drivers that selectors ask for."""
    return frozenset(driver for pool in pools for selector in pool.selectors for driver in selector.drivers)


def together(listed: Loaded[DeviceList], pools: Loaded[Pools]) -> Loaded[DeviceList]:
    """The devices that are wanted: those of the list, then those of the pools; what is wrong is said of the list.

    Where there are pools, nobody misses a list.

    Args:
        listed: the device list.
        pools: the pools; without a value, none are known.
    """
    if pools.value is None:
        return listed
    devices = tuple(dict.fromkeys((*(listed.value or ()), *pools.value.devices)))[:ENTRIES_MAX]
    return Loaded(devices, "" if listed.problem == ABSENT else listed.problem, listed.refused)


def _claims(pools: tuple[Pool, ...], vf: VfFacts) -> Iterator[tuple[int, int]]:
    """The numbers of the pools that claim a VF, each with the number of the selector that does."""
    for number, pool in enumerate(pools):
        for of_pool, selector in enumerate(pool.selectors):
            if not selector.why_not(vf):
                yield number, of_pool
                break


def _why_outside(pools: tuple[Pool, ...], vf: VfFacts) -> str:
    reasons = [
        f"{pool.resource}: {selector.why_not(vf)}" for pool in pools[:_SHOWN_REASONS] for selector in pool.selectors
    ][:_SHOWN_REASONS]
    more = sum(len(pool.selectors) for pool in pools) - len(reasons)
    return ("; ".join(reasons) + (f"; and {more} selectors more" if more else "")) or "no pool has a selector"


def _simulated(number: int, count: int) -> DeviceList:
    """Addresses that no machine has: the last domain of four digits, a bus for each pool."""
    return tuple(PciAddress(f"ffff:{number:02x}:{n >> 3:02x}.{n & 7}") for n in range(count))


def _order(address: PciAddress) -> tuple[int, str]:
    return len(address), address


def _not_of(vf: VfFacts, names: tuple[str, ...], wanted: tuple[Functions, ...]) -> str:
    """Why a VF is none of the wanted ones of its PF, which has these names; empty if it is one."""
    of_pf = [entry for entry in wanted if entry.pf in names]
    if not wanted or any(entry.has(vf.number) for entry in of_pf):
        return ""
    number = f"VF {'?' if vf.number is None else vf.number}" if of_pf else "a VF"
    return f"it is {number} of {'/'.join(names) or 'a PF that is not known'}, not of {_several(wanted)}"


def _several(entries: Iterable[object]) -> str:
    """Some entries of a list, and how many more there are."""
    texts = [str(entry) for entry in entries]
    more = f" and {len(texts) - _SHOWN_REASONS} more" if len(texts) > _SHOWN_REASONS else ""
    return ", ".join(texts[:_SHOWN_REASONS]) + more
