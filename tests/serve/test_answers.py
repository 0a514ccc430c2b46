"""Which sockets may be promised, and who waits for one."""

import asyncio
from types import MappingProxyType

import pytest

from tests.served import snapshots
from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceState
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping, example_mapping
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.served import Devices
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.view import View

pytestmark = pytest.mark.anyio

A, B, C = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3"), PciAddress("0000:82:00.4")
BOTH = Loaded(Mapping(MappingProxyType({A: "/v/a", B: "/v/b"})))


def _devices(**states: DeviceState) -> Devices:
    known = {"a": A, "b": B}
    return MappingProxyType({known[name]: Device(known[name], f"/v/{name}", s) for name, s in states.items()})


class _World:
    """The snapshots that answers are made of; with devices the agent manages a daemon that runs."""

    def __init__(
        self,
        wanted: DeviceList | None = (A, B),
        mapping: Loaded[Mapping] = BOTH,
        state: DaemonState = DaemonState.RUNNING,
        role: Role = Role.SERVING,
        left_s: float = 0.0,
        **devices: DeviceState,
    ) -> None:
        of = snapshots(
            Loaded(wanted),
            mapping,
            DaemonStatus(state=state),
            _devices(**devices),
            role=Role.MANAGING if devices else role,
        )
        self.role, self.wanted, self.mapping = of.role, of.wanted, of.mapping
        self.daemon, self.devices = of.daemon, of.devices
        self.view = View(of, left_s=left_s)
        self.answers = Answers(self.view)

    def set_devices(self, state: DaemonState = DaemonState.RUNNING, **devices: DeviceState) -> None:
        self.daemon.set(DaemonStatus(state=state))
        self.devices.set(_devices(**devices))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.view.run())
            tasks.create_task(self.answers.run())

    def end(self) -> None:
        self.view.end()
        self.answers.end()

    async def now(self, text: str) -> str:
        return await self.answers.socket_of(text, hold_s=0)


async def test_a_foreign_mapping_is_the_truth() -> None:
    world = _World()
    asked = [A, "82:00.3", C, "", "\0", "x" * 10_000]
    assert [await world.now(text) for text in asked] == ["/v/a", "/v/b", "", "", "", ""]


async def test_addresses_in_any_case() -> None:
    world = _World(mapping=Loaded(Mapping(MappingProxyType({PciAddress("0000:af:00.1"): "/v/a"}))))
    assert await world.now("AF:00.1") == "/v/a"


async def test_our_own_daemon_must_run_and_have_the_device_ready() -> None:
    world = _World(state=DaemonState.STARTING, a=DeviceState.READY)
    assert await world.now(A) == ""
    world.set_devices(a=DeviceState.READY, b=DeviceState.REMOVING)
    assert (await world.now(A), await world.now(B)) == ("/v/a", "")
    world.set_devices(DaemonState.BACKOFF, a=DeviceState.WANTED)
    assert await world.now(A) == ""


async def test_an_answer_follows_the_mapping() -> None:
    world = _World(mapping=Loaded())
    assert await world.now(A) == ""
    world.mapping.set(BOTH)
    assert await world.now(A) == "/v/a"
    world.mapping.set(Loaded(None, "the file is not there"))
    assert await world.now(A) == ""


async def test_example_data_is_that_of_the_predecessor() -> None:
    world = _World(mapping=Loaded(example_mapping()))
    expected = {"0000:82:00.2": 0, "0000:82:00.7": 5, "0000:82:01.0": 6, "0000:82:01.7": 13, "0000:82:02.1": 15}
    for address, number in expected.items():
        assert await world.now(address) == f"/var/run/vdpa/vhost/vdpa-{number}"
    assert len(example_mapping()) == 16


async def _held(world: _World, count: int) -> None:
    """Waits until so many wait for their device."""
    async with asyncio.timeout(20):
        while world.answers.held != count:
            await asyncio.sleep(0.001)


async def test_thousands_wait_for_their_device_alone_and_end_at_once_when_it_is_ready() -> None:
    world = _World(a=DeviceState.STARTING, b=DeviceState.STARTING)
    running = asyncio.ensure_future(world.run())
    waiting_a = [asyncio.ensure_future(world.answers.socket_of(A, hold_s=60)) for _ in range(2000)]
    waiting_b = [asyncio.ensure_future(world.answers.socket_of("82:00.3", hold_s=60)) for _ in range(2000)]
    await _held(world, 4000)
    world.set_devices(a=DeviceState.READY, b=DeviceState.STARTING)
    async with asyncio.timeout(5):
        assert set(await asyncio.gather(*waiting_a)) == {"/v/a"}
    assert not any(task.done() for task in waiting_b)
    world.wanted.set(Loaded((A,)))  # nobody wants B any more
    async with asyncio.timeout(5):
        assert set(await asyncio.gather(*waiting_b)) == {""}
    assert not world.answers._waiting
    running.cancel()


async def test_an_unknown_address_is_not_waited_for() -> None:
    world = _World(a=DeviceState.STARTING)
    async with asyncio.timeout(1):
        assert await world.answers.socket_of(C, hold_s=60) == ""


async def test_before_any_list_every_address_is_waited_for() -> None:
    world = _World(wanted=None, mapping=Loaded(), role=Role.WAITING)
    running = asyncio.ensure_future(world.run())
    waiting = asyncio.ensure_future(world.answers.socket_of(C, hold_s=60))
    await _held(world, 1)
    assert not waiting.done()
    world.mapping.set(BOTH)
    world.role.set(Role.SERVING)
    async with asyncio.timeout(5):
        assert await waiting == ""
    running.cancel()


async def test_a_wait_ends_with_its_time() -> None:
    world = _World(a=DeviceState.FAILED)
    async with asyncio.timeout(5):
        assert await world.answers.socket_of(A, hold_s=0.05) == ""
    assert not world.answers._waiting


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    world = _World(a=DeviceState.STARTING)
    waiting = asyncio.ensure_future(world.answers.socket_of(A, hold_s=60))
    await _held(world, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not world.answers._waiting


async def test_the_end_answers_everybody_with_nothing() -> None:
    world = _World(a=DeviceState.STARTING, b=DeviceState.READY)
    waiting = asyncio.ensure_future(world.answers.socket_of(A, hold_s=60))
    await _held(world, 1)
    world.end()
    async with asyncio.timeout(5):
        assert await waiting == ""
        assert await world.answers.socket_of(A, hold_s=60) == ""
        assert await world.answers.socket_of(B, hold_s=60) == ""


async def test_a_stopping_daemon_is_not_waited_for() -> None:
    world = _World(state=DaemonState.STOPPING, a=DeviceState.STARTING)
    async with asyncio.timeout(1):
        assert await world.answers.socket_of(A, hold_s=60) == ""


async def test_somebody_elses_sockets_are_promised_to_the_end() -> None:
    world = _World()
    world.end()
    async with asyncio.timeout(1):
        assert await world.answers.socket_of(A, hold_s=60) == "/v/a"
        assert await world.answers.socket_of(C, hold_s=60) == ""


async def test_at_the_end_nobody_waits_for_a_mapping() -> None:
    world = _World(mapping=Loaded(), role=Role.WAITING)
    world.end()
    async with asyncio.timeout(1):
        assert await world.answers.socket_of(A, hold_s=60) == ""


async def test_a_device_that_left_the_list_a_moment_ago_is_waited_for_as_long_as_a_call_is_held() -> None:
    world = _World(left_s=0.2, a=DeviceState.READY, b=DeviceState.READY)
    running = asyncio.ensure_future(world.run())
    await world.view.revision.wait_for(bool)
    world.wanted.set(Loaded((A,)))
    world.set_devices(a=DeviceState.READY)
    back = asyncio.ensure_future(world.answers.socket_of(B, hold_s=60))
    await _held(world, 1)
    assert not back.done()
    world.wanted.set(Loaded((A, B)))
    world.set_devices(a=DeviceState.READY, b=DeviceState.READY)
    async with asyncio.timeout(20):
        assert await back == "/v/b"
    world.wanted.set(Loaded((A,)))
    world.set_devices(a=DeviceState.READY)
    async with asyncio.timeout(20):
        assert await world.answers.socket_of(B, hold_s=60) == ""  # it did not come back
        assert await world.answers.socket_of(B, hold_s=60) == ""
    assert not world.view.served.is_awaited(B)
    running.cancel()
