"""A server by h2 that answers GetSocketpath alone, to be compared with: without limits, and nothing of the agent's."""

from contextlib import suppress
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

from tests.abuse.wire import KNOWN_SOCKET, message, request

BEGIN = [(b":status", b"200"), (b"content-type", b"application/grpc+proto")]
ANSWER = message(b"\x0a" + bytes([len(KNOWN_SOCKET)]) + KNOWN_SOCKET)


@dataclass
class _Request:
    """What came on a stream."""

    data: bytes = b""
    answer: bytes | None = None
    begun: bool = False


@dataclass
class Reference:
    """One connection.

    Attributes:
        out: what it has sent.
        objects: what it found wrong with its peer; None: nothing.
    """

    out: bytes = b""
    objects: ProtocolError | None = None
    _requests: dict[int, _Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False)
        self._http = H2Connection(config)
        self._http.initiate_connection()

    def receive(self, data: bytes) -> None:
        """Takes in bytes, until it objects."""
        if self.objects is not None:
            return
        try:
            for event in self._http.receive_data(data):
                self._take(event)
            self._send()
        except ProtocolError as error:
            self.objects = error
        self.out += self._http.data_to_send()

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._requests[event.stream_id] = _Request()
        elif isinstance(event, DataReceived):
            self._requests[event.stream_id].data += event.data
            with suppress(ProtocolError):  # what came later has ended the stream
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            asked = self._requests[event.stream_id]
            asked.answer = ANSWER if asked.data == request() else message(b"")
        elif isinstance(event, StreamReset):
            self._requests.pop(event.stream_id, None)

    def _send(self) -> None:
        for stream, asked in list(self._requests.items()):
            if asked.answer is not None:
                with suppress(ProtocolError):
                    self._answer(stream, asked, asked.answer)

    def _answer(self, stream: int, asked: _Request, answer: bytes) -> None:
        """Sends as much as the peer's windows have room for."""
        if not asked.begun:
            asked.begun = True
            self._http.send_headers(stream, BEGIN)
        while answer:
            window = self._http.local_flow_control_window(stream)
            size = min(window, len(answer), self._http.max_outbound_frame_size)
            if size <= 0:
                return
            self._http.send_data(stream, answer[:size])
            asked.answer = answer = answer[size:]
        del self._requests[stream]
        self._http.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)
