"""PCI addresses in their one normal form."""

import re
from typing import Final, NewType

from vdpa_agent.errors import AddressError

PciAddress = NewType("PciAddress", str)
"""`dddd:bb:dd.f` in lower-case hexadecimal: domain, bus, device (at most 1f), function (0 to 7)."""

DeviceList = tuple[PciAddress, ...]
"""Addresses in the order of the file, each once."""

# Linux prints four digits of domain and more only where there are more (VMD: 10000:00:02.0).
_PATTERN: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.ASCII)
_SHOWN_CHARACTERS: Final = 64


def shown(text: str) -> str:
    """A text of unknown origin as it may stand in a message: printable, in quotes, at most 64 characters of it."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def parse_pci_address(text: str) -> PciAddress:
    """Returns the normal form of an address: lower case, with its domain (`0000` where absent).

    Raises:
        AddressError: `text` is not a PCI address.
    """
    match = _PATTERN.fullmatch(text.lower())
    if match is None:
        message = f"{shown(text)} is not a PCI address such as 0000:82:00.2"
        raise AddressError(message)
    domain, bus, device, function = match.groups(default="0000")
    # A domain of more than four digits keeps only the digits it needs, as in sysfs.
    return PciAddress(f"{int(domain, 16):04x}:{bus}:{device}.{function}")


def function_number(address: PciAddress) -> int:
    """The number of a function on its bus, 0 to 255: neighbours differ by one."""
    return int(address[-4:-2], 16) << 3 | int(address[-1])
