"""Reads below a sysfs root what a preflight goes by."""

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vdpa_agent.errors import AddressError
from vdpa_agent.model.pci import PciAddress, parse_pci_address
from vdpa_agent.model.preflight import HugepageFacts, NumaFacts, PciFacts

_ATTRIBUTE_BYTES: Final = 4096
"""The most that is read of a file: one page, as the kernel's Documentation/filesystems/sysfs.rst promises."""

_ID_MAX: Final = 0xFFFF
_CLASS_MAX: Final = 0xFFFFFF
_INT_MAX: Final = 2**31 - 1

_NUMBER: Final = re.compile(r"0x[0-9a-f]{1,8}|-?[0-9]{1,10}", re.ASCII)
_DRIVER: Final = re.compile(r"[!-~]{1,32}", re.ASCII)
_GROUP: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_NODE: Final = re.compile(r"node([0-9]{1,9})", re.ASCII)
_HUGEPAGES: Final = re.compile(r"hugepages-([0-9]{1,9})kB", re.ASCII)
_RANGE: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)

_HUGEPAGE_LIMITS: Final = ("max", "rsvd.max", "limit_in_bytes", "rsvd.limit_in_bytes")
"""What limits hugepages, in bytes, in cgroups of version 2 and of version 1 (the kernel's mm/hugetlb_cgroup.c)."""

_FAKE_GROUP: Final = "vfio-noiommu"
"""The name of the groups that vfio makes up where no IOMMU is (the kernel's drivers/vfio/group.c)."""


def read_facts(address: PciAddress, sysfs: Path) -> PciFacts:
    """Returns what sysfs says of an address; whatever is there, nothing is raised.

    Args:
        address: the address.
        sysfs: where sysfs is, normally /sys.
    """
    devices = sysfs / "bus" / "pci" / "devices"
    exists = _is_directory(devices / address)
    if not exists:
        known = exists is False and _is_directory(devices)
        return PciFacts(address=address, exists=False if known else None, unreadable=() if known else ("directory",))
    directory = _Directory(devices / address)
    physfn = directory.link("physfn")
    return PciFacts(
        address=address,
        exists=True,
        vendor=directory.number("vendor", _ID_MAX),
        device=directory.number("device", _ID_MAX),
        subsystem_vendor=directory.number("subsystem_vendor", _ID_MAX),
        class_code=directory.number("class", _CLASS_MAX),
        is_vf=None if "physfn" in directory.unreadable else physfn is not None,
        pf=None if physfn is None else directory.address("physfn", physfn),
        driver=directory.driver(),
        iommu_group=directory.iommu_group(),
        neighbours=directory.neighbours(address),
        numa_node=directory.node(),
        no_iommu=_no_iommu(sysfs),
        unreadable=tuple(dict.fromkeys(directory.unreadable)),
    )


def read_numa(cpus: Iterable[int], sysfs: Path) -> NumaFacts:
    """Returns which NUMA nodes have some of the given CPUs, and which have hugepages; nothing is raised.

    Args:
        cpus: the CPUs that the daemon may run on.
        sysfs: where sysfs is, normally /sys.
    """
    allowed = frozenset(cpus)
    try:
        entries = _entries(sysfs / "devices" / "system" / "node")
    except (OSError, ValueError):
        return NumaFacts()
    nodes = {int(match[1]): path for path in entries if (match := _NODE.fullmatch(path.name))}
    return NumaFacts(
        cpu_nodes=frozenset(node for node, path in nodes.items() if _has_cpu(path, allowed)),
        hugepage_nodes=frozenset(node for node, path in nodes.items() if _has_hugepages(path)),
    )


def read_hugepages(sysfs: Path, process: Path) -> tuple[HugepageFacts, ...]:
    """Returns what there is of each size of hugepages, the smallest first; nothing is raised.

    Args:
        sysfs: where sysfs is, normally /sys.
        process: the directory in /proc of the process that is to have some, such as /proc/self.
    """
    cgroups = _cgroups(sysfs / "fs" / "cgroup", process)
    try:
        entries = _entries(sysfs / "kernel" / "mm" / "hugepages")
    except (OSError, ValueError):
        return ()
    sizes = {int(match[1]): path for path in entries if (match := _HUGEPAGES.fullmatch(path.name))}
    return tuple(
        HugepageFacts(
            size_kib=size,
            total=_number(path / "nr_hugepages") or 0,
            free=_number(path / "free_hugepages") or 0,
            forbidden_by=_forbidding(cgroups, size),
        )
        for size, path in sorted(sizes.items())
    )


def read_driver(name: str, sysfs: Path) -> bool:
    """Returns whether the kernel has a driver for PCI devices, loaded as a module or built in."""
    return _is_directory(sysfs / "bus" / "pci" / "drivers" / name) is True


def read_enforcing(sysfs: Path) -> bool:
    """Returns whether SELinux is there and forbids what its policy does not allow."""
    return _text(sysfs / "fs" / "selinux" / "enforce") == "1"


def read_near_cpus(address: PciAddress, cpus: Iterable[int], sysfs: Path) -> frozenset[int] | None:
    """Returns those of the given CPUs that are on the NUMA node of a device; None: none is, or it is not known.

    Args:
        address: the device.
        cpus: the CPUs that its daemon may run on.
        sysfs: where sysfs is, normally /sys.
    """
    node = _Directory(sysfs / "bus" / "pci" / "devices" / address).node()
    if node is None:
        return None
    directory = sysfs / "devices" / "system" / "node" / f"node{node}"
    return frozenset(cpu for cpu in cpus if _has_cpu(directory, frozenset({cpu}))) or None


def read_identity(directory: Path) -> tuple[str, str, int | None]:
    """Returns vendor and device id of a device, four hexadecimal digits each, and its NUMA node; nothing is raised.

    Args:
        directory: that of the device; an id that cannot be read is empty.
    """
    reading = _Directory(directory)
    vendor, device = (reading.number(name, _ID_MAX) for name in ("vendor", "device"))
    return (
        "" if vendor is None else f"{vendor:04x}",
        "" if device is None else f"{device:04x}",
        reading.node(),
    )


def read_link(path: str) -> str:
    """Returns the last part of what a link points to; empty where there is none, or its name makes no sense."""
    try:
        name = os.readlink(path).rpartition("/")[2]  # noqa: PTH115 - asked for each VF each second
    except (OSError, ValueError):
        return ""
    return name if _DRIVER.fullmatch(name) else ""


def read_names(directory: Path) -> tuple[str, ...]:
    """Returns the names in a directory that are plain ASCII, in order; none where it cannot be read."""
    try:
        return tuple(sorted(name for name in os.listdir(directory) if _DRIVER.fullmatch(name)))  # noqa: PTH208 - likewise
    except (OSError, ValueError):
        return ()


class _Directory:
    """A device's directory, with the names in it that could not be read so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.unreadable: list[str] = []

    def number(self, name: str, most: int) -> int | None:
        """The number in a file that every device has."""
        value = _number(self._path / name)
        if value is None or not 0 <= value <= most:
            self.unreadable.append(name)
            return None
        return value

    def node(self) -> int | None:
        """The NUMA node: -1 stands for none, as does a kernel that does not know of nodes."""
        if not os.path.lexists(self._path / "numa_node"):
            return None
        value = _number(self._path / "numa_node")
        return None if value == -1 else self.number("numa_node", _INT_MAX)

    def link(self, name: str) -> str | None:
        """The last part of what a link points to; None where there is no such link."""
        try:
            return (self._path / name).readlink().name
        except FileNotFoundError:
            return None
        except OSError:
            self.unreadable.append(name)
            return None

    def address(self, name: str, text: str) -> PciAddress | None:
        """The address that a link points to."""
        try:
            return parse_pci_address(text)
        except AddressError:
            self.unreadable.append(name)
            return None

    def driver(self) -> str | None:
        """The name of the driver that the device is bound to."""
        name = self.link("driver")
        if name is not None and _DRIVER.fullmatch(name) is None:
            self.unreadable.append("driver")
            return None
        return name

    def iommu_group(self) -> int | None:
        """The number of the IOMMU group, unless vfio only made it up."""
        number = self.link("iommu_group")
        if number is None or _text(self._path / "iommu_group" / "name") == _FAKE_GROUP:
            return None
        if _GROUP.fullmatch(number) is None:
            self.unreadable.append("iommu_group")
            return None
        return int(number)

    def neighbours(self, address: PciAddress) -> tuple[tuple[str, str], ...]:
        """The other devices of the IOMMU group that are bound to a driver; what cannot be read is none."""
        try:
            entries = sorted(_entries(self._path / "iommu_group" / "devices"))
        except OSError:
            return ()
        bound = []
        for entry in entries:
            with suppress(OSError):
                bound.append((entry.name, (entry / "driver").readlink().name))
        return tuple(pair for pair in bound if pair[0] != address and all(map(_DRIVER.fullmatch, pair)))


def _is_directory(path: Path) -> bool | None:
    """Whether there is a directory; None where that cannot be told."""
    try:
        return True if stat.S_ISDIR(path.stat().st_mode) else None
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return None


def _no_iommu(sysfs: Path) -> bool | None:
    parameter = sysfs / "module/vfio/parameters/enable_unsafe_noiommu_mode"
    if not os.path.lexists(parameter):
        return False
    return {"Y": True, "N": False}.get(_text(parameter) or "")


def _cgroups(root: Path, process: Path) -> list[Path]:
    """The cgroups that limit a process's hugepages: its own, and all above it.

    What a container sees at the root is its own cgroup, even where /proc names it as the host does.
    """
    version_1 = root / "hugetlb"
    controller, root = ("hugetlb", version_1) if _is_directory(version_1) else ("", root)
    own = root
    for line in (_text(process / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "", "/")
        if controller in controllers.split(",") and ".." not in path and _is_directory(root / path.lstrip("/")):
            own = root / path.lstrip("/")
    return [cgroup for cgroup in (own, *own.parents) if cgroup.is_relative_to(root)]


def _forbidding(cgroups: Iterable[Path], size_kib: int) -> str:
    """The first limit that is less than one hugepage; empty if there is none."""
    units = ((1 << 20, "GB"), (1 << 10, "MB"), (1, "KB"))
    size = next((f"{size_kib // unit}{name}" for unit, name in units if size_kib >= unit), "")
    for file in (cgroup / f"hugetlb.{size}.{limit}" for cgroup in cgroups for limit in _HUGEPAGE_LIMITS):
        # `max`, and a number too long to be read as one, allow pages enough.
        limit_bytes = _number(file)
        if limit_bytes is not None and 0 <= limit_bytes < size_kib * 1024:
            return str(file)
    return ""


def _text(path: Path) -> str | None:
    """The text of a file without the blanks around it; None where it cannot be read."""
    try:
        # Something else than a file of sysfs could keep a plain open() waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _ATTRIBUTE_BYTES).decode("ascii").strip()
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text, 0 if text.startswith("0x") else 10) if text and _NUMBER.fullmatch(text) else None


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def _has_cpu(node: Path, cpus: frozenset[int]) -> bool:
    """Whether one of the CPUs is in a node's list, such as `0-3,8`."""
    ranges = [_RANGE.fullmatch(part) for part in (_text(node / "cpulist") or "").split(",")]
    return any(int(match[1]) <= cpu <= int(match[2] or match[1]) for match in ranges if match for cpu in cpus)


def _has_hugepages(node: Path) -> bool:
    try:
        sizes = _entries(node / "hugepages")
    except OSError:
        return False
    return any((_number(size / "nr_hugepages") or 0) > 0 for size in sizes)
