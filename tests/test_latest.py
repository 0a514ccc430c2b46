"""Latest values."""

import asyncio

import pytest

from vdpa_agent.latest import Latest

pytestmark = pytest.mark.anyio


async def test_a_follower_sees_the_value_as_it_is_and_then_the_newest() -> None:
    latest = Latest(1)
    changes = latest.changes()
    assert await anext(changes) == 1
    latest.set(2)
    latest.set(3)
    assert await anext(changes) == 3
    await changes.aclose()  # type: ignore[attr-defined]


async def test_an_equal_value_wakes_nobody() -> None:
    latest = Latest("a")
    changes = latest.changes()
    await anext(changes)
    latest.set("a")
    waiting = asyncio.ensure_future(anext(changes))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    latest.set("b")
    assert await waiting == "b"
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_set_between_the_look_and_the_wait_is_not_missed() -> None:
    latest = Latest(0)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(latest.wait_for(lambda value: value == 100))
        for value in range(1, 101):
            latest.set(value)
            if value % 7 == 0:
                await asyncio.sleep(0)
        assert await waiting == 100


async def test_a_whole_is_told_in_the_same_step() -> None:
    told: list[int] = []
    latest = Latest(1, lambda: told.append(latest.value))
    latest.set(2)
    latest.set(2)
    latest.set(3)
    assert told == [2, 3]
