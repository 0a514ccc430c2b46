"""Answers: which socket may be promised for which address, prepared once per snapshot."""

from vdpa_agent.errors import AddressError
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonStatus
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import PciAddress, parse_pci_address


class Answers:
    """Joins the mapping with what the daemon is known to serve; a question costs a look-up."""

    def __init__(self, mapping: Latest[Loaded[Mapping]], daemon: Latest[DaemonStatus]) -> None:
        self._mapping = mapping
        self._daemon = daemon
        self._made_of: tuple[Loaded[Mapping], DaemonStatus] | None = None
        self._sockets: dict[PciAddress, str] = {}

    def socket_of(self, text: str) -> str:
        """The socket of an address in any accepted form; empty if none can be promised now."""
        sockets = self._current()
        socket = sockets.get(PciAddress(text))
        if socket is not None:
            return socket
        try:
            return sockets.get(parse_pci_address(text), "")
        except AddressError:
            return ""

    def _current(self) -> dict[PciAddress, str]:
        mapping, status = self._mapping.value, self._daemon.value
        # By identity: a snapshot never changes, and to compare contents would cost more than the look-up.
        if self._made_of is None or self._made_of[0] is not mapping or self._made_of[1] is not status:
            self._made_of = (mapping, status)
            self._sockets = {
                address: path for address, path in mapping.value or () if not status.managed or status.serves(address)
            }
        return self._sockets
