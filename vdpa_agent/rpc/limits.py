"""Limits: how much anybody may take of the agent, and why somebody is turned away."""

from collections.abc import Callable
from enum import StrEnum


class Reason(StrEnum):
    """Why a call or a connection was turned away; each is counted."""

    NOT_ALLOWED = "not_allowed"
    """The peer's user and groups may not call."""
    CONNECTIONS = "connections"
    """Too many connections of everybody, or of its user."""
    CONNECTION_RATE = "connection_rate"
    """Too many new connections a second of its user."""
    CALL_RATE = "call_rate"
    """Too many calls a second of its user."""
    OPEN_CALLS = "open_calls"
    """Too many open calls of its user."""
    WATCHES = "watches"
    """Too many streams that its user watches."""
    ANSWER_BYTES = "answer_bytes"
    """Too many bytes of answers a second of its user."""
    STREAMS = "streams"
    """Too many open calls of its connection."""
    MESSAGE_SIZE = "message_size"
    """A request declared more than a message may have."""
    HEADER_SIZE = "header_size"
    """More headers than a request may have."""
    FRAME_RATE = "frame_rate"
    """Too many frames that ask for nothing."""
    RESET_RATE = "reset_rate"
    """Too many calls made and cancelled."""
    PROTOCOL = "protocol"
    """What it sent is not HTTP/2."""
    DESCRIPTORS = "descriptors"
    """It passed descriptors along with its bytes."""
    UNREAD = "unread"
    """It does not read what it is sent."""
    PREFACE = "preface"
    """It connected and did not speak HTTP/2 in time."""
    IDLE = "idle"
    """It was silent, without a call that is being answered."""


class TokenBucket:
    """Lets a burst through, then a rate."""

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_since")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """Starts full.

        Args:
            rate: tokens that come back in a second.
            burst: the most there can be.
            clock: the time, in seconds.
        """
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._since = clock()

    def take(self, tokens: float = 1.0) -> bool:
        """Takes tokens if there are so many, or as many as there can be."""
        if self._left < tokens:
            # Looked at only when there are too few: most takes need not know the time.
            self._refill()
            if self._left < min(tokens, self._burst):
                return False
        self._left -= tokens
        return True

    def pay(self, tokens: float) -> None:
        """Takes tokens even if there are fewer: whoever comes next waits longer, at most as for twice the burst."""
        self._refill()
        self._left = max(self._left - tokens, -self._burst)

    def give(self, tokens: float) -> None:
        """Puts tokens back, as far as there is room."""
        self._left = min(self._burst, self._left + tokens)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
