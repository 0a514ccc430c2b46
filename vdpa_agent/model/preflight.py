"""Preflight: what the facts of a PCI device say of how the daemon can serve it."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from vdpa_agent.model.pci import PciAddress


class PciFacts(NamedTuple):
    """What sysfs says of one PCI address; None where it says nothing.

    Attributes:
        address: the address.
        exists: whether there is such a device; None: nobody can tell.
        vendor: its vendor id, 16 bits, as device and subsystem_vendor.
        device: its device id.
        subsystem_vendor: the vendor id of its subsystem, by which Intel's IFC differs from any other virtio device.
        class_code: its class, 24 bits: 0x020000 is an Ethernet controller.
        is_vf: whether it is a virtual function that the kernel knows as such.
        pf: the physical function that it belongs to.
        driver: the kernel driver that it is bound to; None: it is bound to none.
        iommu_group: the number of its IOMMU group; None: it is in none that an IOMMU stands behind.
        neighbours: the other devices of that group that are bound to a driver, by name, each with the driver.
        numa_node: the NUMA node that it is attached to; None: the machine makes no difference.
        no_iommu: whether vfio may do without an IOMMU.
        unreadable: the names in sysfs that could not be read or make no sense; what they say is not known.
    """

    address: PciAddress
    exists: bool | None
    vendor: int | None = None
    device: int | None = None
    subsystem_vendor: int | None = None
    class_code: int | None = None
    is_vf: bool | None = None
    pf: PciAddress | None = None
    driver: str | None = None
    iommu_group: int | None = None
    neighbours: tuple[tuple[str, str], ...] = ()
    numa_node: int | None = None
    no_iommu: bool | None = None
    unreadable: tuple[str, ...] = ()


class HugepageFacts(NamedTuple):
    """The hugepages of one size.

    Attributes:
        size_kib: the size of each.
        total: how many there are.
        free: how many of them are free.
        forbidden_by: the file that keeps the daemon's cgroup from even one of them; empty if none does.
    """

    size_kib: int
    total: int
    free: int
    forbidden_by: str = ""


class NumaFacts(NamedTuple):
    """What there is on which NUMA node; None where it is not known.

    Attributes:
        cpu_nodes: the nodes of the CPUs that the daemon may run on.
        hugepage_nodes: the nodes with hugepages, free ones or not: a running daemon holds some itself.
    """

    cpu_nodes: frozenset[int] | None = None
    hugepage_nodes: frozenset[int] | None = None


class Severity(StrEnum):
    """What a finding means for the device."""

    BLOCKS = "blocks"
    """The daemon cannot serve it, so it is not even asked."""
    DOUBT = "doubt"
    """It may be served all the same, or badly: the daemon is asked, and the finding told."""


class Finding(NamedTuple):
    """One thing that is not as it should be.

    Attributes:
        severity: what it means for the device.
        reason: what is wrong, with the device's address.
        remedy: what to do about it, where possible the command to type.
    """

    severity: Severity
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


class Verdict(NamedTuple):
    """All findings about one device, the cause before what may follow from it."""

    findings: tuple[Finding, ...] = ()

    @property
    def refusal(self) -> str:
        """Why the daemon need not be asked for the device: the first finding that blocks; empty if none does."""
        return next((str(finding) for finding in self.findings if finding.severity is Severity.BLOCKS), "")

    @property
    def doubts(self) -> tuple[str, ...]:
        """What to tell although the daemon is asked."""
        return tuple(str(finding) for finding in self.findings if finding.severity is Severity.DOUBT)


class _VdpaDriver(NamedTuple):
    """A vDPA driver of DPDK.

    Attributes:
        devargs: what makes it take a device, rather than DPDK's network driver for the same id.
        kernel_driver: what the kernel must have bound for it; None: not known.
        ids: the vendor and device ids that its table lists.
        subsystem_vendor: what its table wants besides; None: nothing.
    """

    devargs: str
    kernel_driver: str | None
    ids: frozenset[tuple[int, int]] = frozenset()
    subsystem_vendor: int | None = None


_INTEL: Final = 0x8086
_VIRTIO: Final = 0x1AF4
_NVIDIA: Final = 0x15B3
_SOLARFLARE: Final = 0x1924
_XILINX: Final = 0x10EE
_NETRONOME: Final = 0x19EE
_CORIGINE: Final = 0x1DA8

# ifc, sfc and nfp make a VFIO container of their own while they probe.
VFIO: Final = "vfio-pci"
"""The kernel driver that hands a device to a process."""

_DRIVERS_BESIDE_VFIO: Final = frozenset({"pci-stub", "pcieport", "shpchp"})
"""The drivers that do no DMA, with which a group is viable all the same.

The kernel's Documentation/driver-api/vfio.rst wants all devices of a group bound to VFIO or to nothing; the first two
say that they manage DMA themselves (driver_managed_dma), as do VFIO's own, which have its name in theirs. The third is
one of bridges, which kernels before 5.19 let pass whatever they are bound to: a refusal would be wrong there.
"""

_IFC: Final = _VdpaDriver(
    "vdpa=1", VFIO, frozenset((_VIRTIO, device) for device in (0x1000, 0x1001, 0x1041, 0x1042)), _INTEL
)
"""DPDK's drivers/vdpa/ifc: ifcvf_vdpa.c (its table, its vdpa argument), base/ifcvf.h (the numbers)."""

_MLX5: Final = _VdpaDriver(
    "class=vdpa",
    "mlx5_core",
    frozenset((_NVIDIA, device) for device in (0x101B, 0x101C, 0x101D, 0x101E, 0x101F, 0x1021, 0xA2D6, 0xA2DC)),
)
"""DPDK's drivers/vdpa/mlx5/mlx5_vdpa.c, drivers/common/mlx5 (the numbers: ConnectX-6, BlueField-2 and later).

It reaches the device through the kernel's own driver, which also programs the IOMMU for it
(doc.dpdk.org/guides/vdpadevs/mlx5.html and platform/mlx5.html).
"""

_SFC: Final = _VdpaDriver("class=vdpa", VFIO, frozenset({(_XILINX, 0x1100)}))
"""DPDK's drivers/vdpa/sfc/sfc_vdpa.c, drivers/common/sfc_efx/base/efx.h (the number: VFs of Riverhead, the EF100)."""

_NFP: Final = _VdpaDriver("class=vdpa", VFIO, frozenset({(_NETRONOME, 0x6003)}))
"""DPDK's drivers/vdpa/nfp/nfp_vdpa.c, drivers/common/nfp/nfp_dev.h (the number)."""

_UNKNOWN: Final = _VdpaDriver("class=vdpa", None)
"""Any other: `class` is the argument that DPDK itself knows (lib/eal, RTE_DEVARGS_KEY_CLASS)."""

_BY_VENDOR: Final[MappingProxyType[int, _VdpaDriver]] = MappingProxyType(
    {
        _INTEL: _IFC,
        _VIRTIO: _IFC,
        _NVIDIA: _MLX5,
        _SOLARFLARE: _SFC,
        _XILINX: _SFC,
        _NETRONOME: _NFP,
        _CORIGINE: _NFP,
    }
)

_UIO: Final = frozenset({"uio_pci_generic", "igb_uio"})
"""The other kernel drivers that DPDK's PCI bus can map a device of (drivers/bus/pci/linux/pci.c)."""

_SHOWN_NODES: Final = 4


def devargs_of(facts: PciFacts, overrides: Mapping[PciAddress, str]) -> str:
    """Returns the device arguments with which the daemon is to add a device.

    Args:
        facts: of the device.
        overrides: the arguments that an operator has given, by address; they win, also when empty.
    """
    if facts.address in overrides:
        return overrides[facts.address]
    return _vdpa_driver(facts).devargs


def kernel_driver_of(facts: PciFacts) -> str | None:
    """Returns the kernel driver that a device must be bound to for its vDPA driver; None: not known."""
    return _vdpa_driver(facts).kernel_driver


def forbidden(sizes: Iterable[HugepageFacts]) -> Finding | None:
    """Returns what keeps the daemon from all hugepages; None if nothing does.

    The kernel shows the free pages of the machine to everybody. Who may have none of them dies of SIGBUS at the first
    touch, or is refused the mapping (its Documentation/admin-guide/cgroup-v2.rst, HugeTLB: max and rsvd.max). In a pod
    that asks for no hugepages the limits are 0.

    Args:
        sizes: what there is of each size.
    """
    known = list(sizes)
    there = [size for size in known if size.free] or [size for size in known if size.total]
    if not there or not all(size.forbidden_by for size in there):
        return None
    file = there[0].forbidden_by
    unlimited = "max" if file.endswith("max") else "-1"
    return Finding(
        Severity.DOUBT,
        f"{file} allows no hugepages",
        f"echo {unlimited} > {file}  # in Kubernetes hugepages.size of the chart",
    )


def takes_hugepages(memory: str, numa: NumaFacts, sizes: Iterable[HugepageFacts]) -> bool:
    """Whether the daemon takes its memory from hugepages.

    Args:
        memory: what it is to take it from: auto, hugepages or none.
        numa: where hugepages are, free ones or not.
        sizes: what there is of each size.
    """
    return memory == "hugepages" or (memory == "auto" and bool(numa.hugepage_nodes) and forbidden(sizes) is None)


def assess(facts: PciFacts, numa: NumaFacts, *, hugepages: bool) -> Verdict:
    """Returns what is wrong with a device.

    A device that is no VF is a doubt only: in a guest a VF looks like any function; ifc and mlx5 take whatever has an
    id of their tables, and mlx5's table names physical functions too; those of sfc and nfp name VFs only, so these two
    refuse others by themselves. With uio, DPDK may one day do without VFIO. What could not be read blocks nothing.

    Args:
        facts: of the device.
        numa: of the machine.
        hugepages: whether the daemon takes its memory from hugepages.
    """
    if facts.exists is False:
        missing = Finding(
            Severity.BLOCKS,
            f"{facts.address} is no PCI device of this machine",
            "take it off the list, or create it by sriov_numvfs of its physical function; lspci -D shows what there is",
        )
        return Verdict((missing,))
    found = [_readable(facts)]
    if facts.exists:
        found += [_bound(facts), _translated(facts), _alone(facts)]
        found += [_known(facts), _virtual(facts), _near_cpus(facts, numa)]
        if hugepages:
            found.append(_near_hugepages(facts, numa))
    return Verdict(tuple(finding for finding in found if finding is not None))


def _vdpa_driver(facts: PciFacts) -> _VdpaDriver:
    return _UNKNOWN if facts.vendor is None else _BY_VENDOR.get(facts.vendor, _UNKNOWN)


def _readable(facts: PciFacts) -> Finding | None:
    if not facts.unreadable:
        return None
    if facts.exists is None:
        return Finding(
            Severity.DOUBT,
            f"sysfs shows no PCI devices, so nothing is known of {facts.address}",
            "mount -t sysfs sysfs /sys, or see --sysfs",
        )
    return Finding(
        Severity.DOUBT,
        f"sysfs tells nothing readable by {', '.join(facts.unreadable)} of {facts.address}",
        f"ls -lL /sys/bus/pci/devices/{facts.address}/",
    )


def _bound(facts: PciFacts) -> Finding | None:
    wanted = kernel_driver_of(facts)
    if "driver" in facts.unreadable or (facts.driver is not None and wanted in {None, facts.driver}):
        return None
    if facts.driver is None:
        reason = f"{facts.address} is bound to no driver"
    else:
        reason = f"{facts.address} is bound to {facts.driver}, not to {wanted}"
    severity = Severity.DOUBT if wanted == VFIO and facts.driver in _UIO else Severity.BLOCKS
    return Finding(severity, reason, f"driverctl set-override {facts.address} {wanted or VFIO}")


def _translated(facts: PciFacts) -> Finding | None:
    # For mlx5 the kernel's driver sees to the addresses.
    if kernel_driver_of(facts) != VFIO or facts.iommu_group is not None or "iommu_group" in facts.unreadable:
        return None
    if facts.no_iommu:
        # DPDK maps nothing then (lib/eal/linux/eal_vfio.c): the device takes a front end's addresses for the host's.
        severity, reason = (
            Severity.DOUBT,
            f"{facts.address} runs without IOMMU and may overwrite any memory of the host",
        )
    else:
        severity, reason = Severity.BLOCKS, f"{facts.address} is in no IOMMU group"
    return Finding(severity, reason, "turn the IOMMU on in the firmware and boot with intel_iommu=on or amd_iommu=on")


def _alone(facts: PciFacts) -> Finding | None:
    """Which devices of its IOMMU group the kernel uses: VFIO hands out a group as a whole."""
    if kernel_driver_of(facts) != VFIO or facts.iommu_group is None or facts.driver in _UIO:
        return None
    held = {
        name: driver for name, driver in facts.neighbours if "vfio" not in driver and driver not in _DRIVERS_BESIDE_VFIO
    }
    if not held:
        return None
    first, *others = held
    told = f"{first} on {held[first]}" + (f" and {len(others)} more" if others else "")
    remedy = f"driverctl set-override {first} {VFIO}" + ("  # so each of them" if others else "")
    if facts.pf in held:
        # Without its kernel driver it would have no VFs.
        remedy = "use a slot with ACS, where each device has a group of its own"
    reason = f"{facts.address} shares IOMMU group {facts.iommu_group} with {told}"
    return Finding(Severity.BLOCKS, reason, remedy)


def _known(facts: PciFacts) -> Finding | None:
    if facts.vendor is None or facts.device is None:
        return None
    driver = _vdpa_driver(facts)
    other_subsystem = None not in {driver.subsystem_vendor, facts.subsystem_vendor} and (
        driver.subsystem_vendor != facts.subsystem_vendor
    )
    if (facts.vendor, facts.device) in driver.ids and not other_subsystem:
        return None
    ids = f"{facts.vendor:04x}:{facts.device:04x}"
    if facts.subsystem_vendor is not None:
        ids += f" of subsystem vendor {facts.subsystem_vendor:04x}"
    return Finding(
        Severity.DOUBT,
        f"{facts.address} is {ids}, of which no vDPA driver of DPDK is known",
        "doc.dpdk.org/guides/vdpadevs lists the supported ones",
    )


def _virtual(facts: PciFacts) -> Finding | None:
    if facts.is_vf is not False:
        return None
    return Finding(
        Severity.DOUBT,
        f"{facts.address} is no virtual function",
        f"ls -l /sys/bus/pci/devices/{facts.address}/ names its VFs, virtfn*; in a guest VFs look so, ignore it",
    )


def _near_cpus(facts: PciFacts, numa: NumaFacts) -> Finding | None:
    node = facts.numa_node
    if node is None or not numa.cpu_nodes or node in numa.cpu_nodes:
        return None
    return Finding(
        Severity.DOUBT,
        f"{facts.address} is on NUMA node {node}, the daemon's CPUs are on {_few(numa.cpu_nodes)}",
        f'start the agent with taskset -c "$(cat /sys/devices/system/node/node{node}/cpulist)"',
    )


def _near_hugepages(facts: PciFacts, numa: NumaFacts) -> Finding | None:
    node = facts.numa_node
    if node is None or numa.hugepage_nodes is None or node in numa.hugepage_nodes:
        return None
    return Finding(
        Severity.DOUBT,
        f"{facts.address} is on NUMA node {node}, which has no hugepages",
        f"echo 64 > /sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages",
    )


def _few(nodes: Iterable[int]) -> str:
    numbers = [str(node) for node in sorted(nodes)]
    return ", ".join(numbers[:_SHOWN_NODES]) + (", ..." if len(numbers) > _SHOWN_NODES else "")
