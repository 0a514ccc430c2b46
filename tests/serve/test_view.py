"""The view: an external mapping's sockets, and what the services say when the agent ends."""

import asyncio
from collections.abc import Collection
from types import MappingProxyType

import pytest
from grpclib.health.v1.health_pb2 import HealthCheckResponse

from tests.served import snapshots
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.serve.health import HealthService
from vdpa_agent.serve.view import View

pytestmark = pytest.mark.anyio

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")


def _mapping(**sockets: str) -> Loaded[Mapping]:
    return Loaded(Mapping(MappingProxyType({{"a": A, "b": B}[name]: path for name, path in sockets.items()})))


class _Kernel:
    """Which sockets are dead, as the test has it."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.looks = 0

    async def look(self, paths: Collection[str]) -> dict[str, str]:
        self.looks += 1
        return {path: f"nobody listens on {path}" for path in paths if path in self.dead}


async def test_a_socket_that_must_be_alive_is_not_promised_before_the_first_look() -> None:
    kernel = _Kernel()
    of = snapshots(mapping=_mapping(a="/v/a"), role=Role.SERVING)
    view = View(of, dead_sockets=kernel.look, require_sockets=True)
    assert not view.served.sockets
    assert view.served.is_awaited(A)
    running = asyncio.ensure_future(view.run())
    async with asyncio.timeout(20):
        await view.revision.wait_for(lambda _: bool(view.served.sockets))
        of.mapping.set(_mapping(a="/v/a", b="/v/b"))
        assert list(view.served.sockets) == [A]  # what was alive goes on, what is new is looked at first
        await view.revision.wait_for(lambda _: B in view.served.sockets)
    running.cancel()


async def test_a_socket_that_dies_is_pushed_to_those_who_follow() -> None:
    kernel = _Kernel()
    of = snapshots(mapping=_mapping(a="/v/a"), role=Role.SERVING)
    view = View(of, dead_sockets=kernel.look, require_sockets=True)
    running = asyncio.ensure_future(view.run())
    async with asyncio.timeout(20):
        await view.revision.wait_for(lambda _: view.served.health.ready)
        kernel.dead.add("/v/a")
        before = view.revision.value
        # Nothing but the look changes the revision now.
        await view.revision.wait_for(lambda revision: revision > before)
    assert view.served.health.reasons == (f"{A} is failed: nobody listens on /v/a",)
    running.cancel()


async def test_where_sockets_are_not_required_a_dead_one_is_a_remark() -> None:
    kernel = _Kernel()
    kernel.dead.add("/v/a")
    view = View(snapshots(mapping=_mapping(a="/v/a"), role=Role.SERVING), dead_sockets=kernel.look)
    assert dict(view.served.sockets) == {A: "/v/a"}
    running = asyncio.ensure_future(view.run())
    async with asyncio.timeout(20):
        await view.revision.wait_for(lambda _: view.served.devices[A].remark == "nobody listens on /v/a")
    assert dict(view.served.sockets) == {A: "/v/a"}
    assert view.served.devices[A].reason == ""
    assert view.served.health.ready
    running.cancel()


async def test_nothing_is_looked_at_in_another_role() -> None:
    kernel = _Kernel()
    of = snapshots(mapping=_mapping(a="/v/a"), role=Role.WAITING)
    view = View(of, dead_sockets=kernel.look)
    running = asyncio.ensure_future(view.run())
    async with asyncio.timeout(20):
        for number in range(5):
            before = view.revision.value
            of.mapping.set(_mapping(a=f"/v/{number}"))
            await view.revision.wait_for(lambda revision, before=before: revision > before)  # type: ignore[misc]
    assert kernel.looks == 0
    running.cancel()


async def test_no_service_serves_when_the_agent_ends() -> None:
    view = View(snapshots(Loaded(()), role=Role.MANAGING))
    health = HealthService(view)
    services = ("", "vdpadpdk.VdpaDpdk", "vdpa_agent.v1.DeviceService")
    assert {health._response(service).status for service in services} == {HealthCheckResponse.SERVING}
    view.end()
    assert {health._response(service).status for service in services} == {HealthCheckResponse.NOT_SERVING}
