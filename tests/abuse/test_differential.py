"""The same bytes to the agent and to a server by h2: a client sees the same.

Of what is right alone: of what is wrong, each ignores what the RFC lets it ignore, and no two agree on all of it. What
is wrong is for h2spec, which knows what must be found, and for test_fuzz.py.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from hpack import Decoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)
from hypothesis import HealthCheck, given, settings

from tests.abuse.frames import good_conversations
from tests.abuse.reference import Reference
from tests.served import Served, heard, receive

EXAMPLES: Final = settings().max_examples
COMPARED: Final = settings(deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Seen:
    """What a client sees of a connection.

    Attributes:
        streams: on each stream: the headers, the data, whether it ended or was reset.
        pings: what the answers to its PINGs carry.
        acknowledged: how many of its SETTINGS were.
        goaway: the error code of a GOAWAY.
    """

    streams: dict[int, tuple[list[tuple[str, str]], bytes, str]] = field(default_factory=dict)
    pings: list[bytes] = field(default_factory=list)
    acknowledged: int = 0
    goaway: int | None = None


def seen_in(data: bytes) -> Seen:
    """What is in the bytes of a server."""
    seen = Seen()
    decoder = Decoder()
    decoder.max_allowed_table_size = 2**32 - 1
    rest = memoryview(data)
    while len(rest) >= 9:
        frame, length = Frame.parse_frame_header(rest[:9])
        if len(rest) < 9 + length:
            break
        frame.parse_body(rest[9 : 9 + length])
        rest = rest[9 + length :]
        if isinstance(frame, HeadersFrame | DataFrame | RstStreamFrame):
            headers, body, end = seen.streams.get(frame.stream_id, ([], b"", ""))
            if isinstance(frame, HeadersFrame):
                headers = [*headers, *((str(name), str(value)) for name, value in decoder.decode(frame.data))]
            elif isinstance(frame, DataFrame):
                body += frame.data
            if "END_STREAM" in frame.flags or isinstance(frame, RstStreamFrame):
                end = end or ("reset" if isinstance(frame, RstStreamFrame) else "ended")
            seen.streams[frame.stream_id] = headers, body, end
        elif isinstance(frame, PingFrame):
            seen.pings.append(frame.opaque_data)
        elif isinstance(frame, SettingsFrame):
            seen.acknowledged += "ACK" in frame.flags
        elif isinstance(frame, GoAwayFrame):
            seen.goaway = frame.error_code
    return seen


async def ask_both(served: Served, pieces: list[bytes]) -> tuple[Seen, Seen, Reference]:
    """What the agent shows, and what h2 does."""
    served.peers.turned_away.clear()
    served.gone.clear()
    reference = Reference()
    connection, theirs, _ = served.connect()
    came = b""
    for piece in pieces:
        if not served.gone:
            receive(connection, theirs, piece)
        if connection.running:
            for _ in range(6):  # as long as a call takes that waits for nothing
                await asyncio.sleep(0)
        came += heard(theirs)
        reference.receive(piece)
    served.close()
    assert served.peers.defects == []
    return seen_in(came), seen_in(reference.out), reference


@settings(COMPARED, max_examples=10 * EXAMPLES)
@given(pieces=good_conversations())
def test_what_is_right_has_the_same_answers(runner: asyncio.Runner, served: Served, pieces: list[bytes]) -> None:
    mine, other, reference = runner.run(ask_both(served, pieces))
    assert reference.objects is None
    assert mine == other
