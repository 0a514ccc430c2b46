"""The frozen service that the CNI plugins in the field call."""

from typing import Final

import grpclib.server
import structlog
from google.protobuf.message import DecodeError

from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.pb.vdpadpdk_grpc import VdpaDpdkBase
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

_LOGGED_CHARACTERS: Final = 64
"""How much of what a peer calls an address is logged."""

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
        self.at_once = {"/vdpadpdk.VdpaDpdk/GetSocketpath": self._at_once}

    async def GetSocketpath(  # noqa: N802 - the name on the wire
        self, stream: "grpclib.server.Stream[GetSocketpathRequest, GetSocketpathResponse]"
    ) -> None:
        """Answers as soon as there is a socket or no hope for one; one log line a request, as its predecessor had."""
        request = await stream.recv_message()
        if request is None:
            return  # the peer ended its stream without a message: grpclib answers that
        hold_s = self._hold_timeout_s
        if stream.deadline is not None:
            hold_s = min(hold_s, stream.deadline.time_remaining() - _MARGIN_S)
        path = await self._answers.socket_of(request.pciAddress, hold_s=hold_s)
        await stream.send_message(_answer(request, path))

    def _at_once(self, data: bytes) -> bytes | None:
        """The answer to a request, both serialized, where no call need wait for it; None elsewhere."""
        try:
            request = GetSocketpathRequest.FromString(data)
        except DecodeError:
            return None
        path = self._answers.at_hand(request.pciAddress)
        return None if path is None else _answer(request, path).SerializeToString()


def _answer(request: GetSocketpathRequest, path: str) -> GetSocketpathResponse:
    log.info("socket_asked", device=request.pciAddress[:_LOGGED_CHARACTERS], socket=path)
    return GetSocketpathResponse(socketpath=path)
