"""Turns: connections of a user who asks too often wait, and take turns as the rate allows."""

import asyncio
from collections import deque
from typing import Final, Protocol

from vdpa_agent.model.allowance import Allowance

_AT_LEAST_S: Final = 0.001


class Waiting(Protocol):
    """What waits."""

    def turn(self) -> None:
        """It is its turn."""


class Turns:
    """The connections of one user that wait, first come, first served; what they sent waits in the kernel."""

    __slots__ = ("_calls", "_due", "_waiting")

    def __init__(self, calls: Allowance) -> None:
        """Nobody waits.

        Args:
            calls: the rate of the user's calls, which whoever has a turn spends.
        """
        self._calls = calls
        self._waiting: deque[Waiting] = deque()
        self._due: asyncio.TimerHandle | None = None

    def come_first(self) -> bool:
        """Whether others have to have their turn before anybody else asks."""
        return bool(self._waiting) or not self._calls.has(1)

    def wait(self, waiting: Waiting) -> None:
        """Gives it a turn after all who wait already; what has ended meanwhile must bear that."""
        self._waiting.append(waiting)
        self._plan()

    def _plan(self) -> None:
        if self._waiting and self._due is None:
            self._due = asyncio.get_running_loop().call_later(max(_AT_LEAST_S, self._calls.wait_s()), self._serve)

    def _serve(self) -> None:
        self._due = None
        for _ in range(len(self._waiting)):
            if not self._calls.has(1):
                break
            self._waiting.popleft().turn()
        self._plan()
