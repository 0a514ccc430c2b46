"""A prototype: the agent, with a small state machine of its own in front of HTTP/2 for the plain GetSocketpath."""

import asyncio
import re
import struct
import sys
from functools import cache
from typing import Final, cast

from grpclib.const import Status
from h2.connection import ConnectionInputs
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from vdpa_agent.cli import main
from vdpa_agent.config import LimitsConfig
from vdpa_agent.rpc import connections
from vdpa_agent.rpc.calls import BEGIN, OK, Headers, Services
from vdpa_agent.rpc.connection import (
    _FRAMES_BURST,
    _FRAMES_OF_A_CALL,
    _FRAMES_PER_S,
    _GRPCLIB,
    READ_BYTES,
    HttpConnection,
    _Connection,
    _Events,
    _Http,
    _Outlet,
)
from vdpa_agent.rpc.limits import Reason, TokenBucket
from vdpa_agent.rpc.peers import Account, Peer, Peers

_PATH: Final = b"/vdpadpdk.VdpaDpdk/GetSocketpath"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = struct.Struct(">HBBBI")
"""The head of a frame: its length in two parts, type, flags and stream."""

_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_ENABLE_PUSH, _STREAM_WINDOW, _FRAME_SIZE = 2, 4, 5
_WINDOW: Final = 65_535
_WINDOW_MAX: Final = 2**31 - 1
_ANSWER_MAX: Final = 256
"""More than any answer has: a path has at most 107 bytes."""

_CREDIT_BYTES: Final = 16_384
"""When the peer's window for the connection is filled up again."""

_REQUEST_S: Final = 0.005
"""How long the request may stay behind its headers: the other path knows when a deadline is over, this one does not."""

_SAME: Final = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": _PATH,
    b"content-type": b"application/grpc",
    b"te": b"trailers",
}
_FREE: Final = {
    b":authority": re.compile(rb"[!-~]+"),
    b"user-agent": re.compile(rb"[!-~]+( [!-~]+)*"),
    b"grpc-accept-encoding": re.compile(rb"[!-~]+( [!-~]+)*"),
    b"accept-encoding": re.compile(rb"[!-~]+( [!-~]+)*"),
    # None that can be over before the answer is made.
    b"grpc-timeout": re.compile(rb"[1-9][0-9]{0,7}[HMSm]|[1-9][0-9]{3,7}u"),
}


class Front(HttpConnection):
    """A connection that answers plain calls by itself until the first thing that is not plain.

    From there on it is the HttpConnection that it would have been from the start: that gets the settings, the headers
    of calls that have begun, the HPACK decoder and the windows, and then every byte that was not used.
    """

    def __init__(self, services: Services, peers: Peers, peer: Peer, account: Account, room: bytearray) -> None:
        super().__init__(services, peers, peer, account, room)
        self._at_once = services.at_once[_PATH]
        self._handled = services.handled
        self._plain = True
        self._ended = False
        self._waits = False
        self._unused = b""
        self._greeting = b""
        self._begun: dict[int, tuple[Headers, float]] = {}
        self._last_stream = 0
        self._window = _WINDOW
        self._to_credit = 0
        self._decoder = Decoder()
        self._decoder.max_header_list_size = peers.limits.header_bytes
        self._frames = TokenBucket(_FRAMES_PER_S, _FRAMES_BURST, self._clock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets the peer, and waits for what it sends first."""
        self._transport = cast("asyncio.Transport", transport)
        self._made_s = self._clock()
        self._transport.write(_settings(self._limits))

    def buffer_updated(self, nbytes: int) -> None:
        """Takes the bytes in."""
        if not self._plain:
            super().buffer_updated(nbytes)
            return
        if self._parting:
            return
        self._heard_s = self._clock()
        data = self._unused + self._view[:nbytes]
        out = bytearray()
        try:
            at, plain = self._take(data, out)
        except HPACKError as error:
            # The decoder is spoilt: nobody can go on with it.
            self._unused = b""
            self._hand_over()
            too_long = isinstance(error, OversizedHeaderListError)
            self._turn_away(
                Reason.HEADER_SIZE if too_long else Reason.PROTOCOL,
                ErrorCodes.ENHANCE_YOUR_CALM if too_long else ErrorCodes.COMPRESSION_ERROR,
            )
            return
        except Exception as error:  # noqa: BLE001 - a defect ends this connection, and no other
            self._peers.tell_defect(self._peer, "fast path", error)
            self._parting = True
            self._transport.abort()
            return
        self._unused = data[at:]
        if out:
            self._transport.write(bytes(out))  # may hand over, if the peer does not read
        if self._ended:
            self._parting = True
            self._transport.close()
        elif not plain:
            self._hand_over()
        elif self._begun:
            self._look_later()

    def pause_writing(self) -> None:
        """The peer is slow to read, which is not plain."""
        self._hand_over()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The peer has read."""
        if not self._plain:
            super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends its calls."""
        if self._plain:
            self._parting = True
            self._forget_begun()
            self.gone.set_result(None)
        else:
            super().connection_lost(exc)

    def look(self, now_s: float) -> None:
        """Closes a connection that takes too long at something, by the rules of the other path."""
        if self._made_s is not None and not self._parting:
            since_s = self._heard_s if self._greeting else self._made_s
            if now_s - since_s > (self._limits.idle_s if self._greeting else self._limits.preface_s):
                self._hand_over()
        if not self._plain or self._parting:
            super().look(now_s)

    def go_away(self) -> None:
        """Asks the peer to make no more calls here."""
        if not self._parting:
            self._hand_over()
        super().go_away()

    def close(self) -> None:
        """Closes without a word."""
        if not self._parting:
            self._hand_over()
            super().close()

    def _take(self, data: bytes, out: bytearray) -> tuple[int, bool]:
        """Takes whole frames as long as they are plain; how many bytes were used, and whether the rest may be plain."""
        at = 0
        if not self._greeting:
            at, plain = self._greet(data, out)
            if not at:
                return 0, plain
        plain = True
        while plain and len(data) - at >= _HEAD.size and not self._ended:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            begin = at + _HEAD.size
            end = begin + (high << 8 | low)
            if end - begin > READ_BYTES:
                return at, False
            if end > len(data):
                break
            last_stream = self._last_stream
            plain = self._frames.take() and self._take_frame(kind, flags, stream, data[begin:end], out)
            # Headers that were decoded are used, whatever they say: the decoder has taken them into its table.
            if plain or self._last_stream != last_stream:
                at = end
        return at, plain

    def _take_frame(self, kind: int, flags: int, stream: int, body: bytes, out: bytearray) -> bool:
        """Takes a frame; says whether it is plain."""
        if kind == _HEADERS:
            if not self._may_begin(flags, stream):
                return False
            headers = cast("Headers", self._decoder.decode(body, raw=True))
            self._account.open_calls += 1
            self._begun[stream] = headers, self._heard_s
            self._last_stream = stream
            return _is_plain(headers)
        if kind == _DATA:
            return flags == _END_STREAM and stream in self._begun and self._answer(stream, body, out)
        return self._tend(kind, flags, stream, body, out)

    def _greet(self, data: bytes, out: bytearray) -> tuple[int, bool]:
        """Takes the preface and its settings, if both are there; returns what _take does."""
        begin = len(_PREFACE) + _HEAD.size
        if len(data) < begin:
            return 0, data.startswith(_PREFACE) or _PREFACE.startswith(data)
        high, low, kind, flags, stream = _HEAD.unpack_from(data, len(_PREFACE))
        end = begin + (high << 8 | low)
        plain = data.startswith(_PREFACE) and kind == _SETTINGS and not flags and not stream and end <= READ_BYTES
        if not plain or end > len(data):
            return 0, plain
        if not (end - begin) % 6 and all(
            _is_plain_setting(*setting) for setting in struct.iter_unpack(">HI", data[begin:end])
        ):
            self._greeting = data[:end]
            out += _HEAD.pack(0, 0, _SETTINGS, _ACK, 0)
            return end, True
        return 0, False

    def _may_begin(self, flags: int, stream: int) -> bool:
        return (
            flags == _END_HEADERS
            and stream % 2 == 1
            and self._last_stream < stream <= _WINDOW_MAX
            and len(self._begun) < self._limits.streams
            and self._peer.allowed
            and self._account.open_calls < self._limits.open_calls_per_uid
            and self._account.calls.take()
        )

    def _tend(self, kind: int, flags: int, stream: int, body: bytes, out: bytearray) -> bool:
        """Takes a frame that belongs to no call; says whether it is plain."""
        if kind == _PING and not flags and not stream and len(body) == 8:
            out += _HEAD.pack(0, 8, _PING, _ACK, 0) + body
        elif kind == _WINDOW_UPDATE and len(body) == 4:
            more = int.from_bytes(body, "big")
            if not stream and 0 < more <= _WINDOW_MAX - self._window:
                self._window += more
            else:
                # One for a call that was answered means nothing any more.
                return stream % 2 == 1 and stream <= self._last_stream and stream not in self._begun and more > 0
        elif kind == _GOAWAY and not stream and len(body) >= 8 and not self._begun:
            self._ended = True
        else:
            return kind == _SETTINGS and flags == _ACK and not stream and not body
        return True

    def _answer(self, stream: int, data: bytes, out: bytearray) -> bool:
        """Answers a call if its request is plain, it would not be refused, and the answer is at hand."""
        length = len(data) - 7
        if (
            not 0 <= length < 128
            or data[:7] != b"\0\0\0\0%c\n%c" % (length + 2, length)
            or not data.isascii()
            or self._window < _ANSWER_MAX
        ):
            return False
        answer = self._at_once(data[5:])
        if answer is None:
            return False
        _, began_s = self._begun.pop(stream)
        self._account.open_calls -= 1
        message = b"\0" + len(answer).to_bytes(4, "big") + answer
        out += _HEAD.pack(0, len(_BEGINNING), _HEADERS, _END_HEADERS, stream) + _BEGINNING
        out += _HEAD.pack(0, len(message), _DATA, 0, stream) + message
        out += _HEAD.pack(0, len(_ENDING), _HEADERS, _END_HEADERS | _END_STREAM, stream) + _ENDING
        self._window -= len(message)
        self._to_credit += len(data)
        if self._to_credit >= _CREDIT_BYTES:
            out += self._credit()
        self._frames.give(_FRAMES_OF_A_CALL)
        self._handled.add(_PATH.decode(), Status.OK, self._clock() - began_s, {})
        return True

    def _credit(self) -> bytes:
        credit, self._to_credit = self._to_credit, 0
        return _HEAD.pack(0, 4, _WINDOW_UPDATE, 0, 0) + credit.to_bytes(4, "big") if credit else b""

    def _hand_over(self) -> None:
        """Becomes the connection that it would have been from the start."""
        if not self._plain:
            return
        self._plain = False
        # As in connection_made, whose second half it would be; the settings and their acknowledgement are sent already.
        http = self._http = _Http(self._limits, self._clock)
        http.initiate_connection()
        outlet = cast("asyncio.Transport", _Outlet(self._transport))
        self.connection = _Connection(http, outlet, config=_GRPCLIB, peer=self._peer)
        self.processor = self._events = _Events(self._calls, self.connection, http, self._turn_away)
        self._events.take(self.connection.feed(self._greeting))
        http.clear_outbound_data_buffer()
        http.outbound_flow_control_window = self._window
        http.decoder = self._decoder
        http.frames = http.incoming_buffer._frames = self._frames  # type: ignore[attr-defined] # noqa: SLF001
        if credit := self._credit():
            self._transport.write(credit)
        # Headers without a table's help say the same again to a decoder that knows them.
        begun = {stream: _literal(stream, headers) for stream, (headers, _) in self._begun.items()}
        self._forget_begun()
        newest = begun.pop(self._last_stream, b"")
        self._pass_on(b"".join(begun.values()))
        http.highest_inbound_stream_id = self._last_stream - 2 if newest else self._last_stream
        if self._last_stream:
            http.state_machine.process_input(ConnectionInputs.RECV_HEADERS)  # h2 takes nothing about calls before one
        unused, self._unused = self._unused, b""
        # Together, as they came: h2 looks at all of it before anything is answered.
        self._pass_on(newest + unused)

    def _forget_begun(self) -> None:
        """They are over, or become calls of the other path, which counts them anew."""
        self._account.open_calls -= len(self._begun)
        self._account.calls.give(len(self._begun))
        self._begun.clear()

    def _look_at_begun(self) -> None:
        self._waits = False
        if self._plain and self._begun:
            _, began_s = next(iter(self._begun.values()))
            if self._clock() - began_s >= _REQUEST_S:
                self._hand_over()
            else:
                self._look_later()

    def _look_later(self) -> None:
        if not self._waits:
            self._waits = True
            asyncio.get_running_loop().call_later(_REQUEST_S, self._look_at_begun)

    def _pass_on(self, data: bytes) -> None:
        for at in range(0, len(data), READ_BYTES):
            part = data[at : at + READ_BYTES]
            self._view[: len(part)] = part
            if not self._transport.is_closing():
                super().buffer_updated(len(part))


def _is_plain_setting(name: int, value: int) -> bool:
    if name == _STREAM_WINDOW:
        return _ANSWER_MAX <= value <= _WINDOW_MAX
    if name == _FRAME_SIZE:
        return 2**14 <= value < 2**24
    return name != _ENABLE_PUSH or value <= 1


def _is_plain(headers: Headers) -> bool:
    """Whether these are the headers of a call as gRPC's clients make it, each once, those of HTTP first."""
    named = dict(headers)
    return (
        len(named) == len(headers)
        and _SAME.items() <= named.items()
        and b":authority" in named
        and all(name[:1] == b":" for name, _ in headers[:4])
        and all(
            name in _SAME or (name in _FREE and _FREE[name].fullmatch(value) is not None) for name, value in headers
        )
    )


def _block(headers: Headers) -> bytes:
    """Headers as HPACK that no table remembers."""
    return Encoder().encode([(name, value, True) for name, value in headers])


def _literal(stream: int, headers: Headers) -> bytes:
    block = _block(headers)
    return _HEAD.pack(len(block) >> 8, len(block) & 255, _HEADERS, _END_HEADERS, stream) + block


@cache
def _settings(limits: LimitsConfig) -> bytes:
    """What is sent first."""
    http = _Http(limits, lambda: 0.0)
    http.initiate_connection()
    return http.data_to_send()


_BEGINNING: Final = _block(BEGIN)
_ENDING: Final = _block(OK)

if __name__ == "__main__":
    setattr(connections, "HttpConnection", Front)  # noqa: B010 - the module does not offer it for that
    sys.exit(main())
