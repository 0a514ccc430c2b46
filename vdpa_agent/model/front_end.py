"""FrontEnd: what a virtual machine or pod does with a device's socket, as far as the daemon reported it."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple


class FrontEndState(StrEnum):
    """How far a front end has come."""

    NONE = "none"
    """No front end is connected, or none is known of."""
    CONNECTED = "connected"
    """One has the socket open, and no packet can pass: it has negotiated nothing yet, or has stopped its rings."""
    CONFIGURED = "configured"
    """It has set up its rings, and the device serves them."""


class FrontEnd(NamedTuple):
    """The front end of one device.

    Attributes:
        state: how far it has come.
        queue_pairs: how many of the device's queue pairs it has set up and enabled; 0 unless it is configured.
    """

    state: FrontEndState = FrontEndState.NONE
    queue_pairs: int = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is one."""
        return self.state is not FrontEndState.NONE

    @property
    def is_configured(self) -> bool:
        """Whether its packets can pass."""
        return self.state is FrontEndState.CONFIGURED


NO_FRONT_END: Final = FrontEnd()
"""Nothing is connected."""

CONNECTED: Final = FrontEnd(FrontEndState.CONNECTED)
"""A front end is connected, and not configured."""

Refusals = Mapping[str, int]
"""How many front ends of one device were refused, by the daemon's word for the reason."""

NOTHING_REFUSED: Final[Refusals] = MappingProxyType({})
"""No front end was refused."""


class LastRefusal(NamedTuple):
    """The front end of a device that was refused last.

    Attributes:
        reason: the daemon's word for why; empty: none was.
        seen_s: when it was seen in the counts, in seconds of the caller's clock.
    """

    reason: str = ""
    seen_s: float = 0.0


NEVER_REFUSED: Final = LastRefusal()
"""No front end was refused."""


def last_refusal(before: Refusals, now: Refusals, known: LastRefusal, now_s: float) -> LastRefusal:
    """The last refusal after a new count: of what became more, what became most more.

    Args:
        before: the count before.
        now: the new one.
        known: the last refusal so far.
        now_s: the time.
    """
    more = {reason: count - before.get(reason, 0) for reason, count in now.items()}
    most = max(more, key=lambda reason: more[reason], default="")
    return LastRefusal(most, now_s) if more.get(most, 0) > 0 else known


def configured(queue_pairs: int) -> FrontEnd:
    """A front end that is configured with so many queue pairs in use."""
    return FrontEnd(FrontEndState.CONFIGURED, queue_pairs)
