"""Turns of a user's connections, on virtual time."""

import asyncio

import pytest

from vdpa_agent.model.allowance import Allowance
from vdpa_agent.rpc.turns import Turns

pytestmark = pytest.mark.anyio


class _Waiting:
    """Takes note of its turn, and spends something."""

    def __init__(self, name: str, turns: list[str], calls: Allowance, costs: float) -> None:
        self._name, self._turns, self._calls, self._costs = name, turns, calls, costs

    def turn(self) -> None:
        self._turns.append(self._name)
        self._calls.spend(self._costs)


async def test_those_who_came_first_come_first_and_new_ones_after_them() -> None:
    now_s = 0.0
    calls = Allowance(lambda: now_s, burst=10, per_s=1_000)
    turns = Turns(calls)
    had: list[str] = []
    assert not turns.come_first()
    calls.spend(10)
    assert turns.come_first()
    for name in "abc":
        turns.wait(_Waiting(name, had, calls, 7))
    now_s = 0.01
    assert calls.has(1)
    assert turns.come_first()  # though something may be spent
    async with asyncio.timeout(20):
        while len(had) < 3:
            now_s += 0.001
            await asyncio.sleep(0.002)
    assert had == ["a", "b", "c"]
    now_s += 1
    assert not turns.come_first()
