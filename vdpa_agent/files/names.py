"""The file that keeps each device's socket name over restarts of the agent."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import structlog

from vdpa_agent.errors import AddressError
from vdpa_agent.model.pci import PciAddress, parse_pci_address

log = structlog.get_logger(__name__)


class KeptNames(NamedTuple):
    """The names as kept."""

    names: dict[PciAddress, str]
    this_boot: bool = True


class NamesFile:
    """`socketNames.json` beside the mapping: an object of PCI addresses and socket names."""

    def __init__(self, socket_list: Path) -> None:
        self._path = socket_list.with_name("socketNames.json")
        self._problem = ""

    async def read(self) -> "KeptNames":
        """The names that an earlier agent gave."""
        return KeptNames(self._read())

    async def write(self, names: Mapping[PciAddress, str]) -> bool:
        """Keeps names."""
        return self._write(names)

    async def is_current(self, names: Mapping[PciAddress, str]) -> bool:
        """Whether these names are kept."""
        return self._read() == names

    def _read(self) -> dict[PciAddress, str]:
        """The names that an earlier agent gave; none where there is no such file or it makes no sense."""
        try:
            content = json.loads(self._path.read_bytes())
            names = {parse_pci_address(address): str(name) for address, name in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, AddressError, RecursionError) as error:
            log.warning("names_unreadable", file=str(self._path), reason=str(error), remedy="devices are numbered anew")
            return {}
        if len(set(names.values())) < len(names) or not all(map(_is_name, names.values())):
            log.warning(
                "names_unreadable", file=str(self._path), reason="odd names", remedy="devices are numbered anew"
            )
            return {}
        return names

    def _write(self, names: Mapping[PciAddress, str]) -> bool:
        """Replaces the file; what cannot be written is told of, once a reason, and matters only to the next agent."""
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            temporary.write_text(json.dumps(dict(names), indent=0))
            temporary.replace(self._path)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            if reason == self._problem:
                return False
            self._problem = reason
            log.error(
                "names_not_written",
                file=str(self._path),
                reason=reason,
                remedy="without it a restarted agent may number devices anew: give write permission and space",
            )
            return False
        self._problem = ""
        return True


def _is_name(name: str) -> bool:
    return re.fullmatch(r"vdpa-[0-9]{1,6}", name) is not None
