"""What a fuzzer sends: calls, frames right and wrong, and bytes, cut anywhere."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from hpack import Encoder
from hypothesis import strategies as st

from tests.abuse.wire import HEADERS, PATH, PREFACE, message, request

DATA, HEADERS_FRAME, PRIORITY_FRAME, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32

_GOOD: Final = tuple((name.encode(), value.encode()) for name, value in HEADERS)

NEW: Final = -1
"""Stands for the next stream of a connection; -2 for its last one, -3 for the one before that, and so on."""

PATHS: Final = (
    PATH,
    "/vdpa_agent.v1.DeviceService/ListDevices",
    "/vdpa_agent.v1.DeviceService/GetDevice",
    "/vdpa_agent.v1.DeviceService/WatchDevices",
    "/vdpa_agent.v1.DeviceService/GetStatus",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)


class Do(Enum):
    """What a fuzzer does between the bytes."""

    WAIT = auto()
    """Lets the agent work."""
    BLOCK = auto()
    """Reads no more."""
    UNBLOCK = auto()
    """Reads again."""


@dataclass(frozen=True, slots=True)
class Block:
    """Headers, which are encoded in the order in which they are sent."""

    headers: tuple[tuple[bytes, bytes], ...]
    pad: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame; its length may lie."""

    kind: int
    flags: int
    stream: int
    payload: bytes | Block
    lie: int = 0


Step = bytes | Do
"""Bytes that arrive at once, or what happens between them."""

_usual: Final = tuple((name.encode(), value.encode()) for name, value in HEADERS)
_recent = st.integers(-4, -2)
_word = st.binary(min_size=4, max_size=4)
_number = st.one_of(
    st.sampled_from([0, 1, 100, 16_383, 16_384, 65_535, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1]),
    st.integers(0, 2**32 - 1),
).map(lambda number: number.to_bytes(4, "big"))
_small = st.sampled_from([1, 5, 1_000, 65_535]).map(lambda number: number.to_bytes(4, "big"))

# ---- what is right, or wrong for its call alone ----

_call_headers = st.builds(
    lambda path, changes: Block(tuple({**dict(_usual), b":path": path, **changes}.items())),
    st.sampled_from([path.encode() for path in PATHS]),
    st.sampled_from(
        [
            {},
            {},
            {},
            {b"grpc-timeout": b"1m"},
            {b"grpc-timeout": b"10S"},
            {b"grpc-timeout": b"soon"},
            {b"content-type": b"text/html"},
            {b":path": b"/nowhere"},
            {b":method": b"GET"},
            {b":method": b"HEAD"},
            {b"x-long": b"x" * 300},
            {b"trailer-bin": b"/w=="},
        ]
    ),
)
_body = st.one_of(
    st.sampled_from(
        [
            request(),
            message(b""),
            b"",
            request()[:7],
            message(b"\xff\xff"),
            message(b"", compressed=1),
            message(b"", length=2**32 - 1),
            message(b"\x3a\x00") * 3,
        ]
    ),
    st.binary(max_size=40).map(message),
    st.binary(max_size=40),
)
_whole_call = st.builds(
    lambda headers, body: [Sent(HEADERS_FRAME, END_HEADERS, NEW, headers), Sent(DATA, END_STREAM, -2, body)],
    _call_headers,
    _body,
)
_begun_call = st.builds(
    lambda flags, headers: [Sent(HEADERS_FRAME, flags, NEW, headers)],
    st.sampled_from([END_HEADERS, END_HEADERS, END_HEADERS | END_STREAM]),
    _call_headers,
)
_settings = st.builds(
    lambda several: [Sent(SETTINGS, 0, 0, b"".join(code.to_bytes(2, "big") + value for code, value in several))],
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([1, 3, 6, 77]), _number),
            st.tuples(st.just(4), st.sampled_from([b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\5", b"\0\0\xff\xff"])),
        ),
        max_size=3,
    ),
)
_right = st.one_of(
    *[_whole_call] * 5,
    _begun_call,
    st.builds(lambda flags, stream, body: [Sent(DATA, flags, stream, body)], st.sampled_from([0, 1]), _recent, _body),
    st.builds(
        lambda flags, stream, pad, body: [Sent(DATA, flags | PADDED, stream, bytes([pad]) + body + b"\0" * pad)],
        *(st.sampled_from([0, 1]), _recent, st.integers(0, 9), _body),
    ),
    st.builds(lambda stream: [Sent(HEADERS_FRAME, 5, stream, Block(((b"x-more", b"1"),)))], _recent),
    st.builds(lambda stream, code: [Sent(RESET, 0, stream, code)], _recent, _word),
    st.builds(lambda stream, more: [Sent(WINDOW_UPDATE, 0, stream, more)], st.integers(-4, -2) | st.just(0), _small),
    _settings,
    st.builds(lambda flags, data: [Sent(PING, flags, 0, data + data)], st.sampled_from([0, 1]), _word),
    st.builds(lambda data: [Sent(190, 255, -2, data)], st.binary(max_size=9)),
    st.sampled_from(list(Do)),
)

# ---- what is wrong ----

_flags = st.one_of(
    st.sampled_from([0, END_STREAM, END_HEADERS, END_STREAM | END_HEADERS, PADDED, PRIORITY, 0xFF]), st.integers(0, 255)
)
_streams = st.one_of(
    st.integers(-4, -1), st.sampled_from([0, 1, 2, 99, 2**31 - 1, 2**31 + 1]), st.integers(0, 2**32 - 1)
)
_name = st.one_of(
    st.sampled_from(
        b":method :path :scheme :authority :status :protocol te content-type content-length connection cookie host"
        b" grpc-timeout grpc-encoding trailer-bin User-Agent".split()
    ),
    st.binary(max_size=12),
)
_value = st.one_of(
    st.sampled_from(b"POST CONNECT http trailers application/grpc 1S 0 5 -1".split()), st.binary(max_size=40)
)
_odd_headers = st.builds(
    lambda usual, odd: Block((*usual, *odd)),
    st.sampled_from([_usual, _usual, _usual[1:], _usual[:4], ()]),
    st.lists(st.tuples(_name, _value), min_size=1, max_size=4).map(tuple),
)
_setting = st.tuples(st.integers(0, 9) | st.integers(0, 65_535), _number).map(
    lambda setting: setting[0].to_bytes(2, "big") + setting[1]
)
_wrong = st.one_of(
    st.builds(lambda headers: [Sent(HEADERS_FRAME, END_HEADERS, NEW, headers)], _odd_headers),
    st.builds(lambda headers: [Sent(HEADERS_FRAME, 5, -2, headers)], _odd_headers),
    st.builds(lambda *parts: [Sent(HEADERS_FRAME, *parts)], _flags, _streams, _call_headers),
    st.builds(lambda block: [Sent(HEADERS_FRAME, END_HEADERS, NEW, block)], st.binary(max_size=60)),
    st.builds(
        lambda headers, between: [
            Sent(HEADERS_FRAME, 0, NEW, headers),
            *between,
            Sent(CONTINUATION, END_HEADERS, -2, b""),
        ],
        *(_call_headers, st.one_of(st.just([]), _right.filter(lambda part: not isinstance(part, Do)))),
    ),
    st.builds(lambda *parts: [Sent(CONTINUATION, *parts)], _flags, _streams, st.binary(max_size=40)),
    st.builds(lambda *parts: [Sent(DATA, *parts)], _flags, _streams, _body),
    st.builds(lambda several: [Sent(SETTINGS, 0, 0, b"".join(several))], st.lists(_setting, max_size=4)),
    st.builds(lambda stream, more: [Sent(WINDOW_UPDATE, 0, stream, more)], _streams, _number),
    st.builds(
        lambda last, code, data: [Sent(GOAWAY, 0, 0, last + code + data)], _number, _number, st.binary(max_size=9)
    ),
    st.builds(
        lambda *parts: [Sent(*parts)],
        *(st.integers(0, 11) | st.integers(0, 255), _flags, _streams, st.binary(max_size=40)),
        st.sampled_from([0, 0, 0, 1, -1, 70_000]),
    ),
    st.binary(max_size=30),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Step]:
    """What one connection sends: frames, a few of them wrong, in pieces of any size, and what it does between."""
    greeting = draw(st.sampled_from([PREFACE] * 60 + [b"", PREFACE[:-1], b"GET / HTTP/1.1\r\n\r\n"]))
    scenes: list[list[Sent] | Step] = [
        [Sent(SETTINGS, 0, 0, b"")],
        draw(_begun_call),
        *draw(st.lists(_right, max_size=14)),
    ]
    for scene in draw(st.lists(_wrong, max_size=draw(st.integers(0, 2)))):
        scenes.insert(draw(st.integers(1, len(scenes))), scene)
    parts = [greeting, *_rendered(scenes)]
    if draw(st.integers(0, 9)) == 9:
        _mutate(draw, parts)
    return _cut(parts, draw(st.lists(st.integers(1, 40), max_size=4)), draw(st.sampled_from([1024, 1024, 9, 1])))


_asked = st.sampled_from([request(), request("0000:99:00.0"), message(b"")])
_good = st.one_of(
    *[
        st.builds(
            lambda body: [Sent(HEADERS_FRAME, END_HEADERS, NEW, Block(_GOOD)), Sent(DATA, END_STREAM, -2, body)], _asked
        )
    ]
    * 4,
    st.builds(
        lambda body, pad, cut: [
            Sent(HEADERS_FRAME, END_HEADERS | PADDED, NEW, Block(_GOOD, pad)),
            Sent(DATA, PADDED, -2, bytes([pad]) + body[:cut] + b"\0" * pad),
            Sent(DATA, END_STREAM, -2, body[cut:]),
        ],
        *(_asked, st.integers(0, 9), st.integers(0, 20)),
    ),
    st.builds(
        lambda body: [
            Sent(HEADERS_FRAME, END_HEADERS, NEW, Block(_GOOD)),
            Sent(DATA, 0, -2, body),
            Sent(HEADERS_FRAME, 5, -2, Block(((b"x-more", b"1"),))),
        ],
        _asked,
    ),
    st.builds(lambda: [Sent(HEADERS_FRAME, END_HEADERS, NEW, Block(_GOOD)), Sent(RESET, 0, -2, b"\0\0\0\x08")]),
    st.builds(lambda more: [Sent(WINDOW_UPDATE, 0, 0, more)], _small),
    st.builds(lambda data: [Sent(PING, 0, 0, data + data)], _word),
    st.builds(lambda data: [Sent(190, 255, 0, data)], st.binary(max_size=9)),
)
_greeted = st.sampled_from(
    [b"", *(b"\0\4" + size for size in (b"\0\0\0\0", b"\0\0\0\5", b"\0\0\0\x40", b"\0\1\0\0"))]
).map(lambda windows: [Sent(SETTINGS, 0, 0, windows)])
_acknowledged: Final[list[Sent]] = [Sent(SETTINGS, 1, 0, b"")]


@st.composite
def good_conversations(draw: st.DrawFn) -> list[bytes]:
    """Nothing but what a client may send, in pieces of any size."""
    scenes: list[list[Sent] | Step] = [draw(_greeted), *draw(st.lists(_good, min_size=1, max_size=14)), _acknowledged]
    return _pieces(draw, [PREFACE, *_rendered(scenes)])


def _pieces(draw: st.DrawFn, parts: list[Step]) -> list[bytes]:
    steps = _cut(parts, draw(st.lists(st.integers(1, 40), max_size=4)), draw(st.sampled_from([1024, 1024, 100, 9])))
    return [step for step in steps if isinstance(step, bytes)]


def _rendered(scenes: list[list[Sent] | Step]) -> list[Step]:
    encoder = Encoder()
    last = -1
    parts: list[Step] = []
    for scene in scenes:
        if not isinstance(scene, list):
            parts.append(scene)
            continue
        for frame in scene:
            if frame.stream == NEW:
                last += 2
            stream = frame.stream if frame.stream >= 0 else max(1, last + 2 * min(0, frame.stream + 2))
            parts.append(_bytes_of(frame, stream, encoder))
    return parts


def _bytes_of(frame: Sent, stream: int, encoder: Encoder) -> bytes:
    payload = frame.payload
    if isinstance(payload, Block):
        pad = payload.pad
        payload = encoder.encode(list(payload.headers))
        if pad is not None:
            payload = bytes([pad]) + payload + b"\0" * pad
    length = max(0, len(payload) + frame.lie)
    return length.to_bytes(3, "big") + bytes([frame.kind, frame.flags]) + stream.to_bytes(4, "big") + payload


def _mutate(draw: st.DrawFn, parts: list[Step]) -> None:
    number = draw(st.integers(0, len(parts) - 1))
    part = parts[number]
    if isinstance(part, bytes) and part:
        at = draw(st.integers(0, len(part) - 1))
        parts[number] = part[:at] + draw(st.binary(max_size=3)) + part[at + draw(st.integers(0, 3)) :]


def _cut(parts: list[Step], first: list[int], rest: int) -> list[Step]:
    """Joins neighbouring bytes and cuts them anew: some first lengths, then all of one."""
    lengths = iter(first)
    steps: list[Step] = []
    joined = b""
    for part in [*parts, Do.WAIT]:
        if isinstance(part, bytes):
            joined += part
            continue
        while joined:
            length = next(lengths, rest)
            steps.append(joined[:length])
            joined = joined[length:]
        steps.append(part)
    return steps
