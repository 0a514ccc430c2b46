"""Which socket name a device gets."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import count

from vdpa_agent.model.pci import PciAddress


class SocketNaming(StrEnum):
    """How sockets are named: by number (`vdpa-0`), or by PCI address (`vdpa-0000:82:00.2`)."""

    INDEX = "index"
    PCI = "pci"


def assign_names(
    naming: SocketNaming, taken: Mapping[PciAddress, str], wanted: Iterable[PciAddress]
) -> dict[PciAddress, str]:
    """Names for the wanted devices: who has one keeps it, a new device takes the lowest free number.

    Args:
        naming: the scheme.
        taken: the names in use, also of devices that are not wanted any more but still there.
        wanted: the devices in list order, without duplicates.
    """
    if naming is SocketNaming.PCI:
        return {address: f"vdpa-{address}" for address in wanted}
    used = set(taken.values())
    free = (name for name in map("vdpa-{}".format, count()) if name not in used)
    return {address: taken[address] if address in taken else next(free) for address in wanted}
