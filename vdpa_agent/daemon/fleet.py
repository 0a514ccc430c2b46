"""Fleet: one daemon for each device, each with a supervisor of its own, and one picture of them all."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

import structlog

from vdpa_agent.daemon.output import MappingOutput
from vdpa_agent.daemon.pump import Dropped
from vdpa_agent.errors import DaemonError, DaemonUnusable
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Cause, DaemonState, DaemonStatus, Device, Statistics, Stop
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import DeviceList, PciAddress

_UNUSABLE_S: Final = 3.0
"""The pause before a device's program is tried again that could be started for others."""

_STATISTICS_S: Final = 0.2
"""How long one daemon may take for its counters; the others are asked next."""

log = structlog.get_logger(__name__)


class Supervision(Protocol):
    """What supervises one daemon: Supervisor; and what supervises all of them: that too, or Fleet.

    Attributes:
        status: what is known of the daemon; of several, what `Served` does not make of them.
        restarts: how often daemons were started again, by what had ended them.
    """

    status: Latest[DaemonStatus]
    restarts: Counter[Cause]

    @property
    def dropped(self) -> Dropped:
        """How much of the output was not logged."""

    @property
    def devices(self) -> Latest[Mapping[PciAddress, Device]]:
        """The devices, as their daemons acknowledged them."""

    async def statistics(self, address: PciAddress) -> Statistics:
        """The counters of a device's virtqueues; nothing where there are none."""

    async def run(self, stop: Latest[Stop]) -> None:
        """Supervises until it is asked to stop and all has ended."""


Supervise = Callable[[PciAddress, Latest[Loaded[DeviceList]], Callable[[], None]], Supervision]
"""Makes what supervises a device's daemon: from the device, its list of one or none, and what to call at a change."""


@dataclass(slots=True)
class _One:
    """One device's daemon.

    Attributes:
        supervision: supervises it.
        wanted: the device while it is in the list, else nothing.
        stop: whether it is to end.
    """

    supervision: Supervision
    wanted: Latest[Loaded[DeviceList]]
    stop: Latest[Stop] = field(default_factory=lambda: Latest(Stop.NO))

    @property
    def is_done(self) -> bool:
        """Whether a daemon whose device left the list has nothing left to wait for."""
        return self.supervision.status.value.state is not DaemonState.RUNNING or not self.supervision.devices.value


class Fleet:
    """Starts a daemon for each device of the list, and ends it when the device has left.

    What it publishes changes in the same step as its parts, so that no reader sees a dead daemon's device as served.

    Attributes:
        status: whether it stops, and how often it started a daemon again; nothing else writes it.
        daemons: what is known of each; nothing else writes it.
        devices: the devices, as their daemons acknowledged them; nothing else writes it.
        restarts: how often daemons were started again, by what had ended them.
    """

    def __init__(
        self,
        supervise: Supervise,
        *,
        role: Latest[Role],
        wanted: Latest[Loaded[DeviceList]],
        output: MappingOutput,
        begin: Callable[[], Awaitable[None]],
        restarts: Counter[Cause],
    ) -> None:
        """Starts nothing yet.

        Args:
            supervise: makes what supervises a device's daemon.
            role: whether the agent manages daemons at all.
            wanted: the devices to run, as the list says.
            output: keeps the mapping file while there are daemons.
            begin: clears away what earlier daemons left; called once before the first start.
            restarts: where restarts are counted.
        """
        self.status = Latest(DaemonStatus())
        self.daemons: Latest[Mapping[PciAddress, DaemonStatus]] = Latest(MappingProxyType({}))
        self.devices: Latest[Mapping[PciAddress, Device]] = Latest(MappingProxyType({}))
        self.restarts = restarts
        self._supervise = supervise
        self._role = role
        self._wanted = wanted
        self._output = output
        self._begin = begin
        self._ones: dict[PciAddress, _One] = {}
        self._dropped_before = Dropped()
        self._ran = False
        self._stop = Stop.NO
        self._killed: DaemonError | None = None
        self._wake = asyncio.Event()

    @property
    def dropped(self) -> Dropped:
        """How much of the output was not logged, of all daemons that there ever were."""
        counts = [self._dropped_before, *(one.supervision.dropped for one in self._ones.values())]
        return Dropped(sum(count.lines for count in counts), sum(count.size_bytes for count in counts))

    async def statistics(self, address: PciAddress) -> Statistics:
        """Asks a device's daemon for its counters; one that hangs costs the others little."""
        one = self._ones.get(address)
        if one is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_STATISTICS_S):
                    return await one.supervision.statistics(address)
        return {}

    async def run(self, stop: Latest[Stop]) -> None:
        """Supervises until the agent stops and all daemons have ended. Cancellation kills them at once.

        Raises:
            DaemonUnusable: no daemon can ever start as configured.
            DaemonError: a daemon had to be killed at the end.
        """
        async with asyncio.TaskGroup() as tasks:
            changes = (self._wanted, self._role, stop)
            helpers = [tasks.create_task(self._wake_on_change(latest)) for latest in changes]
            begun = False
            while not (stop.value and not self._ones):
                self._wake.clear()
                self._stop = stop.value
                if not begun and self._list():
                    begun = True
                    await self._begin()
                    helpers.append(tasks.create_task(self._output.run(self.devices), name="mapping"))
                self._reconcile(tasks)
                self._publish()
                await self._wake.wait()
            for helper in helpers:
                helper.cancel()
        self.status.set(self.status.value._replace(state=DaemonState.STOPPED))
        if self._killed is not None:
            raise self._killed

    def _list(self) -> DeviceList:
        """The devices that are to have a daemon."""
        return (self._wanted.value.value or ()) if self._role.value is Role.MANAGING and not self._stop else ()

    def _reconcile(self, tasks: asyncio.TaskGroup) -> None:
        """Starts what is missing, and ends what is not wanted any more."""
        wanted = self._list()
        for address in wanted:
            if address not in self._ones:
                one_wanted: Latest[Loaded[DeviceList]] = Latest(Loaded((address,)))
                one = _One(self._supervise(address, one_wanted, self._changed), one_wanted)
                self._ones[address] = one
                tasks.create_task(self._run(address, one), name=f"daemon of {address}")
        present = frozenset(wanted)
        for address, one in self._ones.items():
            if self._stop:
                one.stop.set(self._stop)
                continue
            one.wanted.set(Loaded((address,) if address in present else ()))
            if address not in present and one.is_done:
                one.stop.set(Stop.IN_ORDER)

    async def _run(self, address: PciAddress, one: _One) -> None:
        """One device's daemon, from its first start until its end for good."""
        try:
            await one.supervision.run(one.stop)
        except DaemonUnusable as error:
            if not self._ran:
                raise
            # Others could be started: what is wrong came later, or is this device's alone.
            remedy = "see to the program of --vdpad; it is tried again"
            log.error("daemon_not_started", device=address, reason=str(error), remedy=remedy)
            with suppress(TimeoutError):
                async with asyncio.timeout(_UNUSABLE_S):
                    await one.stop.wait_for(bool)
        except DaemonError as error:
            if self._stop:
                self._killed = error
        finally:
            dropped = one.supervision.dropped
            self._dropped_before.lines += dropped.lines
            self._dropped_before.size_bytes += dropped.size_bytes
            del self._ones[address]
            self._changed()

    def _changed(self) -> None:
        """A daemon or a device changed, in this very step."""
        self._publish()
        self._wake.set()

    def _publish(self) -> None:
        daemons = {address: one.supervision.status.value for address, one in self._ones.items()}
        self._ran = self._ran or any(status.state is DaemonState.RUNNING for status in daemons.values())
        devices = [one.supervision.devices.value for one in self._ones.values()]
        self.daemons.set(MappingProxyType(daemons))
        self.devices.set(MappingProxyType({address: device for each in devices for address, device in each.items()}))
        state = DaemonState.STOPPING if self._stop else DaemonState.IDLE
        self.status.set(DaemonStatus(state, restarts=self.restarts.total()))

    async def _wake_on_change(self, latest: Latest[Any]) -> None:
        async for _ in latest.changes():
            self._wake.set()
