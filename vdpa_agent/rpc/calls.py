"""Calls: the gRPC calls of one connection, each from its headers to its status."""

import asyncio
import re
import struct
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import grpclib.const
import grpclib.protocol
import grpclib.server
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from grpclib.const import Status
from grpclib.encoding.proto import ProtoCodec, ProtoStatusDetailsCodec
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.metadata import Deadline, encode_bin_value, encode_grpc_message
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

from vdpa_agent.rpc.handled import Handled
from vdpa_agent.rpc.limits import Reason
from vdpa_agent.rpc.peers import Account, Peer, Peers

Headers = list[tuple[bytes, bytes]]

_DOMAIN: Final = "vdpa-agent"
_PREFIX: Final = struct.Struct(">BI")
"""What precedes a message: whether it is compressed, and its length."""

_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?(;.*)?")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_TRACE: Final = (b"traceparent", b"tracestate")
"""The headers of W3C's Trace Context."""

BEGIN: Final[Headers] = [(b":status", b"200"), (b"content-type", b"application/grpc+proto")]
OK: Final[Headers] = [(b"grpc-status", b"0")]

_AT_ONCE_BYTES: Final = 4_096
"""What the peer's windows must have room for before a call is answered at once; no such answer is longer."""

_REFUSALS: Final = {
    Reason.NOT_ALLOWED: (Status.PERMISSION_DENIED, "this user may not call; see --allow-uid, --allow-gid"),
    Reason.CALL_RATE: (Status.RESOURCE_EXHAUSTED, "this user makes too many calls a second"),
    Reason.OPEN_CALLS: (Status.RESOURCE_EXHAUSTED, "this user has too many open calls"),
    Reason.WATCHES: (Status.RESOURCE_EXHAUSTED, "this user watches too many streams"),
    Reason.ANSWER_BYTES: (Status.RESOURCE_EXHAUSTED, "this user gets too many bytes of answers a second"),
}
"""How calls are refused for what their user takes."""

_NOT_POST: Final[Headers] = [(b":status", b"405"), (b"allow", b"POST"), (b"content-type", b"text/plain")]
_SPEAKS_GRPC: Final = b"this socket speaks gRPC: ask it by vdpa-agent or grpcurl\n"


class Framed(bytes):
    """A message as it is sent, with its prefix: made once, it can be the answer to any number of calls."""

    __slots__ = ()

    @classmethod
    def of(cls, message: Any) -> "Framed":
        """The frame of a message, or of the bytes of one."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        return cls(_PREFIX.pack(0, len(body)) + body)


class Call(grpclib.server.Stream[Any, Any]):
    """What the method of a service sees of its call; its `peer` is a `Peer`.

    The answer of a method that sends one is kept, so that headers, message and status leave in one write.
    """

    _stream: grpclib.protocol.Stream
    has_request = False
    answer: bytes | None = None
    begun = False
    trace: Mapping[str, str] = MappingProxyType({})
    code = Status.CANCELLED
    """What it ended with, unless it never got so far."""

    def __init__(
        self, stream: grpclib.protocol.Stream, path: str, method: grpclib.const.Handler, calls: "Calls"
    ) -> None:
        super().__init__(
            stream,
            path,
            method.cardinality,
            method.request_type,
            method.reply_type,
            codec=calls.services.codec,
            status_details_codec=calls.services.details,
            dispatch=calls.services.dispatch,
        )
        self.path = path
        self.began_s = asyncio.get_running_loop().time()
        self.is_owed = path.encode() in calls.services.at_once
        self.takes_several = method.cardinality.client_streaming
        self.watches = method.cardinality.server_streaming
        self._message_bytes = calls.peers.limits.message_bytes
        self._calls = calls

    async def recv_message(self) -> Any:
        """The next request; None after the last one of a method that takes several.

        Raises:
            GRPCError: it is too long, compressed, torn or malformed, or one too many.
        """
        try:
            prefix = await self._stream.recv_data(_PREFIX.size)
            if not prefix:
                if self._cardinality.client_streaming:
                    return None
                raise GRPCError(Status.INTERNAL, "the call has no request")
            compressed, length = _PREFIX.unpack(prefix)
            if compressed:
                raise GRPCError(Status.UNIMPLEMENTED, "the request is compressed, send it as it is")
            if length > self._message_bytes:
                self._calls.peers.tell(self._calls.peer, Reason.MESSAGE_SIZE)
                message = f"the request has {length} bytes, at most {self._message_bytes} are taken"
                raise GRPCError(Status.RESOURCE_EXHAUSTED, message)
            data = await self._stream.recv_data(length)
            if len(data) < length:
                raise GRPCError(Status.INTERNAL, "the request ends in the middle of its message")
        except AssertionError:
            raise GRPCError(Status.INTERNAL, "the request ends in the middle of its message") from None
        try:
            request = self._recv_type.FromString(data)
        except DecodeError:
            raise GRPCError(Status.INTERNAL, "the request is not the message that this method takes") from None
        if self.has_request:
            # What asks within one call costs as much as what asks by many.
            if not self._calls.account.calls.take():
                raise self._calls.refused(Reason.CALL_RATE)
        else:
            self.has_request = True
            self._calls.busy += not self.takes_several
        return request

    async def send_message(self, message: Any) -> None:
        """Sends an answer, which may be `Framed` already; waits while the peer is slow to read.

        Raises:
            GRPCError: the user got too many bytes lately.
        """
        framed = message if isinstance(message, Framed) else Framed.of(message)
        self._charge(len(framed))
        if self._cardinality.server_streaming:
            await self._begin()
            await self._stream.send_data(framed)
        else:
            self.answer = framed

    async def end(self, trailers: Headers) -> None:
        """Sends what was kept, and the status."""
        answer = self.answer
        if answer is not None and trailers is OK:
            if self._sent_whole(answer):
                return
            await self._begin()
            await self._stream.send_data(answer)
        if not self.begun:
            trailers = [*BEGIN, *trailers]
        await self._stream.send_headers(trailers, end_stream=True)  # type: ignore[arg-type]

    def _charge(self, answer_bytes: int) -> None:
        if self.is_owed:
            return
        account = self._calls.account
        if self._cardinality is grpclib.const.Cardinality.UNARY_STREAM:
            account.answer_bytes.pay(answer_bytes)  # how many watch is bounded, and all of them see the same
        elif not account.answer_bytes.take(answer_bytes):
            raise self._calls.refused(Reason.ANSWER_BYTES)

    def _sent_whole(self, answer: bytes) -> bool:
        """Sends all of an answer in one write if the peer's windows have the room; says whether it did."""
        http, number, connection = self._stream._h2_connection, self._stream.id, self._stream.connection  # noqa: SLF001
        assert number is not None  # noqa: S101 - a call has a stream that has begun
        room = min(http.local_flow_control_window(number), http.max_outbound_frame_size)
        if not connection.write_ready.is_set() or len(answer) > room:
            return False
        _send_whole(http, number, answer)
        connection.flush()
        return True

    async def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            await self._stream.send_headers(BEGIN)  # type: ignore[arg-type]


class Services:
    """The methods of all services, and how a call is refused that reaches none of them.

    Attributes:
        methods: the methods, by their path.
        at_once: by the path of a method what may answer a request of it at once, both serialized; None: the method has
            to be called. A service names them in its `at_once`.
        handled: how their calls ended.
    """

    def __init__(self, services: Collection[Any]) -> None:
        self.methods: dict[bytes, grpclib.const.Handler] = {
            path.encode(): method for service in services for path, method in service.__mapping__().items()
        }
        self.at_once: dict[bytes, Callable[[bytes], bytes | None]] = {
            path.encode(): answer for service in services for path, answer in getattr(service, "at_once", {}).items()
        }
        self.handled = Handled({path.decode(): method.cardinality for path, method in self.methods.items()})
        self.codec = ProtoCodec()
        self.details = ProtoStatusDetailsCodec()
        self.dispatch = _DispatchServerEvents()
        self._no_such_method = [*BEGIN, *self.status(Status.UNIMPLEMENTED, "there is no such method here")]
        self._bad_timeout = [*BEGIN, *self.status(Status.INTERNAL, "the grpc-timeout is malformed")]
        self._not_grpc = [
            (b":status", b"415"),
            *self.status(Status.UNKNOWN, "the content-type is not application/grpc"),
        ]
        self.refused = {
            reason: [*BEGIN, *self.status(code, message, _details(reason))]
            for reason, (code, message) in _REFUSALS.items()
        }
        self._streams = {path for path, method in self.methods.items() if method.cardinality.server_streaming}

    def is_watch(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a call gets a stream of answers."""
        return headers.get(b":path") in self._streams

    def refusal(self, headers: dict[bytes, bytes]) -> Headers | None:
        """The whole answer to a call that is none of these services'; None for others, and for what is no call."""
        if headers[b":method"] != b"POST":
            return None
        if not _CONTENT_TYPE.fullmatch(headers.get(b"content-type", b"")):
            return self._not_grpc
        if headers.get(b":path") not in self.methods:
            self.handled.add_unknown()
            return self._no_such_method
        timeout = headers.get(b"grpc-timeout")
        return None if timeout is None or _TIMEOUT.fullmatch(timeout) else self._bad_timeout

    def status(self, code: Status, message: str | None, details: Any = None) -> Headers:
        """The headers that carry a status."""
        headers: Headers = [(b"grpc-status", str(code.value).encode())]
        if message is not None:
            headers.append((b"grpc-message", encode_grpc_message(message).encode()))
        if details is not None:
            encoded = encode_bin_value(self.details.encode(code, message, details))
            headers.append((b"grpc-status-details-bin", encoded))
        return headers


class Calls(grpclib.protocol.AbstractHandler):
    """The running calls of one connection.

    Attributes:
        services: what can be called.
        peers: where refusals are counted.
        peer: who calls.
        account: the peer's.
        busy: how many calls have their request and are being answered.
    """

    def __init__(self, services: Services, peers: Peers, peer: Peer, account: Account) -> None:
        self.services = services
        self.peers = peers
        self.peer = peer
        self.busy = 0
        self.account = account
        self._tasks: dict[grpclib.protocol.Stream, asyncio.Task[None]] = {}

    @property
    def running(self) -> Collection["asyncio.Task[None]"]:
        """The calls that have not ended."""
        return self._tasks.values()

    def refusal(self, headers: dict[bytes, bytes]) -> Headers | None:
        """The whole answer to a call that is refused by its headers; None if it is taken."""
        if not self.peer.allowed:
            return self._refused(Reason.NOT_ALLOWED)
        if not self.account.calls.take():
            return self._refused(Reason.CALL_RATE)
        if self.account.open_calls >= self.peers.limits.open_calls_per_uid:
            return self._refused(Reason.OPEN_CALLS)
        if self.account.watches >= self.account.watches_max and self.services.is_watch(headers):
            return self._refused(Reason.WATCHES)
        return self.services.refusal(headers)

    def refused(self, reason: Reason) -> GRPCError:
        """The end of a call that has become too much."""
        self.peers.tell(self.peer, reason)
        return GRPCError(*_REFUSALS[reason], _details(reason))

    def accept(self, stream: grpclib.protocol.Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        """Starts a call that was not refused, or explains itself to who makes none."""
        if headers[b":method"] != b"POST":
            self._start(stream, None, release_stream, _explain(stream, in_full=headers[b":method"] != b"HEAD"))
            return
        path = headers[b":path"]
        method = self.services.methods[path]
        call = Call(stream, path.decode("ascii", "replace"), method, self)
        call.trace = _trace(headers)
        timeout = headers.get(b"grpc-timeout")
        timeout_s = None if timeout is None else int(timeout[:-1]) * _UNIT_S[timeout[-1:]]
        self._start(stream, call, release_stream, self._run(call, method, timeout_s))

    def _start(
        self,
        stream: grpclib.protocol.Stream,
        call: Call | None,
        release_stream: Callable[[], None],
        steps: Coroutine[Any, Any, None],
    ) -> None:
        # The task is held here until it is done, and ended with the connection.
        task = asyncio.get_running_loop().create_task(steps)
        self.account.open_calls += 1
        self.account.watches += call is not None and call.watches
        self._tasks[stream] = task
        # Not at the end of the coroutine: one that is cancelled before its first step never gets there.
        task.add_done_callback(partial(self._done, stream, call, release_stream))

    def cancel(self, stream: grpclib.protocol.Stream) -> None:
        """The peer has cancelled a call."""
        task = self._tasks.get(stream)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """The connection ends."""
        for task in self._tasks.values():
            task.cancel()

    def answers_at_once(self, http: H2Connection, number: int, headers: dict[bytes, bytes], data: bytes) -> bool:
        """Answers a call that is there as a whole, without a task, if its answer is at hand; says whether it did.

        Args:
            http: the connection; whoever calls sees that it is not blocked, and sends what it has to send.
            number: the call's stream.
            headers: a request's that was not refused.
            data: all that the request has.
        """
        path = headers.get(b":path", b"")
        at_once = self.services.at_once.get(path)
        if at_once is None or headers[b":method"] != b"POST" or len(data) < _PREFIX.size:
            return False
        compressed, length = _PREFIX.unpack_from(data)
        if compressed or length != len(data) - _PREFIX.size or length > self.peers.limits.message_bytes:
            return False
        try:
            if http.local_flow_control_window(number) < _AT_ONCE_BYTES:
                return False
        except ProtocolError:
            return False  # the peer, in what came later, has ended the call
        began_s = asyncio.get_running_loop().time()
        body = at_once(data[_PREFIX.size :])
        if body is None:
            return False
        code = Status.OK
        try:
            _send_whole(http, number, _PREFIX.pack(0, len(body)) + body)
        except ProtocolError:
            code = Status.CANCELLED  # or its connection
        took_s = asyncio.get_running_loop().time() - began_s
        self.services.handled.add(path.decode(), code, took_s, _trace(headers))
        return True

    async def _run(self, call: Call, method: grpclib.const.Handler, timeout_s: float | None) -> None:
        try:
            await call.end(await self._status(call, method, timeout_s))
            if call._stream.closable:  # noqa: SLF001
                call._stream.reset_nowait()  # noqa: SLF001 - the peer need not send the rest
        except ProtocolError:
            pass  # the call or its connection is gone, and nobody is there to be told
        except Exception as error:  # noqa: BLE001 - whatever it is, other calls go on
            self.peers.tell_defect(self.peer, call._method_name, error)  # noqa: SLF001

    async def _status(self, call: Call, method: grpclib.const.Handler, timeout_s: float | None) -> Headers:
        """Runs the method; how it ended, as trailers."""

        def ended(code: Status, message: str | None, details: Any = None) -> Headers:
            call.code = code
            return self.services.status(code, message, details)

        try:
            if timeout_s is None:
                await method.func(call)
            else:
                call.deadline = Deadline.from_timeout(timeout_s)
                async with asyncio.timeout(timeout_s):
                    await method.func(call)
        except GRPCError as error:
            return ended(error.status, error.message, error.details)
        except TimeoutError:
            return ended(Status.DEADLINE_EXCEEDED, "the deadline is over")
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of a service
            self.peers.tell_defect(self.peer, call._method_name, error)  # noqa: SLF001
            return ended(Status.UNKNOWN, "the agent failed, its log tells how")
        if call.answer is None and not method.cardinality.server_streaming:
            return ended(Status.UNKNOWN, "the agent gave no answer")
        call.code = Status.OK
        return OK

    def _done(
        self, stream: grpclib.protocol.Stream, call: Call | None, release_stream: Callable[[], None], _task: Any
    ) -> None:
        del self._tasks[stream]
        self.account.open_calls -= 1
        if call is not None:
            self.busy -= call.has_request and not call.takes_several
            self.account.watches -= call.watches
            took_s = asyncio.get_running_loop().time() - call.began_s
            self.services.handled.add(call.path, call.code, took_s, call.trace)
        release_stream()

    def _refused(self, reason: Reason) -> Headers:
        self.peers.tell(self.peer, reason)
        return self.services.refused[reason]


def _details(reason: Reason) -> list[ErrorInfo]:
    return [ErrorInfo(reason=reason.upper(), domain=_DOMAIN)]


def _send_whole(http: H2Connection, number: int, answer: bytes) -> None:
    """Has all of a successful answer sent: its beginning, its message with the prefix, and its status."""
    http.send_headers(number, BEGIN)
    http.send_data(number, answer)
    http.send_headers(number, OK, end_stream=True)


def _trace(headers: dict[bytes, bytes]) -> Mapping[str, str]:
    return {name.decode(): headers[name].decode("latin-1") for name in _TRACE if name in headers}


async def _explain(stream: grpclib.protocol.Stream, *, in_full: bool) -> None:
    """Answers a request that is HTTP but no call, with a text if it may have one."""
    with suppress(ProtocolError):  # nobody is there to be told
        await stream.send_headers(_NOT_POST, end_stream=not in_full)  # type: ignore[arg-type]
        if in_full:
            await stream.send_data(_SPEAKS_GRPC, end_stream=True)
        if stream.closable:
            stream.reset_nowait()
