"""One call that runs in a task, and the stream that its request comes on."""

import asyncio
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from vdpa_agent.rpc.headers import Fields, timeout_of
from vdpa_agent.rpc.limits import MESSAGE_BYTES, Reason
from vdpa_agent.rpc.nghttp2 import Block, Headers
from vdpa_agent.rpc.peers import Account, Peer, Peers
from vdpa_agent.rpc.services import Method
from vdpa_agent.rpc.session import OK, Reply, whole
from vdpa_agent.rpc.stream import PREFIX, Deadline, Framed, Stream


class Incoming:
    """An open stream: a request that comes, and what becomes of it.

    Attributes:
        method: what it calls; None: it has its answer, and what else comes is of no use.
        fields: its headers.
        began_s: when it began.
        data: what came of it and was not used.
        owed: how much came for which the peer may not send more yet, in bytes.
        left: how much is still to come, in bytes; None: it did not say.
        refusal: its answer, once as much has come as it said; None: it has none yet, or has it already.
        last: whether its last frame has begun.
        ended: whether all of it has come.
        call: the call that it has become.
        task: what runs that call.
    """

    __slots__ = ("began_s", "call", "data", "ended", "fields", "last", "left", "method", "owed", "refusal", "task")

    def __init__(self, fields: Fields, left: int | None, began_s: float, *, ended: bool) -> None:
        self.method: Method | None = None
        self.fields = fields
        self.began_s = began_s
        self.data = b""
        self.owed = 0
        self.left = left
        self.refusal: Block | None = None
        self.last = self.ended = ended
        self.call: Call | None = None
        self.task: asyncio.Task[None] | None = None


class Carrier(Protocol):
    """What a call is carried by: the calls of its connection.

    Attributes:
        peers: where refusals are counted.
        peer: who calls.
        account: the peer's.
        busy: how many calls have their request and are being answered.
    """

    peers: Peers
    peer: Peer
    account: Account
    busy: int

    def begin(self, stream: int, body: bytes, trailers: Block | None = None) -> Reply:
        """Answers with the beginning of a gRPC answer, some data, and perhaps its end."""

    def go_on(self, stream: int, reply: Reply, body: bytes, trailers: Block | None = None) -> None:
        """Adds data to an answer whose data were taken, or its end."""

    def answer_plainly(self, stream: int, headers: Block, body: bytes | None = None) -> None:
        """Answers with headers, and a text if there is one."""

    def flush(self) -> None:
        """Sends what there is to be sent."""

    def refused(self, reason: Reason) -> GRPCError:
        """The end of a call that has become too much."""

    def make_room(self, stream: int, incoming: Incoming) -> None:
        """Lets the peer send more, if there is room for it."""


class Call(Stream[Any, Any]):
    """A call that runs in a task. The answer of a method that sends one is kept: all of it leaves in one write."""

    def __init__(self, calls: Carrier, number: int, incoming: Incoming, method: Method) -> None:
        timeout_s = timeout_of(incoming.fields)
        self.path = method.path
        self.peer = calls.peer
        self.deadline = None if timeout_s is None else Deadline(timeout_s)
        self.method = method
        self.timeout_s = timeout_s
        self.has_request = False
        self.answer: bytes | None = None
        self.code = Status.CANCELLED
        self._calls = calls
        self._number = number
        self._incoming = incoming
        self._came: asyncio.Future[None] | None = None
        self._reply: Reply | None = None

    async def recv_message(self) -> Any:
        """As a stream does."""
        while not (data := self._message()):
            if data is None:
                return None
            self._came = asyncio.get_running_loop().create_future()
            await self._came
        try:
            request = self.method.handler.request_type.FromString(data[PREFIX.size :])
        except DecodeError:
            raise GRPCError(Status.INTERNAL, "the request is not the message that this method takes") from None
        if self.has_request:
            # What asks within one call costs as much as what asks by many.
            if not self._calls.account.calls.take():
                raise self._calls.refused(Reason.CALL_RATE)
        else:
            self.has_request = True
            self._calls.busy += not self.method.takes_several
        return request

    async def send_message(self, message: Any) -> None:
        """As a stream does."""
        framed = message if isinstance(message, Framed) else Framed.of(message)
        self._charge(len(framed))
        if self.method.watches:
            await self._send(framed)
        else:
            self.answer = framed

    def wake(self) -> None:
        """More of the request has come, or its end."""
        if self._came is not None and not self._came.done():
            self._came.set_result(None)

    def end(self, status: Headers | None) -> None:
        """Sends what was kept, and the status.

        Args:
            status: the headers of a status that is no success; None: it is one.
        """
        calls, number = self._calls, self._number
        if self._reply is not None:
            calls.go_on(number, self._reply, b"", OK if status is None else Block(status))
        elif status is None:
            calls.begin(number, self.answer or b"", OK)
        else:
            calls.answer_plainly(number, whole(status))
        calls.flush()

    def _message(self) -> bytes | None:
        """The next message with its prefix; empty: not all of it has come; None: there is none."""
        incoming = self._incoming
        data = incoming.data
        if len(data) < PREFIX.size:
            if not incoming.ended:
                return b""
            if data:
                raise GRPCError(Status.INTERNAL, "the request ends in the middle of its message")
            if self.method.takes_several:
                return None
            raise GRPCError(Status.INTERNAL, "the call has no request")
        compressed, length = PREFIX.unpack_from(data)
        if compressed:
            raise GRPCError(Status.UNIMPLEMENTED, "the request is compressed, send it as it is")
        if length > MESSAGE_BYTES:
            self._calls.peers.tell(self.peer, Reason.MESSAGE_SIZE)
            message = f"the request has {length} bytes, at most {MESSAGE_BYTES} are taken"
            raise GRPCError(Status.RESOURCE_EXHAUSTED, message)
        end = PREFIX.size + length
        if len(data) < end:
            if incoming.ended:
                raise GRPCError(Status.INTERNAL, "the request ends in the middle of its message")
            return b""
        if not self.method.takes_several and not self._is_alone(len(data) - end):
            return b""
        incoming.data = data[end:]
        self._calls.make_room(self._number, incoming)
        return data[:end]

    def _is_alone(self, more_bytes: int) -> bool:
        """Whether nothing can come after a request; False: not yet.

        Raises:
            GRPCError: something did.
        """
        if more_bytes:
            raise GRPCError(Status.INTERNAL, "the call has more than the one request that this method takes")
        return self._incoming.ended

    async def _send(self, framed: bytes) -> None:
        calls, reply = self._calls, self._reply
        if reply is None:
            reply = self._reply = calls.begin(self._number, framed)
        else:
            calls.go_on(self._number, reply, framed)
        reply.taken = asyncio.get_running_loop().create_future()
        calls.flush()
        await reply.taken

    def _charge(self, answer_bytes: int) -> None:
        if self.method.at_once is not None:
            return  # it is owed
        account = self._calls.account
        if self.method.watches and not self.method.takes_several:
            account.answer_bytes.spend(answer_bytes)  # how many watch is bounded, and all of them see the same
        elif not account.answer_bytes.take(answer_bytes):
            raise self._calls.refused(Reason.ANSWER_BYTES)
