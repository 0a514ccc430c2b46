"""Asking: puts requests about devices to the daemon, of which one that is not answered keeps no other waiting."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final

from vdpa_agent.daemon.control import Control
from vdpa_agent.errors import Unanswered

_TURNS: Final = 2
"""How many devices the daemon is asked for at a time: its answer to `version` waits behind them."""

_LATE_S: Final = 5.0
"""After so long without an answer a device says that it is waited for."""

_GIVEN_UP_S: Final = 30.0
"""After so long without an answer the daemon is asked again; it takes a VF of a NIC a second or two."""

Late = Callable[[str, str, str], None]
"""Takes the device, the method and a reason."""


class Asking:
    """The requests that are under way, a few at a time."""

    def __init__(self, late: Late) -> None:
        """Asks nothing yet.

        Args:
            late: called when a request has not been answered for some seconds; it is waited for still.
        """
        self._late = late
        self._turns = asyncio.Semaphore(_TURNS)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Callable[[], None]]:
        """Waits for a turn; it ends with the context, or as soon as the function that it gives is called."""
        await self._turns.acquire()
        with ExitStack() as over:
            over.callback(self._turns.release)
            yield over.close

    async def ask(self, control: Control, method: str, request: dict[str, str], over: Callable[[], None]) -> Any:
        """Asks the daemon something about a device, and returns its raw result.

        Args:
            control: the daemon's channel.
            method: what to do.
            request: the parameters, `device` among them.
            over: ends the turn; called once the request keeps the daemon from nothing any more.

        Raises:
            RequestRefused: it refused.
            Unanswered: it did not answer in time; the text is a reason for the device.
            DaemonLost: the channel failed.
        """
        report = (request["device"], method, unanswered(method, _LATE_S))
        late = asyncio.get_running_loop().call_later(_LATE_S, self._late, *report)
        try:
            return await control.call(method, request, timeout_s=_GIVEN_UP_S, passed=over)
        except Unanswered as error:
            raise Unanswered(unanswered(method, _GIVEN_UP_S)) from error
        finally:
            late.cancel()


def unanswered(method: str, seconds: float) -> str:
    """A reason in words."""
    return f"the daemon has not answered {method} for {seconds:g} s"
