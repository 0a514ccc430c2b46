"""View: keeps `Served` current, and one number that changes with it."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonStatus
from vdpa_agent.model.health import ReadyWhen, Role, Standing
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping as SocketMapping
from vdpa_agent.model.owner import Owners
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Pools
from vdpa_agent.model.served import Devices, Facts, Served, serve

_LOOK_S: Final = 4.0
"""How often the sockets of an external mapping are looked at."""

_REQUIRED_LOOK_S: Final = 1.0
"""The same where they decide whether a device is ready."""

_NOT_LOOKED_AT: Final = "its socket was not looked at yet"

DeadSockets = Callable[[Collection[str]], Awaitable[dict[str, str]]]
"""Of some socket paths, those that nobody listens on, each with the reason; OSError: it cannot be said now."""


async def _none_dead(_paths: Collection[str]) -> dict[str, str]:
    return {}


class _Looked(NamedTuple):
    """What the last look at the sockets of an external mapping found."""

    paths: frozenset[str] = frozenset()
    dead: Mapping[str, str] = MappingProxyType({})


class Snapshots(NamedTuple):
    """The snapshots that `Served` is computed from; each has one writer, which is not the view.

    Attributes:
        role: who owns the sockets.
        wanted: the devices of all sources.
        pools: the resources with their VFs.
        mapping: the mapping.
        daemon: the daemon.
        daemons: each, where each device has its own.
        devices: its devices.
        standing: the agent's own socket.
        owners: the container that has each device.
        kubelet_lost: why only a new container finds the kubelet, empty if this one does.
        socket_dir: why nothing in the directory of the sockets can be promised, empty if it can.
    """

    role: Latest[Role]
    wanted: Latest[Loaded[DeviceList]]
    pools: Latest[Loaded[Pools]]
    mapping: Latest[Loaded[SocketMapping]]
    daemon: Latest[DaemonStatus]
    daemons: Latest[Mapping[PciAddress, DaemonStatus]]
    devices: Latest[Devices]
    standing: Latest[Standing]
    owners: Latest[Owners]
    kubelet_lost: Latest[str]
    socket_dir: Latest[str]


class View:
    """Computes `Served` once for each change of a snapshot.

    Attributes:
        revision: changes after each change of `served`, and for good at the end of the agent.
        ended: whether the agent stops: nothing may be promised any more.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        *,
        left_s: float = 0.0,
        dead_sockets: DeadSockets = _none_dead,
        require_sockets: bool = False,
        ready_when: ReadyWhen = ReadyWhen.RUNNING,
        pci_list: str = "the device list",
        socket_list: str = "the mapping",
        resource_config: str = "",
    ) -> None:
        """Follows nothing yet.

        Args:
            snapshots: what there is to know.
            left_s: for how long a device that left the list is still waited for, in seconds.
            dead_sockets: asks the kernel which sockets are dead.
            require_sockets: whether a device of an external mapping is ready only if its socket is alive.
            ready_when: what readiness takes.
            pci_list: where the device list is, for messages.
            socket_list: where the mapping is, likewise.
            resource_config: where the resource config is; empty: there is to be none.
        """
        self.revision = Latest(0)
        self.ended = False
        self._snapshots = snapshots
        self._left_s = left_s
        self._dead_sockets = dead_sockets
        self._look_s = _REQUIRED_LOOK_S if require_sockets else _LOOK_S
        self._looked = _Looked()
        self._leavings: dict[PciAddress, float] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._made_of: tuple[object, ...] = ()
        self._base = Facts(
            require_sockets=require_sockets,
            ready_when=ready_when,
            pci_list=pci_list,
            socket_list=socket_list,
            resource_config=resource_config,
        )
        self._served = serve(self._base)

    @property
    def served(self) -> Served:
        """What is true now, also between a change of a snapshot and the revision that reports it."""
        # By identity: a snapshot never changes, and to compare contents would cost more than the look-up.
        role, wanted, pools, mapping, daemon, daemons, devices, standing, owners, kubelet_lost, socket_dir = (
            self._snapshots
        )
        made_of = (
            *(snapshot.value for snapshot in self._snapshots),
            *(self._looked, self.ended, self._leavings),
        )
        if len(made_of) == len(self._made_of) and all(a is b for a, b in zip(self._made_of, made_of, strict=True)):
            return self._served
        self._note_leavings(wanted.value.value or ())
        self._made_of = (*made_of[:-1], self._leavings)
        self._served = serve(
            self._base._replace(
                role=role.value,
                wanted=wanted.value,
                pools=pools.value,
                mapping=mapping.value,
                daemon=daemon.value,
                daemons=daemons.value,
                devices=devices.value,
                owners=owners.value,
                kubelet_lost=kubelet_lost.value,
                dead=self._dead(mapping.value),
                left=frozenset(self._leavings),
                standing=standing.value,
                socket_dir=socket_dir.value,
                stopping=self.ended,
            )
        )
        return self._served

    async def run(self) -> None:
        """Turns changes of the snapshots into revisions, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for snapshot in self._snapshots:
                    tasks.create_task(self._follow(snapshot))
                tasks.create_task(self._look())
        finally:
            for timer in self._timers:
                timer.cancel()

    def end(self) -> None:
        """The agent stops: all who follow are woken."""
        self.ended = True
        self._revise()

    def _revise(self) -> None:
        self.revision.set(self.revision.value + 1)

    async def _follow(self, latest: Latest[Any]) -> None:
        async for _ in latest.changes():
            self._revise()

    def _dead(self, mapping: Loaded[SocketMapping]) -> Mapping[str, str]:
        """The dead sockets of an external mapping; where they must be alive, also those that were not looked at yet."""
        if not self._base.require_sockets:
            return self._looked.dead
        new = {path: _NOT_LOOKED_AT for _, path in mapping.value or () if path not in self._looked.paths}
        return {**self._looked.dead, **new}

    def _note_leavings(self, wanted: DeviceList) -> None:
        """Remembers for a while what left the list, since its list may be in the making."""
        before, now = set(self._served.facts.wanted.value or ()), set(wanted)
        if before == now or not self._left_s:
            return
        loop = asyncio.get_running_loop()
        left = dict.fromkeys(before - now, loop.time())
        self._leavings = {a: at for a, at in (self._leavings | left).items() if a not in now}
        if left:
            timer = loop.call_later(self._left_s, self._forget_leavings)
            self._timers = {timer, *(old for old in self._timers if old.when() > loop.time())}

    def _forget_leavings(self) -> None:
        oldest_s = asyncio.get_running_loop().time() - self._left_s
        self._leavings = {address: at_s for address, at_s in self._leavings.items() if at_s > oldest_s}
        self._revise()

    async def _look(self) -> None:
        """Looks which sockets of an external mapping are dead, while there is one."""
        role, mapping = self._snapshots.role, self._snapshots.mapping
        while True:
            await role.wait_for(lambda now: now is Role.SERVING)
            loaded = mapping.value
            with suppress(OSError):
                paths = frozenset(path for _, path in loaded.value or ())
                looked = _Looked(paths, await self._dead_sockets(paths))
                if looked != self._looked:
                    self._looked = looked
                    self._revise()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await _other_than(mapping, loaded)


async def _other_than(latest: Latest[Any], value: object) -> None:
    await latest.wait_for(lambda now: now is not value)
