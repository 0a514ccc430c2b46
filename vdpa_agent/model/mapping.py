"""Mapping: which vhost-user socket belongs to which PCI address."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from vdpa_agent.model.pci import PciAddress

SOCKET_PATH_MAX_BYTES: Final = 107
"""The longest path of a unix socket: sun_path of unix(7) is 108 bytes with its final NUL."""

ENTRIES_MAX: Final = 4096
"""The most entries that a mapping or a device list may have."""

FILE_MAX_BYTES: Final = 1024 * 1024
"""The largest mapping or device list that is read."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """An immutable mapping; `sockets` keeps the order of the file."""

    sockets: MappingProxyType[PciAddress, str] = field(default_factory=lambda: MappingProxyType({}))

    def __iter__(self) -> Iterator[tuple[PciAddress, str]]:
        return iter(self.sockets.items())

    def __len__(self) -> int:
        return len(self.sockets)


def example_mapping() -> Mapping:
    """The 16 VFs that the project's predecessor served when it had no list: 0000:82:00.2 to 0000:82:02.1."""
    functions = [(0, f) for f in range(2, 8)] + [(1, f) for f in range(8)] + [(2, f) for f in range(2)]
    return Mapping(
        MappingProxyType(
            {
                PciAddress(f"0000:82:{device:02x}.{function}"): f"/var/run/vdpa/vhost/vdpa-{number}"
                for number, (device, function) in enumerate(functions)
            }
        )
    )
