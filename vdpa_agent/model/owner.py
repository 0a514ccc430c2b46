"""Owner: the container that has a device, as the kubelet says."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from vdpa_agent.model.pci import PciAddress


class Owner(NamedTuple):
    """The container that has a device."""

    namespace: str
    pod: str
    container: str


Owners = Mapping[PciAddress, Owner]

NO_OWNERS: Final[Owners] = MappingProxyType({})
"""Nothing is known of any."""
