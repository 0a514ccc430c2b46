"""What the method of a service sees of its call, whatever carries it."""

import struct
import time
from abc import ABC, abstractmethod
from typing import Any, Final, Generic, Self, TypeVar

from vdpa_agent.rpc.peers import Peer

PREFIX: Final = struct.Struct(">BI")
"""What precedes a message: whether it is compressed, and its length in bytes."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Framed(bytes):
    """A message as it is sent, with its prefix: made once, it can be the answer to any number of calls."""

    __slots__ = ()

    @classmethod
    def of(cls, message: Any) -> "Framed":
        """The frame of a message, or of the bytes of one."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        return cls(PREFIX.pack(0, len(body)) + body)


class Deadline:
    """When a call is over."""

    __slots__ = ("_at_s",)

    def __init__(self, timeout_s: float) -> None:
        self._at_s = time.monotonic() + timeout_s

    def time_remaining(self) -> float:
        """How long it may still take, in seconds; 0: it is over."""
        return max(0.0, self._at_s - time.monotonic())


class Stream(ABC, Generic[Request, Answer]):
    """One call: its requests and its answers.

    Attributes:
        path: its method.
        peer: who calls.
        deadline: when it is over; None: whenever.
    """

    path: str
    peer: Peer
    deadline: Deadline | None

    @abstractmethod
    async def recv_message(self) -> Request | None:
        """The next request; None after the last one of a method that takes several.

        Raises:
            GRPCError: it is too long, compressed, torn or malformed, or one too many.
        """

    @abstractmethod
    async def send_message(self, message: Answer | Framed) -> None:
        """Sends an answer, which may be `Framed` already; waits while the peer is slow to read.

        Raises:
            GRPCError: the user got too many bytes lately.
        """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Request:
        request = await self.recv_message()
        if request is None:
            raise StopAsyncIteration
        return request
