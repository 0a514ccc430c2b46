"""Unconnected: logs which pods have a device and no front end at it, which Kubernetes cannot see."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.owner import Owner
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.served import Served

AFTER_S: Final = 60.0
"""How long a pod may be without: it starts, or its application connects again."""

_REMEDIES: Final = {
    VhostMode.SERVER: "an application that connects once does not come back after a restart of the daemon: start the"
    " pod again, and give its pool vhostMode client",
    VhostMode.CLIENT: "see whether its application opens the socket",
}

log = structlog.get_logger(__name__)


class Unconnected:
    """Looks at the devices that are served and that a container has."""

    def __init__(self, served: Callable[[], Served], revision: Latest[int]) -> None:
        """Looks at nothing yet.

        Args:
            served: what is served now, with the owners.
            revision: changes with it.
        """
        self._served = served
        self._revision = revision
        self._since_s: dict[tuple[PciAddress, Owner], float] = {}
        self._told: set[tuple[PciAddress, Owner]] = set()

    async def run(self) -> None:
        """Looks at each change, until cancelled."""
        while True:
            revision = self._revision.value
            due_s = self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(due_s):
                    await self._revision.wait_for(partial(_differs, revision))

    def _look(self) -> float | None:
        """Logs what is due; returns in how many seconds something may be without any event, None: never."""
        served, now_s = self._served(), asyncio.get_running_loop().time()
        since_s = {
            (address, owner): self._since_s.get((address, owner), now_s)
            for address, owner in served.facts.owners.items()
            if address in served.sockets and not served.devices[address].front_end.is_connected
        }
        self._told &= since_s.keys()
        waits_s = []
        for key, began_s in since_s.items():
            if key in self._told:
                continue
            waits_s.append(began_s + AFTER_S - now_s)
            if waits_s[-1] <= 0:
                waits_s.pop()
                self._told.add(key)
                self._tell(*key, served.devices[key[0]].mode)
        self._since_s = since_s
        return min(waits_s, default=None)

    def _tell(self, address: PciAddress, owner: Owner, mode: VhostMode) -> None:
        remedy = _REMEDIES[mode]
        log.warning("pod_without_front_end", device=address, **owner._asdict(), vhost_mode=mode, remedy=remedy)


def _differs(before: int, now: int) -> bool:
    return now != before
