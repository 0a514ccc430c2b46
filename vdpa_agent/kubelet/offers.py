"""Offers: which devices of each pool the kubelet may give to pods, with hysteresis, in one value."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType

from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED
from vdpa_agent.model.offer import Offered, is_healthy, unhealthy_after_s
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.pools import Pool
from vdpa_agent.model.served import Served


class Offers:
    """Follows what is served.

    Attributes:
        offered: the devices of each resource; nothing else writes it.
        ended: whether nothing is offered any more, since the agent stops.
    """

    def __init__(self, served: Callable[[], Served], revision: Latest[int]) -> None:
        """Offers what there is now.

        Args:
            served: what is served now.
            revision: changes with it.
        """
        self.offered: Latest[Mapping[str, tuple[Offered, ...]]] = Latest(MappingProxyType({}))
        self.ended = False
        self._served = served
        self._revision = revision
        self._unserved_since_s: dict[PciAddress, float] = {}
        self._look()

    def pool_of(self, resource: str) -> Pool | None:
        """The pool of a resource; None: there is none any more."""
        pools = self._served().facts.pools.value
        return next((one.pool for one in pools.members if one.pool.resource == resource), None) if pools else None

    def end(self) -> None:
        """The agent stops: all who follow what is offered are woken, and leave."""
        self.ended = True
        self.offered.set(MappingProxyType({}))

    async def run(self) -> None:
        """Follows what is served, until cancelled."""
        while True:
            revision = self._revision.value
            due_s = self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(due_s):
                    await self._revision.wait_for(partial(_differs, revision))

    def _look(self) -> float | None:
        """Publishes what is offered now; returns in how many seconds that changes without any event, None: never."""
        served, now_s = self._served(), asyncio.get_running_loop().time()
        pools = served.facts.pools.value
        offered: dict[str, tuple[Offered, ...]] = {}
        since_s: dict[PciAddress, float] = {}
        dues_s: list[float] = []
        for members in pools.members if pools else ():
            row = []
            for address in members.devices:
                device = served.devices.get(address)
                state = device.state if device else None
                if state not in SERVED:
                    since_s[address] = self._unserved_since_s.get(address, now_s)
                unserved_s = now_s - since_s.get(address, now_s)
                healthy = is_healthy(state, unserved_s)
                if healthy and address in since_s:
                    dues_s.append(unhealthy_after_s(state) - unserved_s)
                facts = pools.vfs.get(address) if pools and not members.pool.exclude_topology else None
                row.append(Offered(address, healthy, facts.numa_node if facts else None))
            offered[members.pool.resource] = tuple(row)
        self._unserved_since_s = since_s
        self.offered.set(MappingProxyType(offered))
        return min(dues_s, default=None)


def _differs(before: int, now: int) -> bool:
    return now != before
