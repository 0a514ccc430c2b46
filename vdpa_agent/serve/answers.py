"""Answers: which socket may be promised for which address, prepared once per snapshot, and who waits for one."""

import asyncio
from contextlib import suppress

from vdpa_agent.errors import AddressError
from vdpa_agent.model.daemon import DaemonState
from vdpa_agent.model.pci import PciAddress, parse_pci_address
from vdpa_agent.serve.view import View

_ENDING = frozenset({DaemonState.STOPPING, DaemonState.STOPPED})


class Answers:
    """Joins the list, the mapping and what the daemon is known to serve; a question costs a look-up.

    Somebody who asks for a wanted device that is not ready waits for it alone: a change wakes those whose device it
    made ready, and nobody polls.

    Attributes:
        promised: how many questions were answered with a socket.
        unknown: how many were about no device of this node, and answered with nothing.
        not_ready: how many were about one that was not ready, and answered with nothing.
    """

    def __init__(self, view: View) -> None:
        self.promised = 0
        self.unknown = 0
        self.not_ready = 0
        self._view = view
        self._made_of: tuple[object, ...] | None = None
        self._sockets: dict[PciAddress, str] = {}
        self._awaited: frozenset[PciAddress] | None = frozenset()
        self._waiting: dict[PciAddress, set[asyncio.Future[str]]] = {}

    async def socket_of(self, text: str, *, hold_s: float) -> str:
        """The socket of an address in any accepted form; empty if none can be promised.

        Args:
            text: the address.
            hold_s: how long to wait for a device that is wanted and not ready, in seconds; 0 or less: not at all.

        Cancellation forgets the question.
        """
        socket = self.at_hand(text)
        if socket is not None:
            return socket
        try:
            address = parse_pci_address(text)
        except AddressError:
            self.unknown += 1
            return ""
        socket = self._sockets.get(address, "")
        if not socket and hold_s > 0 and self._is_awaited(address):
            socket = await self._held(address, hold_s)
        if socket:
            self.promised += 1
        elif self._is_awaited(address):
            self.not_ready += 1
        else:
            self.unknown += 1
        return socket

    def at_hand(self, text: str) -> str | None:
        """The socket of an address in its canonical form, if one can be promised now; None: it takes `socket_of`."""
        self._refresh()
        socket = self._sockets.get(PciAddress(text))
        if socket is not None:
            self.promised += 1
        return socket

    @property
    def held(self) -> int:
        """How many questions wait for their device."""
        return sum(map(len, self._waiting.values()))

    async def run(self) -> None:
        """Answers those who wait as soon as their device is ready, or is not wanted any more, until cancelled."""
        async for _ in self._view.revision.changes():
            self._settle()

    def end(self) -> None:
        """The agent stops: nobody waits any longer."""
        self._settle()

    async def _held(self, address: PciAddress, hold_s: float) -> str:
        waiting = self._waiting.setdefault(address, set())
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting.add(answer)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    return await answer
            return ""
        finally:
            waiting.discard(answer)
            if not waiting and self._waiting.get(address) is waiting:
                del self._waiting[address]

    def _settle(self) -> None:
        self._refresh()
        for address, waiting in self._waiting.items():
            socket = self._sockets.get(address, "")
            if socket or not self._is_awaited(address):
                for answer in waiting:
                    if not answer.done():
                        answer.set_result(socket)

    def _is_awaited(self, address: PciAddress) -> bool:
        """Whether a device that is not ready may become so; before any list was read, each one may."""
        return self._awaited is None or address in self._awaited

    def _refresh(self) -> None:
        # By identity: a snapshot never changes, and to compare contents would cost more than the look-up.
        view = self._view
        wanted, mapping, status = view.wanted.value, view.mapping.value, view.daemon.value
        made_of = (wanted, mapping, status, view.ended)
        if self._made_of is not None and all(a is b for a, b in zip(self._made_of, made_of, strict=True)):
            return
        self._made_of = made_of
        if not status.managed:
            # Somebody else's sockets outlive this agent.
            self._sockets = dict(mapping.value or ())
            self._awaited = None if mapping.value is None and not view.ended else frozenset()
        elif view.ended or status.state in _ENDING:
            self._sockets, self._awaited = {}, frozenset()
        else:
            self._sockets = {address: path for address, path in mapping.value or () if status.serves(address)}
            self._awaited = None if wanted.value is None else frozenset(wanted.value)
