"""The frozen service that the CNI plugins in the field call."""

import asyncio
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from vdpa_agent.rpc.repeats import Repeats
from vdpa_agent.rpc.stream import Stream
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.pb.vdpadpdk_grpc import VdpaDpdkBase
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

_LOGGED_CHARACTERS: Final = 64
"""How much of what a peer calls an address is logged."""

_LINES_AT_ONCE: Final = 200
_LINE_EVERY_S: Final = 0.05
"""How many requests have a line of their own: more than a node's pods make. Of a flood, a line stands for several."""

_MARGIN_S: Final = 0.5
"""How long before a client's deadline a held call is answered: a client must never see DEADLINE_EXCEEDED."""

log = structlog.get_logger(__name__)


class VdpaDpdk(VdpaDpdkBase):
    """Answers every well-formed request with OK, unknown addresses with an empty path.

    A device that is wanted and not ready is waited for: an empty answer lets a pod start without its device.
    """

    def __init__(self, answers: Answers, hold_timeout_s: float) -> None:
        self._answers = answers
        self._hold_timeout_s = hold_timeout_s
        clock = asyncio.get_running_loop().time
        self._repeats = Repeats(clock, at_once=_LINES_AT_ONCE, every_s=_LINE_EVERY_S, of_all=_LINES_AT_ONCE)
        self.at_once = {"/vdpadpdk.VdpaDpdk/GetSocketpath": self._at_once}

    async def GetSocketpath(  # noqa: N802 - the name on the wire
        self, stream: Stream[GetSocketpathRequest, GetSocketpathResponse]
    ) -> None:
        """Answers as soon as there is a socket or no hope for one; one log line a request, but in a flood."""
        request = await stream.recv_message()
        if request is None:
            return
        hold_s = self._hold_timeout_s
        if stream.deadline is not None:
            hold_s = min(hold_s, stream.deadline.time_remaining() - _MARGIN_S)
        path = await self._answers.socket_of(request.pciAddress, hold_s=hold_s)
        await stream.send_message(self._answer(request, path))

    def _at_once(self, data: bytes) -> bytes | None:
        """The answer to a request, both serialized, where no call need wait for it; None elsewhere."""
        try:
            request = GetSocketpathRequest.FromString(data)
        except DecodeError:
            return None
        path = self._answers.at_hand(request.pciAddress)
        return None if path is None else self._answer(request, path).SerializeToString()

    def _answer(self, request: GetSocketpathRequest, path: str) -> GetSocketpathResponse:
        if count := self._repeats.due("socket_asked"):
            device = request.pciAddress[:_LOGGED_CHARACTERS]
            log.info("socket_asked", device=device, socket=path, count=count)
        return GetSocketpathResponse(socketpath=path)
