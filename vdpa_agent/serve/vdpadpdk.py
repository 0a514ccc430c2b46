"""The frozen service that the CNI plugins in the field call."""

from typing import Final

import grpclib.server
import structlog

from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.pb.vdpadpdk_grpc import VdpaDpdkBase
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

_LOGGED_CHARACTERS: Final = 64
"""How much of what a peer calls an address is logged."""

log = structlog.get_logger(__name__)


class VdpaDpdk(VdpaDpdkBase):
    """Answers every well-formed request with OK, unknown addresses with an empty path."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def GetSocketpath(  # noqa: N802 - the name on the wire
        self, stream: "grpclib.server.Stream[GetSocketpathRequest, GetSocketpathResponse]"
    ) -> None:
        """Looks the address up and logs what was found, one line a request as its predecessor did."""
        request = await stream.recv_message()
        if request is None:
            return  # the peer ended its stream without a message: grpclib answers that
        path = self._answers.socket_of(request.pciAddress)
        log.info("socket_asked", device=request.pciAddress[:_LOGGED_CHARACTERS], socket=path)
        await stream.send_message(GetSocketpathResponse(socketpath=path))
