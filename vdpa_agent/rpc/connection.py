"""The hardened HTTP/2 connection: what h2 and grpclib leave unbounded has a bound here."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import zip_longest
from typing import Any, ClassVar, Final, Self, cast

from grpclib.config import Configuration
from grpclib.protocol import Connection, EventsProcessor, H2Protocol
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RemoteSettingsChanged, RequestReceived
from h2.events import Event as H2Event
from h2.exceptions import (
    DenialOfServiceError,
    FrameTooLargeError,
    ProtocolError,
    TooManyStreamsError,
)
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder, HeaderTuple
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame

from vdpa_agent.config import LimitsConfig
from vdpa_agent.node.guarded import DescriptorsPassed
from vdpa_agent.rpc.calls import BEGIN, OK, Calls, Services
from vdpa_agent.rpc.limits import Reason, TokenBucket
from vdpa_agent.rpc.peers import Account, Peer, Peers

READ_BYTES: Final = 512
"""What is read from a connection before the others have their turn: about half a dozen calls, 2 or 3 ms of work."""

_HEADER_TABLE_BYTES: Final = 4_096
"""HPACK's default; what a peer allows beyond is not used, since it would be kept for each connection."""

_FRAMES_OF_A_CALL: Final = 10
"""Frames that a call brings along: its data, window updates, and the pings by which clients measure."""

_FRAMES_PER_S: Final = 250
_FRAMES_BURST: Final = 250
"""Frames that a connection may send beside its calls: for long, a second, and at once. More close it."""

_RESETS_PER_S: Final = 100
_RESETS_BURST: Final = 200
"""Calls that a connection may cancel, or have refused, likewise."""

_WAITING_BYTES: Final = 16 * 1024
"""From here on answers wait until the peer has read; asyncio's 64 KiB are 700 of them, beside what the kernel holds."""

_FRAME_HEADER_BYTES: Final = 9
_KNOWN_SETTINGS: Final = frozenset(SettingCodes)
_GRPCLIB: Final = Configuration().__for_server__()
_H2: Final = H2Configuration(
    client_side=False,
    header_encoding=None,  # bytes: what is not ASCII is nobody's trouble
    validate_inbound_headers=True,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)


class HttpConnection(H2Protocol, asyncio.BufferedProtocol):
    """One connection of one peer.

    It is closed with a GOAWAY as soon as the peer leaves the protocol or takes too much, and the reason is counted.

    Attributes:
        gone: is done when the connection is.
    """

    _http: "_Http"

    def __init__(self, services: Services, peers: Peers, peer: Peer, account: Account, room: bytearray) -> None:
        """Waits for its transport.

        Args:
            services: what can be called.
            peers: the accounts.
            peer: who has connected.
            account: the peer's.
            room: where all connections read to, one at a time.
        """
        # Not super().__init__: it takes one handler and one configuration for all connections.
        self._peers = peers
        self._peer = peer
        self._account = account
        self._limits = peers.limits
        self._room = room
        self._view = memoryview(room)
        self._calls = Calls(services, peers, peer, account)
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._clock = loop.time
        self._made_s: float | None = None
        self._heard_s = self._clock()
        self._blocked_s: float | None = None
        self._parting = False

    @property
    def running(self) -> list["asyncio.Task[None]"]:
        """The calls that have not ended."""
        return list(self._calls.running)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to speak HTTP/2."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WAITING_BYTES)
        self._made_s = self._clock()
        self._http = _Http(self._limits, self._clock)
        self._http.initiate_connection()
        outlet = cast("asyncio.Transport", _Outlet(self._transport))
        self.connection = _Connection(self._http, outlet, config=_GRPCLIB, peer=self._peer)
        self.processor = self._events = _Events(self._calls, self.connection, self._http, self._turn_away)
        # What h2 greets with goes out with its answer to the peer's greeting, which comes without waiting for it.

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Where the next bytes go to."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Takes the bytes in."""
        if self._parting:
            return
        self._heard_s = self._clock()
        try:
            self._events.take(self.connection.feed(bytes(self._view[:nbytes])))
        except ProtocolError as error:
            self._turn_away(_reason_of(error), None)  # h2 has said GOAWAY
            return
        except Exception as error:  # noqa: BLE001 - a defect ends this connection, and no other
            self._peers.tell_defect(self._peer, "HTTP/2", error)
            self._part(ErrorCodes.INTERNAL_ERROR)
            return
        self.connection.flush()
        if self._blocked_s is not None and self._unread_bytes() > self._limits.unread_bytes:
            self._turn_away(Reason.UNREAD)

    def pause_writing(self) -> None:
        """The peer is slow to read: answers wait."""
        self._blocked_s = self._clock()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The peer has read."""
        self._blocked_s = None
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends its calls."""
        if isinstance(exc, DescriptorsPassed):
            self._peers.tell(self._peer, Reason.DESCRIPTORS)
            self._peers.charge(self._account)
        super().connection_lost(exc)
        self.gone.set_result(None)

    def look(self, now_s: float) -> None:
        """Closes a connection that takes too long at something; to be called about once a second."""
        limits = self._limits
        if self._made_s is None:
            return
        if self._parting:
            self._transport.abort()
        elif not self._http.greeted and now_s - self._made_s > limits.preface_s:
            self._turn_away(Reason.PREFACE, ErrorCodes.SETTINGS_TIMEOUT)
        elif self._blocked_s is not None and now_s - self._blocked_s > limits.unread_s:
            self._turn_away(Reason.UNREAD)
        elif not self._calls.busy and now_s - self._heard_s > limits.idle_s:
            self._peers.turned_away[Reason.IDLE] += 1
            self._part(ErrorCodes.NO_ERROR)

    def go_away(self) -> None:
        """Asks the peer to make no more calls here; those that run go on."""
        if not self._parting:
            # Not by h2: it would send nothing more, no answers either.
            last = self._http.highest_inbound_stream_id
            self._events.last_stream = last
            self.connection.flush()
            self._transport.write(GoAwayFrame(0, last_stream_id=last).serialize())

    def close(self) -> None:
        """Closes without a word."""
        self._part(None)

    def abort(self) -> None:
        """Closes, whether the peer has read everything or not."""
        self._transport.abort()

    def _turn_away(self, reason: Reason, code: ErrorCodes | None = ErrorCodes.ENHANCE_YOUR_CALM) -> None:
        self._peers.tell(self._peer, reason)
        self._peers.charge(self._account)
        self._part(code)

    def _part(self, code: ErrorCodes | None) -> None:
        self._parting = True
        if code is not None:
            self._http.close_connection(code)
        self.connection.flush()
        self.processor.close()
        if self._blocked_s is not None:
            self._transport.abort()  # who has not read will not read the last words either

    def _unread_bytes(self) -> int:
        return self._transport.get_write_buffer_size()


class _Connection(Connection):
    """grpclib's connection, which knows its peer and writes nothing once it is closed."""

    def __init__(self, http: H2Connection, transport: asyncio.Transport, *, config: Configuration, peer: Peer) -> None:
        super().__init__(http, transport, config=config)
        self._peer = peer

    def flush(self) -> None:
        """Writes what there is."""
        if not self.is_closing():
            super().flush()

    def get_peer(self) -> Any:
        """Who is at the other end."""
        return self._peer


class _Outlet:
    """The transport as grpclib's streams see it: asyncio would log what is written to a connection that is gone."""

    __slots__ = ("_transport", "close", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.close = transport.close
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._transport.write(data)


class _Events(EventsProcessor):
    """What each event of h2 means; those without a meaning here are ignored."""

    def __init__(
        self, calls: Calls, connection: Connection, http: "_Http", turn_away: Callable[[Reason], None]
    ) -> None:
        super().__init__(calls, connection)
        self.last_stream: int | None = None
        self._calls = calls
        self._http = http
        self._turn_away = turn_away
        self._streams_max = calls.peers.limits.streams

    def take(self, events: list[H2Event]) -> None:
        """Takes in what came together; nothing once the connection is closed."""
        for event, after in zip_longest(events, events[1:]):
            if self.connection.is_closing():
                return
            # The peer, in what came later, may have ended the stream or the connection: there is no answer then.
            with suppress(ProtocolError):
                if event.__class__ is RequestReceived:
                    self._begin(event, after)
                elif (process := self.processors.get(event.__class__)) is not None:
                    process(event)  # type: ignore[operator]

    def _begin(self, event: RequestReceived, after: H2Event | None) -> None:
        """Answers a call at once, starts it, or refuses it; `after` is the event that came after it, if one did."""
        number = event.stream_id
        if len(self.streams) >= self._streams_max:
            if self._http.resets.take():
                self._calls.peers.tell(self._calls.peer, Reason.STREAMS)
                self._http.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            else:
                self._turn_away(Reason.STREAMS)
            return
        if self.last_stream is not None and number > self.last_stream:
            self._http.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        headers = dict(event.headers)
        refusal = self._calls.refusal(headers)
        if refusal is None:
            self._http.frames.give(_FRAMES_OF_A_CALL)
            if (
                after.__class__ is not DataReceived
                or after.stream_id != number
                or after.stream_ended is None
                or not self.connection.write_ready.is_set()
                or not self._calls.answers_at_once(self._http, number, headers, after.data)
            ):
                event.headers = headers  # type: ignore[assignment]  # what the call is started with
                self.process_request_received(event)
            return
        self._http.send_headers(number, refusal, end_stream=True)
        if not self._http.streams[number].closed:
            self._http.reset_stream(number, ErrorCodes.NO_ERROR)

    def process_data_received(self, event: DataReceived) -> None:
        """Keeps data for its call."""
        length = event.flow_controlled_length
        if length:  # grpclib takes an empty frame for the end of the data
            if event.stream_id in self.streams:
                super().process_data_received(event)
            else:
                self._http.acknowledge_received_data(length, event.stream_id)  # sent with the rest

    def process_remote_settings_changed(self, event: RemoteSettingsChanged) -> None:
        """The first one is the end of the peer's preface."""
        self._http.greeted = True
        super().process_remote_settings_changed(event)


class _Http(H2Connection):
    """h2's connection, with bounds on what it keeps and how fast it takes frames.

    Attributes:
        frames: the frames that the peer may still send.
        resets: the calls that may still be cancelled or refused.
        greeted: whether the peer speaks HTTP/2.
    """

    MAX_CLOSED_STREAMS = 1_024

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float]) -> None:
        super().__init__(_H2)
        self.frames = TokenBucket(_FRAMES_PER_S, _FRAMES_BURST, clock)
        self.greeted = False
        self.local_settings = _Settings(limits)
        self.encoder = _Encoder()
        self.decoder = _Decoder()
        self.decoder.max_header_list_size = limits.header_bytes
        self.resets = TokenBucket(_RESETS_PER_S, _RESETS_BURST, clock)
        self.incoming_buffer = _Frames(self.frames, self.resets, limits.header_bytes)

    def _receive_settings_frame(self, frame: Any) -> Any:
        # h2 keeps settings that nobody knows, and there may be 65,536 of them.
        known = {code: value for code, value in frame.settings.items() if code in _KNOWN_SETTINGS}
        if SettingCodes.HEADER_TABLE_SIZE in known:
            size = known[SettingCodes.HEADER_TABLE_SIZE]
            known[SettingCodes.HEADER_TABLE_SIZE] = min(size, _HEADER_TABLE_BYTES)
        frame.settings = known
        taken = super()._receive_settings_frame(frame)
        sizes = self.encoder.table_size_changes
        if len(sizes) > 2:  # noqa: PLR2004 - the least and the last one are all that count
            self.encoder.table_size_changes = [min(sizes), sizes[-1]]
        return taken


class _Encoder(Encoder):
    """HPACK's encoder, which has the headers of a plain answer ready: as literals, which need no table."""

    _ready: ClassVar = {
        tuple(headers): Encoder().encode([(name, value, True) for name, value in headers], huffman=False)
        for headers in (BEGIN, OK)
    }

    def encode(self, headers: Any, huffman: bool = True) -> bytes:  # noqa: FBT001, FBT002 - as in hpack
        """The block of some headers."""
        ready = self._ready.get(tuple(headers))
        if self.table_size_changes:
            ready = None
            self.header_table.resized = True  # hpack forgets that when the size is set to what it is
        return super().encode(headers, huffman) if ready is None else ready


class _Decoder(Decoder):
    """HPACK's decoder, which gives a request that names no host one: h2 would end the connection for it."""

    def decode(self, data: bytes, raw: bool = False) -> Any:  # noqa: FBT001, FBT002 - as in hpack
        """The headers of a block."""
        headers = list(super().decode(data, raw))
        names = {name for name, _ in headers}
        if b":method" in names and names.isdisjoint({b":authority", b"host"}):
            headers.insert(0, HeaderTuple(b":authority", b"localhost"))
        return headers


class _Settings(Settings):
    """What is announced, with room for calls that were made before the peer read it."""

    def __init__(self, limits: LimitsConfig) -> None:
        super().__init__(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_bytes,
            },
        )

    @property  # type: ignore[misc]  # nobody sets it
    def max_concurrent_streams(self) -> int:
        """Where h2 closes the connection; up to here streams are refused one by one."""
        return 2 * self[SettingCodes.MAX_CONCURRENT_STREAMS]


class _Frames(FrameBuffer):
    """Looks at each frame before h2 does: the peer must have a token for it, and room for its headers."""

    def __init__(self, frames: TokenBucket, resets: TokenBucket, header_bytes: int) -> None:
        super().__init__(server=True)
        self._frames = frames
        self._resets = resets
        self._header_bytes = header_bytes

    def __next__(self) -> Frame:
        data = self._data
        if len(data) >= _FRAME_HEADER_BYTES:
            length = int.from_bytes(data[:3], "big")
            if length > self.max_frame_size:  # h2 would wait for all of it first
                message = f"a frame of {length} bytes"
                raise FrameTooLargeError(message)
            if len(data) >= _FRAME_HEADER_BYTES + length:
                if data[3] == RstStreamFrame.type:
                    if not self._resets.take():
                        raise _TooMuch(Reason.RESET_RATE)
                elif not self._frames.take():
                    raise _TooMuch(Reason.FRAME_RATE)
        return super().__next__()

    def __iter__(self) -> Self:
        return self

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        whole = super()._update_header_buffer(f)
        if self._headers_buffer and sum(len(part.data) for part in self._headers_buffer) > self._header_bytes:
            raise _TooMuch(Reason.HEADER_SIZE)
        return whole


class _TooMuch(DenialOfServiceError):
    """The peer sends too much of something."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def _reason_of(error: ProtocolError) -> Reason:
    if isinstance(error, _TooMuch):
        return error.reason
    if isinstance(error, DenialOfServiceError):
        return Reason.HEADER_SIZE
    return Reason.STREAMS if isinstance(error, TooManyStreamsError) else Reason.PROTOCOL
