"""FrontEndLog: logs what front ends do, and draws together what they do very often: no peer writes the log."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from vdpa_agent.model.front_end import FrontEnd, FrontEndState, Refusals
from vdpa_agent.model.pci import PciAddress

_LOGGED_CHANGES: Final = 6
"""How many changes of a device's front ends are logged one by one, between two quiet looks."""

_SETTLE_S: Final = 0.1
"""A front end sets up its queue pairs one after the other: after so long it is logged how many it uses."""

_REFUSALS_S: Final = 60.0
"""The refused front ends of a device are logged once in so long, all together."""

log = structlog.get_logger(__name__)


class FrontEndLog:
    """Logs the front ends of the devices of one daemon."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Logs nothing yet.

        Args:
            clock: the time in seconds.
        """
        self._now_s = clock
        self._changes: dict[PciAddress, int] = {}
        self._settling: dict[PciAddress, asyncio.TimerHandle] = {}
        self._refused: dict[PciAddress, Refusals] = {}
        self._refusals_due_s: dict[PciAddress, float] = {}

    def changed(self, address: PciAddress, before: FrontEnd, now: FrontEnd) -> None:
        """The front end of a device is not as it was."""
        if settling := self._settling.pop(address, None):
            settling.cancel()
        if now.state is FrontEndState.CONFIGURED:
            settled = asyncio.get_running_loop().call_later(_SETTLE_S, self._settled, address, now.queue_pairs)
            self._settling[address] = settled
        elif not self._is_one_of_many(address):
            if now.state is FrontEndState.NONE:
                log.info("front_end_left", device=address)
            elif before.state is FrontEndState.CONFIGURED:
                log.info("front_end_unconfigured", device=address)
            else:
                log.info("front_end_connected", device=address)

    def refused(self, address: PciAddress, now: Refusals) -> None:
        """The daemon has refused so many front ends of a device since it serves it."""
        if now == self._refused.get(address, {}) or self._now_s() < self._refusals_due_s.get(address, 0.0):
            return
        before = self._refused.get(address, {})
        more = {reason: count - before.get(reason, 0) for reason, count in now.items()}
        self._refused[address] = now
        self._refusals_due_s[address] = self._now_s() + _REFUSALS_S
        log.warning("front_ends_refused", device=address, reasons={reason: new for reason, new in more.items() if new})

    def draw_together(self, current: Callable[[PciAddress], FrontEnd]) -> None:
        """Logs what came too often to be logged one by one; to be called every few seconds."""
        busy = {address: changes for address, changes in self._changes.items() if changes > _LOGGED_CHANGES}
        for address, changes in busy.items():
            now = current(address)
            log.info(
                "front_end_changes",
                device=address,
                changes=changes,
                connected=now.is_connected,
                configured=now.is_configured,
            )
        self._changes = dict.fromkeys(busy, _LOGGED_CHANGES)

    def forget(self, address: PciAddress) -> None:
        """The daemon does not have the device any more."""
        if settling := self._settling.pop(address, None):
            settling.cancel()
        for by_device in (self._changes, self._refused, self._refusals_due_s):
            by_device.pop(address, None)

    def _settled(self, address: PciAddress, queue_pairs: int) -> None:
        del self._settling[address]
        if not self._is_one_of_many(address):
            log.info("front_end_configured", device=address, queue_pairs=queue_pairs)

    def _is_one_of_many(self, address: PciAddress) -> bool:
        """Counts a change; whether it is not to be logged by itself."""
        changes = self._changes[address] = self._changes.get(address, 0) + 1
        return changes > _LOGGED_CHANGES
