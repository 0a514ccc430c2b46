"""Socket names that are kept in memory, for tests of who gives them."""

from collections.abc import Mapping
from typing import NamedTuple

from vdpa_agent.model.pci import PciAddress


class KeptNames(NamedTuple):
    names: Mapping[PciAddress, str]
    this_boot: bool = True


class Names:
    """Names that are kept in memory."""

    def __init__(self, *, this_boot: bool = True) -> None:
        self.kept: dict[PciAddress, str] = {}
        self.this_boot = this_boot

    async def read(self) -> KeptNames:
        return KeptNames(dict(self.kept), self.this_boot)

    async def write(self, names: Mapping[PciAddress, str]) -> bool:
        self.kept = dict(names)
        return True

    async def is_current(self, names: Mapping[PciAddress, str]) -> bool:
        return self.kept == names
