"""Answers: which socket is promised for an address, and which calls wait for one."""

import asyncio
from contextlib import suppress

from vdpa_agent.errors import AddressError
from vdpa_agent.model.pci import PciAddress, parse_pci_address
from vdpa_agent.serve.view import View


class Answers:
    """Looks up what is served; a question costs no more.

    A call for a device that is wanted and not ready waits for that device alone: a change wakes the calls whose device
    it made ready, and none polls.

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
        served = self._view.served
        socket = served.sockets.get(address, "")
        if not socket and hold_s > 0 and served.is_awaited(address):
            socket = await self._held(address, hold_s)
        if socket:
            self.promised += 1
        elif self._view.served.is_awaited(address):
            self.not_ready += 1
        else:
            self.unknown += 1
        return socket

    def at_hand(self, text: str) -> str | None:
        """The socket of an address in its canonical form, if one can be promised now; None: it takes `socket_of`."""
        socket = self._view.served.sockets.get(PciAddress(text))
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
        served = self._view.served
        for address, waiting in self._waiting.items():
            socket = served.sockets.get(address, "")
            if socket or not served.is_awaited(address):
                for answer in waiting:
                    if not answer.done():
                        answer.set_result(socket)
