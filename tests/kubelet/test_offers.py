"""Who follows what is offered leaves with the agent, at once, and nobody is told that there are no devices."""

import asyncio
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from vdpa_agent.kubelet.device_plugin import DevicePlugin, Devices
from vdpa_agent.kubelet.directories import Directories
from vdpa_agent.kubelet.offers import Offers
from vdpa_agent.kubelet.pb import device_plugin_pb2 as pb
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceState
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.pools import Members, Pool, Pools
from vdpa_agent.model.served import Facts, Served, serve

pytestmark = pytest.mark.anyio

A = PciAddress("0000:82:00.2")


class Call:
    """The call of a kubelet that watches."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []

    async def recv_message(self) -> pb.Empty:
        return pb.Empty()

    async def send_message(self, message: pb.ListAndWatchResponse) -> None:
        self.lists.append([device.ID for device in message.devices])


def served() -> Served:
    return serve(
        Facts(
            role=Role.MANAGING,
            wanted=Loaded((A,)),
            pools=Loaded(Pools((Members(Pool("vdpa.io/net"), (A,)),))),
            daemon=DaemonStatus(DaemonState.RUNNING),
            devices=MappingProxyType({A: Device(A, "/run/a", DeviceState.READY)}),
        )
    )


async def test_a_kubelet_that_watches_is_left_with_what_it_knows(run_dir: Path) -> None:
    revision, call = Latest(0), Call()
    offers = Offers(served, revision)
    directories = Directories(run_dir / "devices", served, revision)
    devices = Devices(offers, directories, None, served=served, revision=revision, hold_timeout_s=0.0)
    stream: Any = call
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(DevicePlugin("vdpa.io/net", devices).ListAndWatch(stream))
        while not call.lists:
            await asyncio.sleep(0.005)
        offers.end()
    assert call.lists == [[A]]
