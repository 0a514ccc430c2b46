"""Messages about all devices: made once for everybody, and never queued for who is slow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final

import pytest
from grpclib.exceptions import GRPCError

from tests.served import snapshots
from vdpa_agent.model.daemon import Statistics
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.serve.devices import DeviceService
from vdpa_agent.serve.pb import device_service_pb2 as pb
from vdpa_agent.serve.view import View

pytestmark = pytest.mark.anyio

PREFIX_BYTES: Final = 5
ADDRESSES: Final = [PciAddress(f"0000:82:{number // 8:02x}.{number % 8}") for number in range(256)]


def _mapping(revision: int, count: int = 256) -> Loaded[Mapping]:
    return Loaded(Mapping(MappingProxyType({address: f"/v/{address}-{revision}" for address in ADDRESSES[:count]})))


class _Stream:
    """A call whose peer reads when the test lets it."""

    def __init__(self, request: Any) -> None:
        self.sent: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self._request = request

    async def recv_message(self) -> Any:
        return self._request

    async def send_message(self, message: Any) -> None:
        self.sent.append(message)
        await self.reads.wait()

    def watched(self) -> list[pb.WatchDevicesResponse]:
        return [pb.WatchDevicesResponse.FromString(message[PREFIX_BYTES:]) for message in self.sent]


class _World:
    """A device service about an external mapping."""

    def __init__(self) -> None:
        self.snapshots = snapshots(mapping=_mapping(0), role=Role.SERVING)
        self.view = View(self.snapshots)
        self.asked: list[PciAddress] = []
        self.silent: set[PciAddress] = set()
        self.service = DeviceService(self.view, self._statistics, {})

    async def _statistics(self, address: PciAddress) -> Statistics:
        self.asked.append(address)
        if address in self.silent:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)  # as long as a daemon takes at least
        return {0: {"packets": 7, "nonsense": -1}}

    def watch(self) -> tuple[_Stream, "asyncio.Task[None]"]:
        stream = _Stream(pb.WatchDevicesRequest())
        return stream, asyncio.ensure_future(self.service.WatchDevices(stream))  # type: ignore[arg-type]

    async def change(self, mapping: Loaded[Mapping]) -> None:
        """Changes the mapping, and has all who follow see it."""
        revision = self.view.revision.value
        self.snapshots.mapping.set(mapping)
        await self.view.revision.wait_for(lambda now: now > revision)


@asynccontextmanager
async def _world() -> AsyncIterator[_World]:
    world = _World()
    running = asyncio.ensure_future(world.view.run())
    await world.view.revision.wait_for(bool)
    try:
        yield world
    finally:
        running.cancel()


async def _until(stream: _Stream, count: int) -> None:
    async with asyncio.timeout(20):
        while len(stream.sent) < count:
            await asyncio.sleep(0.001)


async def test_all_who_watch_share_one_message_for_each_change() -> None:
    async with _world() as world:
        streams = [world.watch() for _ in range(50)]
        for stream, _ in streams:
            await _until(stream, 1)
        await world.change(_mapping(1, count=200))
        for stream, _ in streams:
            await _until(stream, 2)
        first = streams[0][0]
        for stream, _ in streams:
            assert all(a is b for a, b in zip(stream.sent, first.sent, strict=True))
        whole, change = first.watched()
        assert (whole.initial, len(whole.devices)) == (True, 256)
        assert (change.initial, len(change.devices), len(change.removed_pci_addresses)) == (False, 200, 56)
        world.view.end()
        ended = await asyncio.gather(*(task for _, task in streams), return_exceptions=True)
        assert {type(error) for error in ended} == {GRPCError}


async def test_who_is_slow_gets_the_newest_state_again_and_no_queue() -> None:
    async with _world() as world:
        (slow, slow_task), (quick, quick_task) = world.watch(), world.watch()
        await _until(slow, 1)
        slow.reads.clear()
        await world.change(_mapping(1))
        await _until(slow, 2)
        for revision in range(2, 12):
            await world.change(_mapping(revision))
            await _until(quick, 1 + revision)
        slow.reads.set()
        await _until(slow, 3)
        newest = slow.watched()[-1]
        assert (newest.initial, len(newest.devices)) == (True, 256)
        assert {device.socket_path[-3:] for device in newest.devices} == {"-11"}
        await world.change(_mapping(12))
        await _until(slow, 4)
        assert [response.initial for response in slow.watched()] == [True, False, True, False]
        assert [response.initial for response in quick.watched()][1:] == [False] * (len(quick.sent) - 1)
        for task in (slow_task, quick_task):
            task.cancel()


async def test_a_change_that_concerns_no_device_is_not_sent() -> None:
    async with _world() as world:
        stream, task = world.watch()
        await _until(stream, 1)
        revision = world.view.revision.value
        world.snapshots.wanted.set(Loaded(None, "the file is torn"))
        await world.view.revision.wait_for(lambda now: now > revision)
        await world.change(_mapping(1))
        await _until(stream, 2)
        assert len(stream.watched()[1].devices) == 256
        task.cancel()


async def _list(world: _World, *, statistics: bool = False) -> Any:
    stream = _Stream(pb.ListDevicesRequest(include_statistics=statistics))
    await world.service.ListDevices(stream)  # type: ignore[arg-type]
    (message,) = stream.sent
    return message


async def test_the_list_is_made_once_until_it_changes() -> None:
    async with _world() as world:
        first = await _list(world)
        assert await _list(world) is first
        assert len(pb.ListDevicesResponse.FromString(first[PREFIX_BYTES:]).devices) == 256
        await world.change(_mapping(1))
        assert await _list(world) is not first


async def test_statistics_of_all_devices_are_asked_once_for_all_who_wait() -> None:
    async with _world() as world:
        answers = await asyncio.gather(*(_list(world, statistics=True) for _ in range(10)))
        assert len(world.asked) == 256
        for answer in answers:
            assert {device.statistics[0].counters["packets"] for device in answer.devices} == {7}
            assert "nonsense" not in answer.devices[0].statistics[0].counters
        assert b"packets" not in await _list(world)


async def test_a_daemon_that_does_not_answer_costs_statistics_and_not_the_list() -> None:
    async with _world() as world:
        world.silent = set(ADDRESSES[3:])
        async with asyncio.timeout(20):
            answer = await _list(world, statistics=True)
        assert [len(device.statistics) for device in answer.devices] == [1, 1, 1, *[0] * 253]
