"""Random histories: whatever happens, a device is ready if and only if its path is promised and no reason is given.

Roles, devices, view, answers and services are real. The daemon and the files are those of the test, since they are to
fail in every order, which reality does not give.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from grpclib.health.v1.health_pb2 import HealthCheckResponse
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.memory import Names as Store
from vdpa_agent.config import DaemonConfig
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.fleet import Fleet
from vdpa_agent.daemon.messages import ErrorCode
from vdpa_agent.daemon.names import Names
from vdpa_agent.daemon.output import MappingOutput
from vdpa_agent.daemon.pump import Dropped
from vdpa_agent.daemon.repair import MappingRepair
from vdpa_agent.daemon.roles import Roles
from vdpa_agent.errors import RequestRefused, Unanswered
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED, Cause, DaemonState, DaemonStatus, Device, Statistics, Stop, VhostMode
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.front_end import CONNECTED, NO_FRONT_END, FrontEnd, configured
from vdpa_agent.model.health import ReadyWhen, Role, Standing
from vdpa_agent.model.loaded import ABSENT, Loaded
from vdpa_agent.model.mapping import Mapping as SocketMapping
from vdpa_agent.model.owner import NO_OWNERS
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.devices import DeviceService
from vdpa_agent.serve.health import HealthService
from vdpa_agent.serve.pb import device_service_pb2 as pb
from vdpa_agent.serve.view import Snapshots, View

ADDRESSES: Final = tuple(PciAddress(f"0000:82:00.{function}") for function in range(4))
SOME: Final = st.lists(st.sampled_from(ADDRESSES), unique=True)
FRONT_ENDS: Final = st.sampled_from([NO_FRONT_END, CONNECTED, configured(0), configured(2)])
SETTLING_STEPS: Final = 30
"""Turns of the loop in which what was begun without a time comes to its end."""

PASSES_S: Final = 0.5
"""How long time passes at once: a refused device is asked for again in 1 s, sockets are looked at every 1 or 4 s."""

LATE_STEPS: Final = 8
"""The agent stops for good, so it does late."""


class Daemon(Control):
    """A daemon in memory: what it has is what may be promised."""

    def __init__(self) -> None:
        self.sockets: dict[str, str] = {}
        self.front_ends: dict[str, FrontEnd] = {}
        self.notify: Callable[[str, FrontEnd], None]
        self.refuses: set[str] = set()
        self.silent: dict[str, bool] = {}

    async def call(
        self,
        method: str,
        params: Mapping[str, str] | None = None,
        *,
        timeout_s: float,  # noqa: ARG002
        passed: Callable[[], None] | None = None,  # noqa: ARG002
    ) -> Any:
        await asyncio.sleep(0)
        device = (params or {}).get("device", "")
        if device in self.refuses:
            raise RequestRefused(-32000, f"{device} is busy")
        if self.silent.get(device) is False:
            raise Unanswered(method)
        if method == "device.add":
            assert params is not None
            assert params["socket"] not in self.sockets.values()
            self.sockets[device] = params["socket"]
        elif method == "device.remove":
            if self.sockets.pop(device, None) is None:
                raise RequestRefused(ErrorCode.NO_SUCH_DEVICE, f"no device {device}")
            if self.front_ends.pop(device, NO_FRONT_END).is_connected:
                self.notify(device, NO_FRONT_END)
        elif method == "device.list":
            return {"devices": [self.listed(device) for device in self.sockets]}
        await asyncio.sleep(0)
        if device in self.silent:
            raise Unanswered(method)
        return {}

    def listed(self, device: str) -> dict[str, Any]:
        front_end = self.front_ends.get(device, NO_FRONT_END)
        told = {"connected": front_end.is_connected, "configured": front_end.is_configured}
        return {"device": device, **told, "queue_pairs_in_use": front_end.queue_pairs}

    def change(self, device: str, front_end: FrontEnd, *, lost: bool) -> None:
        """A front end comes, changes or goes, and nobody learns of it by a notification that is lost."""
        if device in self.sockets:
            self.front_ends[device] = front_end
            if not lost:
                self.notify(device, front_end)

    def die(self) -> None:
        self.sockets.clear()
        self.front_ends.clear()


class Directory(SocketDirectory):
    """A directory that is always there; no thread takes its time for it."""

    async def make(self) -> None:
        await asyncio.sleep(0)


class Histories(RuleBasedStateMachine):
    """Lists, mappings, lives and deaths of the daemon, front ends, the end: in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.now_s = 0.0
        self.loop = asyncio.new_event_loop()
        self.loop.time = lambda: self.now_s  # type: ignore[method-assign]  # else no history could be had again
        self.do(self._build())

    def do(self, steps: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(steps)

    async def _build(self) -> None:
        # Front ends open the sockets, so that none need be there for a device to be served.
        config = DaemonConfig(simulate=True, vhost_mode=VhostMode.CLIENT, socket_dir=Path("/tmp/one-truth"))
        self.config = config
        self.wanted: Latest[Loaded[DeviceList]] = Latest(Loaded())
        self.mapping: Latest[Loaded[SocketMapping]] = Latest(Loaded())
        self.status = Latest(DaemonStatus())
        self.standing = Latest(Standing())
        names = Store()
        # Below /proc no lock can be made, and none is needed.
        no_lock = Path("/proc/socketList.dat")
        steps: DestructiveSteps = Counter()
        directory = SocketDirectory(no_lock.parent, steps, Latest(0))
        self.roles = Roles(
            config,
            wanted=self.wanted,
            mapping=self.mapping,
            names=names,
            socket_list=no_lock,
            directory=directory,
        )
        self.devices = Devices(
            config,
            wanted=self.wanted,
            names=Names(config.socket_naming, wanted=self.wanted, store=names, steps=steps),
            directory=Directory(config.socket_dir, steps, Latest(0)),
            repair=MappingRepair(self.mapping, retire=_nothing, steps=steps),
            spread=lambda: 0.0,
        )
        self.dead: dict[str, str] = {}
        self.sources: tuple[
            Latest[DaemonStatus], Latest[Mapping[PciAddress, DaemonStatus]], Latest[Mapping[PciAddress, Device]]
        ] = self.status, Latest(MappingProxyType({})), self.devices.published
        self.see(require_sockets=False, ready_when=ReadyWhen.ALL_DEVICES)
        self.daemon = Daemon()
        self.daemon.notify = self.devices.front_end
        self.life: asyncio.Task[None] | None = None
        self.tasks: list[asyncio.Task[None]] = [self.loop.create_task(self.roles.run())]

    def see(self, *, require_sockets: bool, ready_when: ReadyWhen) -> None:
        """Has view, answers and services made of the sources."""
        status, daemons, devices = self.sources
        snapshots = Snapshots(
            role=self.roles.role,
            wanted=self.wanted,
            pools=Latest(Loaded()),
            mapping=self.mapping,
            daemon=status,
            daemons=daemons,
            devices=devices,
            standing=self.standing,
            owners=Latest(NO_OWNERS),
            kubelet_lost=Latest(""),
            socket_dir=Latest(""),
        )
        self.view = View(snapshots, dead_sockets=self._look, require_sockets=require_sockets, ready_when=ready_when)
        self.answers = Answers(self.view)
        self.service = DeviceService(self.view, _no_statistics, {})
        self.health = HealthService(self.view)

    async def _look(self, paths: Collection[str]) -> dict[str, str]:
        return {path: reason for path, reason in self.dead.items() if path in paths}

    @initialize(require_sockets=st.booleans(), ready_when=st.sampled_from(ReadyWhen))
    def the_agent_starts(self, *, require_sockets: bool, ready_when: ReadyWhen) -> None:
        async def start() -> None:
            self.see(require_sockets=require_sockets, ready_when=ready_when)
            self.tasks.append(self.loop.create_task(self.view.run()))

        self.do(start())

    def teardown(self) -> None:
        self.do(self._end())
        self.loop.close()

    async def _end(self) -> None:
        for task in (*self.tasks, *([self.life] if self.life else [])):
            task.cancel()
        await asyncio.gather(*self.tasks, *([self.life] if self.life else []), return_exceptions=True)

    @rule(devices=SOME)
    def a_list_comes(self, devices: list[PciAddress]) -> None:
        async def come() -> None:
            self.wanted.set(Loaded(tuple(devices)))
            # A thread takes the lock of the mapping: how long it takes for it is no part of the history.
            while self.roles.role.value is not Role.MANAGING:
                await asyncio.sleep(0)
                self.check()

        self.do(come())

    @rule()
    def the_list_is_refused(self) -> None:
        self.wanted.set(Loaded(self.wanted.value.value, "line 1: 'x' is not a PCI address"))

    @rule(devices=SOME, swapped=st.booleans())
    def a_mapping_comes(self, devices: list[PciAddress], *, swapped: bool) -> None:
        numbers = reversed(range(len(devices))) if swapped else range(len(devices))
        sockets = {device: f"/tmp/one-truth/vdpa-{number}" for device, number in zip(devices, numbers, strict=True)}
        self.mapping.set(Loaded(SocketMapping(MappingProxyType(sockets))))

    @rule(dead=st.sets(st.integers(min_value=0, max_value=len(ADDRESSES) - 1)))
    def sockets_die_or_live(self, dead: set[int]) -> None:
        self.dead = {f"/tmp/one-truth/vdpa-{number}": "nobody listens" for number in dead}

    @rule()
    def the_mapping_goes(self) -> None:
        self.mapping.set(Loaded(None, ABSENT))

    @precondition(lambda self: self.life is None)
    @rule()
    def the_daemon_starts(self) -> None:
        async def start() -> None:
            self.status.set(self.status.value._replace(state=DaemonState.RUNNING))
            self.life = self.loop.create_task(self.devices.follow(self.daemon))

        self.do(start())

    @precondition(lambda self: self.life is not None)
    @rule()
    def the_daemon_dies(self) -> None:
        async def die() -> None:
            assert self.life is not None
            self.daemon.die()
            self.status.set(self.status.value._replace(state=DaemonState.BACKOFF, unhealthy=""))
            self.devices.forget("the daemon ended")
            self.check()
            self.life.cancel()
            await asyncio.wait({self.life})
            self.life = None
            self.devices.forget("the daemon ended: killed")

        self.do(die())

    @rule(reason=st.sampled_from(["", "it has not answered for 8 s"]))
    def the_daemon_hangs_or_answers(self, reason: str) -> None:
        self.status.set(self.status.value._replace(unhealthy=reason))

    @rule(device=st.sampled_from(ADDRESSES), refuses=st.booleans())
    def the_daemon_changes_its_mind(self, device: PciAddress, *, refuses: bool) -> None:
        self.daemon.refuses = self.daemon.refuses | {device} if refuses else self.daemon.refuses - {device}

    @rule(device=st.sampled_from(ADDRESSES), done=st.booleans(), silent=st.booleans())
    def the_daemon_does_not_answer(self, device: PciAddress, *, done: bool, silent: bool) -> None:
        """It may have done all the same what it was asked."""
        self.daemon.silent.pop(device, None)
        if silent:
            self.daemon.silent[device] = done

    @rule(device=st.sampled_from(ADDRESSES), front_end=FRONT_ENDS, lost=st.booleans())
    def a_front_end(self, device: PciAddress, front_end: FrontEnd, *, lost: bool) -> None:
        async def note() -> None:
            self.daemon.change(device, front_end, lost=lost)

        self.do(note())

    @rule()
    def the_agent_looks(self) -> None:
        async def look() -> None:
            self.devices.look()

        self.do(look())

    @rule(reason=st.sampled_from(["", "the socket is gone"]))
    def the_socket(self, reason: str) -> None:
        self.standing.set(Standing(reason))

    @rule()
    def time_passes(self) -> None:
        async def settle() -> None:
            self.steps += 1
            self.now_s += PASSES_S
            for _ in range(SETTLING_STEPS):
                await asyncio.sleep(0)
                self.check()

        self.do(settle())

    @rule()
    def more_time_passes(self) -> None:
        self.time_passes()

    @precondition(lambda self: self.steps > LATE_STEPS)
    @rule()
    def the_agent_stops(self) -> None:
        async def stop() -> None:
            self.view.end()

        self.do(stop())

    @invariant()
    def there_is_one_truth(self) -> None:
        async def check() -> None:
            self.check()

        self.do(check())

    def acknowledged(self, address: PciAddress) -> str | None:
        """The socket that a daemon that runs has for a device."""
        return self.daemon.sockets.get(address)

    def check(self) -> None:
        served = self.view.served
        external = served.facts.role is not Role.MANAGING
        mapping = self.mapping.value.value
        named = [address for address, _ in mapping or ()] if external else (self.wanted.value.value or ())
        shown = {PciAddress(device.pci_address): device for device in self.service._state().devices.values()}
        reasons = served.health.reasons
        told = (*reasons, *(check.reason for check in served.health.degraded))
        status = served.facts.daemon
        down = status.state is not DaemonState.RUNNING or status.unhealthy or self.view.ended
        for address in named:
            path = self.answers.at_hand(address) or ""
            if external and served.facts.role is Role.WAITING:
                assert path == "" and address not in shown  # noqa: PT018
                continue
            ready = served.devices[address].state in SERVED
            assert ready == bool(path) == bool(shown[address].socket_path)
            assert shown[address].socket_path == path
            excused = (down if not external else False) or any(address in text for text in told)
            assert ready == (not excused), (address, served.devices[address], told)
            if path and external:
                assert mapping is not None
                assert path == mapping.sockets[address]
            elif path:
                assert self.acknowledged(address) == path
        for address, device in shown.items():
            assert device.front_end_connected >= device.front_end_configured >= bool(device.queue_pairs_in_use)
            assert device.front_end_connected >= (device.state == pb.DEVICE_STATE_CONNECTED)
            # Nobody is connected to a device that no daemon has.
            assert not device.front_end_connected or self.acknowledged(address)
            # Whatever is not ready says why, and what is ready has nothing to explain.
            serves = device.state in {pb.DEVICE_STATE_READY, pb.DEVICE_STATE_CONNECTED}
            assert serves == (device.reason == "") == bool(device.socket_path), device
            assert serves or not device.remark
        for address in ADDRESSES:
            if address not in named:
                assert not self.answers.at_hand(address)
            # One cause is said once: of the agent, or of a device that holds nothing up.
            assert sum(text.startswith(address) for text in told) <= 1, told
            if served.facts.ready_when is ReadyWhen.RUNNING and not external:
                assert not any(text.startswith(address) for text in reasons)
        serving = self.health._response("").status == HealthCheckResponse.SERVING
        assert serving == (not served.health.reasons)


async def _no_statistics(_address: PciAddress) -> Statistics:
    return {}


class Life:
    """One device's daemon in memory, in the place of a Supervisor with its process."""

    def __init__(self, devices: Devices, status: Latest[DaemonStatus]) -> None:
        self.published = devices
        self.status = status
        self.restarts: Counter[Cause] = Counter()
        self.dropped = Dropped()
        self.daemon = Daemon()
        self.daemon.notify = devices.front_end
        self.following: asyncio.Task[None] | None = None
        self.ended = False

    @property
    def devices(self) -> Latest[Mapping[PciAddress, Device]]:
        return self.published.published

    async def statistics(self, _address: PciAddress) -> Statistics:
        return {}

    def start(self) -> None:
        if self.following is None and not self.ended:
            self.status.set(self.status.value._replace(state=DaemonState.RUNNING))
            self.following = asyncio.get_running_loop().create_task(self.published.follow(self.daemon))

    async def die(self, state: DaemonState) -> None:
        self.daemon.die()
        self.status.set(self.status.value._replace(state=state, unhealthy="", last_exit="killed by SIGKILL"))
        self.published.forget("the daemon ended: killed by SIGKILL")
        if self.following is not None:
            self.following.cancel()
            await asyncio.wait({self.following})
            self.following = None
        self.published.forget("the daemon ended: killed by SIGKILL")

    async def run(self, stop: Latest[Stop]) -> None:
        try:
            await stop.wait_for(bool)
        finally:
            self.ended = True
            await self.die(DaemonState.STOPPING)
        await asyncio.sleep(0)
        self.status.set(self.status.value._replace(state=DaemonState.STOPPED))


class IsolatedHistories(Histories):
    """The same with a daemon for each device: the real Fleet, and lives in memory."""

    async def _build(self) -> None:
        await super()._build()
        config = self.config
        steps: DestructiveSteps = Counter()
        self.lives: dict[PciAddress, Life] = {}
        self.written: Mapping[PciAddress, str] = {}
        names = Names(config.socket_naming, wanted=self.wanted, store=Store(), steps=steps)

        def supervise(address: PciAddress, its: Latest[Loaded[DeviceList]], changed: Callable[[], None]) -> Life:
            devices = Devices(
                config,
                wanted=its,
                names=names,
                directory=Directory(config.socket_dir, steps, Latest(0)),
                repair=None,
                spread=lambda: 0.0,
                changed=changed,
            )
            self.lives[address] = Life(devices, Latest(DaemonStatus(), changed))
            return self.lives[address]

        async def write(sockets: Mapping[PciAddress, str]) -> str:
            self.written = sockets
            return ""

        self.fleet = Fleet(
            supervise,
            role=self.roles.role,
            wanted=self.wanted,
            output=MappingOutput(
                write, retire=_nothing, repair=MappingRepair(self.mapping, retire=_nothing, steps=steps)
            ),
            begin=_nothing,
            restarts=Counter(),
        )
        self.sources = self.fleet.status, self.fleet.daemons, self.fleet.devices
        self.see(require_sockets=False, ready_when=ReadyWhen.ALL_DEVICES)
        self.stop = Latest(Stop.NO)
        self.tasks.append(self.loop.create_task(self.fleet.run(self.stop)))

    def acknowledged(self, address: PciAddress) -> str | None:
        life = self.lives.get(address)
        return life.daemon.sockets.get(address) if life else None

    @rule(device=st.sampled_from(ADDRESSES))
    def the_daemon_starts(self, device: PciAddress) -> None:
        async def start() -> None:
            if device in self.lives:
                self.lives[device].start()

        self.do(start())

    @rule()
    def all_daemons_start(self) -> None:
        for device in ADDRESSES:
            self.the_daemon_starts(device)

    @rule(device=st.sampled_from(ADDRESSES))
    def the_daemon_dies(self, device: PciAddress) -> None:
        async def die() -> None:
            life = self.lives.get(device)
            if life is not None and not life.ended:
                promised = {other: self.answers.at_hand(other) for other in ADDRESSES if other != device}
                dying = self.loop.create_task(life.die(DaemonState.BACKOFF))
                await asyncio.sleep(0)
                self.check()
                assert not self.answers.at_hand(device) or self.view.served.facts.role is not Role.MANAGING
                if set(promised) <= set(self.wanted.value.value or ()) and not self.view.ended:
                    assert all(self.answers.at_hand(other) == path for other, path in promised.items() if path)
                await dying

        self.do(die())

    @rule(device=st.sampled_from(ADDRESSES), reason=st.sampled_from(["", "it has not answered for 8 s"]))
    def the_daemon_hangs_or_answers(self, device: PciAddress, reason: str) -> None:
        life = self.lives.get(device)
        if life is not None and life.following is not None:
            status = life.status
            self.do(_set(status, status.value._replace(unhealthy=reason)))

    @rule(device=st.sampled_from(ADDRESSES), refuses=st.booleans())
    def the_daemon_changes_its_mind(self, device: PciAddress, *, refuses: bool) -> None:
        if device in self.lives:
            self.lives[device].daemon.refuses = {device} if refuses else set()

    @rule(device=st.sampled_from(ADDRESSES), done=st.booleans(), silent=st.booleans())
    def the_daemon_does_not_answer(self, device: PciAddress, *, done: bool, silent: bool) -> None:
        if device in self.lives:
            self.lives[device].daemon.silent = {device: done} if silent else {}

    @rule(device=st.sampled_from(ADDRESSES), front_end=FRONT_ENDS, lost=st.booleans())
    def a_front_end(self, device: PciAddress, front_end: FrontEnd, *, lost: bool) -> None:
        async def note() -> None:
            if device in self.lives:
                self.lives[device].daemon.change(device, front_end, lost=lost)

        self.do(note())

    @rule()
    def the_agent_looks(self) -> None:
        async def look() -> None:
            for life in self.lives.values():
                life.published.look()

        self.do(look())

    @precondition(lambda self: self.steps > LATE_STEPS)
    @rule()
    def the_agent_stops(self) -> None:
        async def stop() -> None:
            self.stop.set(Stop.IN_ORDER)
            self.view.end()

        self.do(stop())


async def _set(latest: Latest[DaemonStatus], status: DaemonStatus) -> None:
    latest.set(status)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestIsolatedHistories = IsolatedHistories.TestCase
TestIsolatedHistories.settings = TestHistories.settings


async def _nothing() -> None:
    pass
