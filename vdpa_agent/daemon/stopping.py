"""Stopping: waits that end when the agent is asked to stop."""

import asyncio
from collections.abc import Awaitable

from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Stop


async def asked(stop: Latest[Stop], least: Stop = Stop.IN_ORDER) -> None:
    """Waits until the agent is asked to stop, at least so urgently."""
    await stop.wait_for(lambda value: value >= least)


async def unless(stop: Latest[Stop], awaited: Awaitable[None], least: Stop = Stop.IN_ORDER) -> bool:
    """Waits for something; False if the agent is asked to stop before, which cancels it."""
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(_wait(awaited)), tasks.create_task(asked(stop, least))]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return stop.value < least


async def _wait(awaited: Awaitable[None]) -> None:
    await awaited
