"""Calls: the gRPC calls of one connection, each from its headers to its status."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from vdpa_agent.rpc.call import Call, Incoming
from vdpa_agent.rpc.frames import Frames, TooMuch
from vdpa_agent.rpc.headers import Fields, are_trailers, fields_of, length_of, status_headers, trace_of
from vdpa_agent.rpc.limits import MESSAGE_BYTES, Reason
from vdpa_agent.rpc.nghttp2 import Block, ErrorCode, Headers
from vdpa_agent.rpc.peers import Account, Peer, Peers
from vdpa_agent.rpc.services import NOT_POST, SPEAKS_GRPC, Method, Services, error_of
from vdpa_agent.rpc.session import OK, Session
from vdpa_agent.rpc.stream import PREFIX

_KEPT_BYTES: Final = PREFIX.size + MESSAGE_BYTES
"""What a stream may have come to before its peer has to wait until some of it is used."""


def _nothing() -> None:
    """Sends nothing: the connection has ended."""


class Calls(Session):
    """The calls of one connection.

    Attributes:
        peers: where refusals are counted.
        peer: who calls.
        account: the peer's.
        busy: how many calls have their request and are being answered.
        made: how many calls were made.
        too_much: why the connection has to end; None: it need not.
    """

    def __init__(
        self,
        services: Services,
        peers: Peers,
        peer: Peer,
        account: Account,
        *,
        frames: Frames,
        flush: Callable[[], None],
    ) -> None:
        """Greets the peer.

        Args:
            services: what can be called.
            peers: where refusals are counted.
            peer: who calls.
            account: the peer's.
            frames: what the peer may send.
            flush: sends what there is to be sent.
        """
        super().__init__()
        self.peers = peers
        self.peer = peer
        self.account = account
        self._flush = flush
        self.busy = 0
        self.made = 0
        self.too_much: TooMuch | None = None
        self._clock = peers.clock
        self._services = services
        self._frames = frames
        self._open: dict[int, Incoming] = {}
        self._begun: dict[int, Incoming] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> list["asyncio.Task[None]"]:
        """The calls that have not ended."""
        return list(self._running)

    # ---- what the peer does ----

    def took_headers(self, stream: int, headers: Headers, *, ended: bool) -> None:
        """Refuses a request by its headers, or waits for its data."""
        incoming = self._open.get(stream)
        if incoming is not None:
            # After the data come trailers alone, and with them the end.
            if ended and are_trailers(headers):
                self.took_end(stream)
            else:
                self._spoil(stream, incoming)
            return
        fields = fields_of(headers)
        if fields is None:
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        incoming = self._open[stream] = Incoming(fields, length_of(fields), self._clock(), ended=ended)
        if ended and incoming.left:
            self._spoil(stream, incoming)
        elif fields[b":method"] != b"POST":
            self.answer_plainly(stream, NOT_POST, None if fields[b":method"] == b"HEAD" else SPEAKS_GRPC)
        elif (refusal := self._refusal(fields)) is not None:
            if incoming.left:
                incoming.refusal = refusal  # whether it keeps its word comes first
            else:
                self.answer_plainly(stream, refusal)
        else:
            self._frames.earn()
            self.made += 1
            incoming.method = self._services.methods[fields[b":path"]]
            self._count(incoming.method, 1)
            self._begun[stream] = incoming

    def took_data(self, stream: int, data: bytes, *, last: bool) -> None:
        """Keeps data for its call."""
        incoming = self._open.get(stream)
        if incoming is None:  # reset for its headers
            self.used(stream, len(data), going_on=False)
            return
        incoming.owed += len(data)
        incoming.last = last
        if incoming.left is not None:
            incoming.left -= len(data)
        if incoming.method is not None:
            incoming.data = incoming.data + data if incoming.data else data
            if incoming.call is not None:
                incoming.call.wake()
        self.make_room(stream, incoming)

    def took_end(self, stream: int) -> None:
        """Answers a request that is there as a whole, if its answer is at hand."""
        incoming = self._open.get(stream)
        if incoming is None:
            return
        incoming.last = incoming.ended = True
        if incoming.left:
            self._spoil(stream, incoming)
        elif incoming.call is not None:
            incoming.call.wake()
        elif incoming.refusal is not None:
            self.answer_plainly(stream, incoming.refusal)
        elif incoming.method is not None and self._answered(stream, incoming, incoming.method):
            del self._begun[stream]

    def closed(self, stream: int) -> None:
        """Ends the call of a stream that has ended."""
        incoming = self._open.pop(stream, None)
        if incoming is None:
            return
        if incoming.owed:
            self.used(stream, incoming.owed, going_on=False)
        if incoming.task is not None:
            incoming.task.cancel()
        elif self._begun.pop(stream, None) is not None:
            self._handled(incoming, Status.CANCELLED)

    def was_refused(self, *, too_many: bool) -> None:
        """A stream was reset; the peer has only so many."""
        if too_many:
            self.peers.tell(self.peer, Reason.STREAMS)
        if not self._frames.refuse() and self.too_much is None:
            self.too_much = TooMuch(Reason.STREAMS, ErrorCode.ENHANCE_YOUR_CALM)

    def headers_too_long(self) -> None:
        """The connection has to end: what is left out would be missing in the table of headers."""
        self.too_much = TooMuch(Reason.HEADER_SIZE, ErrorCode.ENHANCE_YOUR_CALM)

    def is_open(self, stream: int) -> bool:
        """Whether something may still come on a stream."""
        incoming = self._open.get(stream)
        return incoming is not None and not incoming.ended

    # ---- what the connection does ----

    def start(self) -> None:
        """Has those calls run that were not answered as they came."""
        if not self._begun:
            return
        begun, self._begun = self._begun, {}
        loop = asyncio.get_running_loop()
        for stream, incoming in begun.items():
            assert incoming.method is not None  # noqa: S101 - what was answered has left
            incoming.call = Call(self, stream, incoming, incoming.method)
            # The task is held here until it is done, and ended with the connection.
            incoming.task = loop.create_task(self._run(incoming.call))
            self._running.add(incoming.task)
            # Not at the end of the coroutine: one that is cancelled before its first step never gets there.
            incoming.task.add_done_callback(partial(self._done, incoming, incoming.call))

    def end(self) -> None:
        """The connection ends, and all calls with it."""
        for incoming in self._begun.values():
            self._handled(incoming, Status.CANCELLED)
        self._begun.clear()
        for task in self._running:
            task.cancel()
        self._open.clear()
        self._flush = _nothing  # else the connection and its calls would keep each other until a collection

    # ---- what calls do ----

    def flush(self) -> None:
        """Sends what there is to be sent."""
        self._flush()

    def refused(self, reason: Reason) -> GRPCError:
        """The end of a call that has become too much."""
        self.peers.tell(self.peer, reason)
        return error_of(reason)

    def make_room(self, stream: int, incoming: Incoming) -> None:
        """Lets the peer send more, if there is room for it."""
        if incoming.owed and (incoming.method is None or len(incoming.data) <= _KEPT_BYTES):
            owed, incoming.owed = incoming.owed, 0
            self.used(stream, owed, going_on=not incoming.last)

    # ---- inside ----

    def _spoil(self, stream: int, incoming: Incoming) -> None:
        """A request has become malformed."""
        self.reset(stream, ErrorCode.PROTOCOL_ERROR)
        if self._begun.pop(stream, None) is not None:
            self._handled(incoming, Status.CANCELLED)
        if incoming.task is not None:
            incoming.task.cancel()
        incoming.method = None
        incoming.data = b""

    def _refusal(self, fields: Fields) -> Block | None:
        """The whole answer to a call that is refused by its headers; None if it is taken."""
        account, services = self.account, self._services
        if not self.peer.allowed:
            return self._refused(Reason.NOT_ALLOWED)
        if not account.calls.take():
            account.calls.spend(1)  # it is taken, and the next ones wait: see turns.py
        if account.open_calls >= self.peers.limits.open_calls_per_uid:
            return self._refused(Reason.OPEN_CALLS)
        if (refusal := services.refusal(fields)) is not None:
            return refusal
        if account.watches >= account.watches_max and services.methods[fields[b":path"]].watches:
            return self._refused(Reason.WATCHES)
        return None

    def _refused(self, reason: Reason) -> Block:
        self.peers.tell(self.peer, reason)
        return self._services.refused(reason)

    def _count(self, method: Method, calls: int) -> None:
        self.account.open_calls += calls
        if method.watches:
            self.account.watches += calls

    def _handled(self, incoming: Incoming, code: Status) -> None:
        """A call has ended."""
        method = incoming.method
        if method is not None:
            incoming.method = None
            self._count(method, -1)
            took_s = self._clock() - incoming.began_s
            self._services.handled.add(method.path, code, took_s, trace_of(incoming.fields))

    def _answered(self, stream: int, incoming: Incoming, method: Method) -> bool:
        """Answers a call that is there as a whole, without a task, if its answer is at hand; says whether it did."""
        data = incoming.data
        if method.at_once is None or len(data) < PREFIX.size:
            return False
        compressed, length = PREFIX.unpack_from(data)
        if compressed or length != len(data) - PREFIX.size or length > MESSAGE_BYTES:
            return False
        body = method.at_once(data[PREFIX.size :])
        if body is None:
            return False
        self.begin(stream, PREFIX.pack(0, len(body)) + body, OK)
        self._handled(incoming, Status.OK)
        return True

    async def _run(self, call: Call) -> None:
        try:
            status = await self._status(call)
            if not self.is_freed:  # a deadline may come at the same moment as the end of the connection
                call.end(status)
        except Exception as error:  # noqa: BLE001 - whatever it is, other calls go on
            self.peers.tell_defect(self.peer, call.path, error)

    async def _status(self, call: Call) -> Headers | None:
        """Runs the method; how it ended, as headers, if it is no success."""

        def ended(code: Status, message: str | None, details: Any = None) -> Headers:
            call.code = code
            return status_headers(code, message, details)

        try:
            if call.timeout_s is None:
                await call.method.handler.func(call)
            else:
                async with asyncio.timeout(call.timeout_s):
                    await call.method.handler.func(call)
        except GRPCError as error:
            return ended(error.status, error.message, error.details)
        except TimeoutError:
            return ended(Status.DEADLINE_EXCEEDED, "the deadline is over")
        except Exception as error:
            if self.is_freed:
                raise asyncio.CancelledError from error
            self.peers.tell_defect(self.peer, call.path, error)
            return ended(Status.UNKNOWN, "the agent failed, its log tells how")
        if call.answer is None and not call.method.watches:
            return ended(Status.UNKNOWN, "the agent gave no answer")
        call.code = Status.OK
        return None

    def _done(self, incoming: Incoming, call: Call, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self.busy -= call.has_request and not call.method.takes_several
        if incoming.method is None:  # spoilt meanwhile
            incoming.method = call.method
        self._handled(incoming, call.code)
        incoming.data = b""
        incoming.call = incoming.task = None
