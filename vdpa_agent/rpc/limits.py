"""Limits: what a connection may take of the agent that no operator need choose, and why a peer is turned away."""

from enum import StrEnum
from typing import Final, NamedTuple

MESSAGE_BYTES: Final = 64 * 1024
"""The longest request; more is RESOURCE_EXHAUSTED before any of it is kept."""

HEADER_BYTES: Final = 16 * 1024
"""The longest list of headers of a request, and the longest block that carries it."""

STREAMS: Final = 100
"""Open calls of a connection; more are REFUSED_STREAM, which clients retry."""

FRAMES_OF_A_CALL: Final = 10
"""Frames that a call brings along: its data, window updates, and the pings by which clients measure."""

FRAMES_PER_S: Final = 250
FRAMES_BURST: Final = 500
"""Frames that a connection may send beside its calls: for long, a second, and at once, as many as one read can have."""

RESETS_PER_S: Final = 100
RESETS_BURST: Final = 200
"""Calls that a connection may cancel, or have refused, likewise."""

BACKLOG: Final = 4_096
"""Connections that wait to be accepted; the kernel lowers it to net.core.somaxconn."""


class Patience(NamedTuple):
    """How long a connection may take, in seconds.

    Attributes:
        preface_s: to speak HTTP/2.
        unread_s: to read what it is sent.
        idle_s: to say something while no call of it is being answered.
    """

    preface_s: float = 5.0
    unread_s: float = 15.0
    idle_s: float = 300.0


class Reason(StrEnum):
    """Why a call or a connection was turned away; each is counted."""

    NOT_ALLOWED = "not_allowed"
    """The peer's user and groups may not call."""
    CONNECTIONS = "connections"
    """Too many connections of everybody, or of its user."""
    CONNECTION_RATE = "connection_rate"
    """Too many new connections a second of its user."""
    CALL_RATE = "call_rate"
    """Too many calls a second of its user: they had to wait, or a call that asks again and again was ended."""
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
