"""Which socket name a device gets, and keeps."""

from collections.abc import Collection, Mapping
from enum import StrEnum
from itertools import count
from typing import Final, NamedTuple

from vdpa_agent.model.mapping import ENTRIES_MAX
from vdpa_agent.model.pci import PciAddress

DEVICE_SOCKET: Final = "vhost.sock"
"""The name of the socket in the directory that a device has of its own."""


class SocketNaming(StrEnum):
    """How sockets are named: by number (`vdpa-0`), or by PCI address (`vdpa-0000:82:00.2`)."""

    INDEX = "index"
    PCI = "pci"


class Names(NamedTuple):
    """The names of all devices that have one.

    Attributes:
        names: by address; those off the list first, the one that has been off it for the longest time before all.
        taken_over: the devices that lost their name to another one, since no number was left.
    """

    names: dict[PciAddress, str]
    taken_over: tuple[PciAddress, ...] = ()


def assign_names(
    naming: SocketNaming, kept: Mapping[PciAddress, str], wanted: Collection[PciAddress], *, most: int = ENTRIES_MAX
) -> Names:
    """Names for the wanted devices: one that has a name keeps it, a new device takes the lowest free number.

    A device that leaves the list keeps its number, since a pod may still have been given that path. The number goes to
    another device only when all numbers below `most` are taken, and then the one that has been unused for longest.

    Args:
        naming: the scheme.
        kept: the names so far, in the order that `Names` has.
        wanted: the devices in list order, without duplicates; at most `most` of them.
        most: how many numbers there are.
    """
    if naming is SocketNaming.PCI:
        return Names({address: f"vdpa-{address}" for address in wanted})
    present = frozenset(wanted)
    names = {address: name for address, name in kept.items() if address not in present}
    used = set(kept.values())
    free = (name for name in map("vdpa-{}".format, count()) if name not in used)
    unused = iter(tuple(names))
    numbers = len(kept)
    taken_over = []
    for address in wanted:
        if address in kept:
            names[address] = kept[address]
        elif numbers < most or (longest := next(unused, None)) is None:
            names[address] = next(free)
            numbers += 1
        else:
            names[address] = names.pop(longest)
            taken_over.append(longest)
    return Names(names, tuple(taken_over))
