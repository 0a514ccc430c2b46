"""Which container has which device, as a kubelet says."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.kubelet.fake_kubelet import Kubelet
from vdpa_agent.kubelet.pod_resources import PodResources
from vdpa_agent.latest import Latest
from vdpa_agent.model.owner import NO_OWNERS, Owner

pytestmark = pytest.mark.anyio

A, B = "0000:82:00.2", "0000:82:00.3"


async def test_each_device_has_the_container_that_the_kubelet_names(run_dir: Path) -> None:
    node, owners = Kubelet(run_dir), Latest(NO_OWNERS)
    node.pods = [
        ("default", "one", "app", "vdpa.io/net", (A,)),
        ("default", "two", "app", "example.com/gpu", ("GPU-fef8089b",)),
        ("\x1b[2J", "x" * 300, "sidecar", "intel.com/old", (B.upper(),)),
    ]
    node.start()
    try:
        resources = PodResources(run_dir, owners, Latest(0))
        await resources.ask()
    finally:
        node.stop()
    assert dict(owners.value) == {
        A: Owner("default", "one", "app"),
        B: Owner("\\x1b[2J", "x" * 253, "sidecar"),
    }


async def test_what_was_known_stays_so_without_an_answer(run_dir: Path) -> None:
    node, owners = Kubelet(run_dir), Latest(NO_OWNERS)
    node.pods = [("default", "one", "app", "vdpa.io/net", (A,))]
    node.start()
    resources = PodResources(run_dir, owners, Latest(0))
    await resources.ask()
    node.stop()
    with capture_logs() as logs:
        await resources.ask()
        await resources.ask()
    assert set(owners.value) == {A}
    assert [log["event"] for log in logs] == ["pod_resources_unknown"]


async def test_it_is_asked_again_soon_after_a_device_was_given(run_dir: Path) -> None:
    node, owners, given = Kubelet(run_dir), Latest(NO_OWNERS), Latest(0)
    node.start()
    resources = PodResources(run_dir, owners, given)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(resources.run())
        try:
            await asyncio.sleep(0.05)
            node.pods = [("default", "one", "app", "vdpa.io/net", (A,))]
            given.set(1)
            async with asyncio.timeout(8):  # without it, it would take 10 s
                await owners.wait_for(bool)
        finally:
            running.cancel()
            node.stop()
