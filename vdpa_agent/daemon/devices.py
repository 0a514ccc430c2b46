"""Devices: executes the plan for each device of a running vdpad, and publishes what came of it."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from vdpa_agent.config import DaemonConfig
from vdpa_agent.daemon.answers import Told, misread, parse_facts
from vdpa_agent.daemon.asking import Asking
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.examination import Examination
from vdpa_agent.daemon.front_ends import FrontEndLog
from vdpa_agent.daemon.learning import FrontEndList
from vdpa_agent.daemon.messages import ErrorCode
from vdpa_agent.daemon.names import Names, place_of
from vdpa_agent.daemon.repair import MappingRepair, write_mapping
from vdpa_agent.errors import DaemonLost, RequestRefused, SocketDirUnusable, Unanswered
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED, Device, DeviceState, VhostMode
from vdpa_agent.model.front_end import FrontEnd, last_refusal
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.plan import Record, Step, begun, mapped, next_look_s, next_step, settled
from vdpa_agent.model.pools import Pools
from vdpa_agent.node.worker import Stuck

_GATHER_S: Final = 0.01
"""How long devices that become ready one after the other are gathered before they are published together."""

_REQUESTS: Final = frozenset({Step.ADD, Step.RENEW, Step.REMOVE})
"""The steps that take a request to the daemon."""

log = structlog.get_logger(__name__)


class Devices:
    """Follows the list by `device.add` and `device.remove`.

    Attributes:
        published: the devices of the daemon, as it acknowledged them; nothing else writes it.
    """

    def __init__(
        self,
        config: DaemonConfig,
        *,
        wanted: Latest[Loaded[DeviceList]],
        names: Names,
        pools: Latest[Loaded[Pools]] | None = None,
        directory: SocketDirectory,
        repair: MappingRepair | None,
        spread: Callable[[], float],
        changed: Callable[[], None] | None = None,
    ) -> None:
        """Asks for nothing yet.

        Args:
            config: where sockets are and how they are named.
            wanted: what the list says.
            names: gives the socket names.
            pools: the pools, which may choose the vhost mode of their devices; None: there are none.
            directory: that of the sockets.
            repair: compares the mapping file with what the daemon acknowledged; None: another one writes that file.
            spread: where in its jitter a backoff is, -1 to 1.
            changed: called right after each change of `published`.
        """
        self.published: Latest[Mapping[PciAddress, Device]] = Latest(MappingProxyType({}), changed)
        self._config = config
        self._wanted = wanted
        self._names = names
        self._pools = Latest(Loaded()) if pools is None else pools
        self._directory = directory
        self._repair = repair
        self._spread = spread
        self._records: dict[PciAddress, Record] = {}
        self._examination = Examination(config)
        self._asking = Asking(self._late)
        self._front_ends = FrontEndLog(self._now_s)
        self._notified: set[PciAddress] = set()
        self._list = FrontEndList(self._now_s)
        self._present: frozenset[PciAddress] = frozenset()
        self._asked: set[PciAddress] = set()
        self._moved: set[PciAddress] = set()
        self._is_due = False
        self._gathering: asyncio.TimerHandle | None = None
        self._opened: set[str] = set()
        self._wake = asyncio.Event()
        self._look_is_due = asyncio.Event()
        self._publishing: asyncio.TimerHandle | None = None

    async def follow(self, control: Control) -> None:
        """Keeps a daemon that has just started at what the list says, until cancelled.

        Raises:
            DaemonLost: the control channel failed.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_on_change(self._wanted, self._wake.set), name="list")
            tasks.create_task(_on_change(self._pools, self._wake.set), name="pools")
            tasks.create_task(_on_change(self._directory.touched, self.look), name="sockets")
            tasks.create_task(self._look_when_due(control), name="looks")
            if self._repair is not None:
                mending = self._repair.run(partial(write_mapping, control), lambda: mapped(self._records))
                tasks.create_task(mending, name="mapping")
            while True:
                self._wake.clear()
                await self._reconcile(control, tasks)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due_s()):
                        await self._wake.wait()

    def look(self) -> None:
        """Looks at what is on disk without any event; to be called every few seconds."""
        self._look_is_due.set()

    def take_opened(self) -> frozenset[str]:
        """The names of the sockets that the daemon may have opened and not taken away; it has ended."""
        opened = frozenset(self._opened)
        self._opened.clear()
        return opened

    def forget(self, reason: str) -> None:
        """The daemon is gone: every device of the list is wanted again, for the given reason."""
        wanted = frozenset(self._wanted.value.value or ())
        for address in self._records:
            self._front_ends.forget(address)
        self._list.is_due_now()
        self._records = {address: record.lost(reason) for address, record in self._records.items() if address in wanted}
        if self._repair is not None:
            self._repair.forget()
        self._publish()

    def front_end(self, address: str, front_end: FrontEnd) -> None:
        """The daemon reported that a front end came to a device, left it, or was configured."""
        record = self._records.get(PciAddress(address))
        if record is not None:
            self._notified.add(record.device.address)
            self._use(record, front_end)

    def _use(self, record: Record, front_end: FrontEnd) -> None:
        before, address = record.device.front_end, record.device.address
        if front_end != before:
            self._records[address] = record.used(front_end)
            self._front_ends.changed(address, before, front_end)
            self._publish_soon()
            self._wake.set()

    async def _look_when_due(self, control: Control) -> None:
        while True:
            await self._look_is_due.wait()
            self._look_is_due.clear()
            await self._look()
            await self._learn(control)
            self._publish()
            self._wake.set()

    async def _reconcile(self, control: Control, tasks: asyncio.TaskGroup) -> None:
        wanted = self._wanted.value.value or ()
        await self._name(wanted)
        self._present = frozenset(wanted)
        now_s = self._now_s()
        steps = {
            address: next_step(record, wanted=address in self._present, now_s=now_s)
            for address, record in self._records.items()
            if address not in self._asked
        }
        for address, step in steps.items():
            self._prepare(address, step, now_s)
        self._publish()  # before the daemon is asked: what goes is promised no more
        for address, step in steps.items():
            if step in _REQUESTS:
                self._asked.add(address)
                asking = tasks.create_task(self._execute(control, address, step), name=f"{step.name.lower()} {address}")
                asking.add_done_callback(partial(self._executed, address))

    async def _execute(self, control: Control, address: PciAddress, step: Step) -> None:
        """Has the daemon do a step of one device; a request that it does not answer keeps no other one waiting."""
        if step is not Step.ADD and not await self._give_up(control, address):
            return
        if step is Step.REMOVE:
            self._forget_device(address)
            self._publish_soon()
        else:
            await self._add(control, address)

    def _executed(self, address: PciAddress, _step: asyncio.Task[None]) -> None:
        """A step is done; whatever else is to be done of its device is looked at with what ends a moment later."""
        self._asked.discard(address)
        record = self._records.get(address)
        is_settled = record is not None and settled(record, wanted=address in self._present, now_s=self._now_s())
        self._is_due |= not is_settled or address in self._moved
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER_S, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        if self._is_due:
            self._is_due = False
            self._wake.set()
        if self._repair is not None and not self._asked:
            self._repair.wake.set()

    def _prepare(self, address: PciAddress, step: Step, now_s: float) -> None:
        """Does all of a step that asks nothing of the daemon."""
        if step is Step.FORGET:
            self._forget_device(address)
            return
        drain_s = self._config.drain_timeout_s
        self._records[address] = begun(self._records[address], step, now_s=now_s, drain_s=drain_s)
        if step is Step.DRAIN:
            log.info("device_drains", device=address, timeout_s=drain_s)
        elif step is Step.RESTORE:
            log.info("device_restored", device=address)

    def _late(self, device: str, method: str, reason: str) -> None:
        address = PciAddress(device)
        before = self._records.get(address)
        if before is None:
            return
        report = log.debug if before.refusals else log.warning
        report("device_unanswered", device=address, request=method, reason=reason)
        self._records[address] = before.late(reason)
        self._publish_soon()

    async def _ask(self, control: Control, method: str, request: dict[str, str], over: Callable[[], None]) -> Any:
        """As Asking.ask, but a daemon that does not answer and serves nothing is lost."""
        address = PciAddress(request["device"])
        self._records[address] = self._records[address].asking()
        try:
            return await self._asking.ask(control, method, request, over)
        except Unanswered as error:
            if any(record.device.state in SERVED or record.in_use for record in self._records.values()):
                raise
            raise DaemonLost(str(error)) from error

    async def _add(self, control: Control, address: PciAddress) -> None:
        async with self._asking.turn() as over:
            if address not in self._present:
                return  # it left while it waited
            record = self._records[address]
            devargs, refusal = self._examination.examine(address)
            if refusal:
                self._refused(address, refusal, "device_failed")
                return
            mode, socket = record.device.mode, record.device.socket
            request = {"device": address, "devargs": devargs, "socket": socket, "mode": str(mode)}
            try:
                if record.refusals:  # it may be gone; a start makes it
                    await self._directory.make()
                if mode is VhostMode.SERVER:
                    self._opened.add(Path(socket).name)
                answer = await self._ask(control, "device.add", request, over)
            except (RequestRefused, SocketDirUnusable) as error:
                self._refused(address, str(error), "device_failed")
                return
            except Unanswered as error:
                self._refused(address, str(error), "device_failed", unsure=True)
                return
            self._records[address] = self._records[address]._replace(added=True)
            facts = parse_facts(answer)
            problem = misread(answer, mode, socket)
            if mode is VhostMode.SERVER and not problem:  # else the socket is the front end's
                problem = await self._directory.problem(socket, facts.file)
            if problem:
                self._refused(address, problem, "device_failed")
                return
            self._records[address] = self._records[address].served(facts)
            self._publish_soon()
            log.info("device_ready", device=address, socket=socket)

    async def _give_up(self, control: Control, address: PciAddress) -> bool:
        """Has the daemon give up a device; whether it did."""
        async with self._asking.turn() as over:
            try:
                if self._records[address].device.mode is VhostMode.SERVER:
                    # A daemon that removes a socket waits for its file system, and all of its devices with it.
                    await self._directory.lost({})
                await self._ask(control, "device.remove", {"device": address}, over)
            except RequestRefused as error:
                if error.code != ErrorCode.NO_SUCH_DEVICE:
                    self._refused(address, str(error), "device_not_removed")
                    return False
            except Unanswered as error:
                self._refused(address, str(error), "device_not_removed", unsure=True)
                return False
            except Stuck:
                self._refused(address, self._directory.silence.value, "device_not_removed")
                return False
        record = self._records[address] = self._records[address].given_up()
        self._opened.discard(Path(record.device.socket).name)
        self._front_ends.forget(address)
        return True

    def _forget_device(self, address: PciAddress) -> None:
        record = self._records.pop(address)
        self._examination.forget(address)
        self._front_ends.forget(address)
        log.info("device_removed", device=address, socket=record.device.socket)

    async def _look(self) -> None:
        """Finds sockets that died or were replaced without the daemon's doing, and names that are kept no more."""
        served = {
            address: record.device
            for address, record in self._records.items()
            if record.device.state in SERVED and record.device.mode is VhostMode.SERVER
        }
        if served:
            with suppress(Stuck):
                lost = await self._directory.lost({device.socket: device.facts.file for device in served.values()})
                for address, device in served.items():
                    if device.socket in lost and self._is_still(address, device):
                        self._refused(address, lost[device.socket], "device_failed")
                self._publish()  # before anything else is waited for
        await self._names.look()
        self._front_ends.draw_together(lambda address: self._records[address].device.front_end)

    def _is_still(self, address: PciAddress, device: Device) -> bool:
        """Whether the daemon has a device as it had before something was waited for, and is not being asked for it."""
        record = self._records.get(address)
        known = record is not None and record.added and record.device.facts is device.facts
        return known and address not in self._asked

    async def _learn(self, control: Control) -> None:
        """Takes what the daemon lists of its front ends."""
        devices = {address: record.device for address, record in self._records.items()}
        if not self._list.is_due:
            return
        self._notified.clear()
        told = await self._list.ask(control)
        for address, device in devices.items():
            if address in told and self._is_still(address, device):
                self._take(self._records[address], told[address])

    def _take(self, record: Record, told: Told) -> None:
        """Takes what the daemon listed of a device, where no notification says something newer."""
        address = record.device.address
        if address not in self._notified:
            self._use(record, told.front_end)
        record = self._records[address]
        if told.refusals != record.device.refusals:
            last = last_refusal(record.device.refusals, told.refusals, record.device.last_refusal, self._now_s())
            device = record.device._replace(refusals=told.refusals, last_refusal=last)
            self._records[address] = record._replace(device=device)
            self._publish_soon()
        self._front_ends.refused(address, told.refusals)

    def _refused(self, address: PciAddress, reason: str, event: str, *, unsure: bool = False) -> None:
        before = self._records[address]
        change = before.unanswered if unsure else before.refused
        record = self._records[address] = change(reason, self._now_s(), self._spread())
        # The same reason again every few seconds would drown the others.
        report = log.debug if before.refusals and before.device.reason == reason else log.warning
        report(event, device=address, reason=reason, retry_in_s=round(record.due_s - self._now_s(), 1))
        self._publish_soon()

    def _due_s(self) -> float | None:
        """When something is to be done without any event; None: never."""
        waiting = (record for address, record in self._records.items() if address not in self._asked)
        return min(filter(None, map(next_look_s, waiting)), default=None)

    async def _name(self, wanted: DeviceList) -> None:
        """Gives each device of the list its socket, and a record."""
        names = await self._names.give()
        self._moved.clear()
        pools = self._pools.value.value.by_device if self._pools.value.value else {}
        for address in wanted:
            if address not in names:
                continue  # it has left the whole list meanwhile
            mode, socket = place_of(self._config, address, names[address], pools.get(address))
            record = self._records.get(address)
            if record is None:
                self._records[address] = Record(Device(address, socket, DeviceState.WANTED, mode=mode))
            elif address not in self._asked:
                self._records[address] = record.moved(mode, socket)
            elif (record.device.mode, record.device.socket) != (mode, socket):
                self._moved.add(address)

    def _publish_soon(self) -> None:
        """Publishes what became better; others that become ready meanwhile go out with it."""
        if self._publishing is None:
            self._publishing = asyncio.get_running_loop().call_later(_GATHER_S, self._publish)
            self._publish_now()

    def _publish(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        self._publish_now()

    def _publish_now(self) -> None:
        self.published.set(MappingProxyType({address: record.device for address, record in self._records.items()}))

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


async def _on_change(latest: Latest[Any], act: Callable[[], None]) -> None:
    async for _ in latest.changes():
        act()
