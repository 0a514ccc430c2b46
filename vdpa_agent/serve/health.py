"""The health service of the gRPC ecosystem, whose watchers end with the agent."""

from collections.abc import AsyncIterator
from typing import Final

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from vdpa_agent.model.pci import shown
from vdpa_agent.rpc.stream import Stream
from vdpa_agent.serve.view import View

_READY: Final = frozenset({"", "vdpadpdk.VdpaDpdk"})
"""The services that serve while the agent is ready; `vdpa_agent.v1.DeviceService` does so as long as it lives."""

_ALL: Final = _READY | {"vdpa_agent.v1.DeviceService"}


class HealthService:
    """Check and Watch, by service."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __mapping__(self) -> dict[str, Handler]:
        """The methods, as generated code would name them: that imports a client."""
        messages = HealthCheckRequest, HealthCheckResponse
        return {
            "/grpc.health.v1.Health/Check": Handler(self.Check, Cardinality.UNARY_UNARY, *messages),
            "/grpc.health.v1.Health/Watch": Handler(self.Watch, Cardinality.UNARY_STREAM, *messages),
        }

    async def Check(  # noqa: N802 - the name on the wire
        self, stream: Stream[HealthCheckRequest, HealthCheckResponse]
    ) -> None:
        """Answers at once; NOT_FOUND for a service that is not here."""
        request = await stream.recv_message()
        if request is None:
            return
        if request.service not in _ALL:
            message = f"there is no service {shown(request.service)} here; there are {', '.join(sorted(_ALL - {''}))}"
            raise GRPCError(Status.NOT_FOUND, message)
        await stream.send_message(self._response(request.service))

    async def Watch(  # noqa: N802 - the name on the wire
        self, stream: Stream[HealthCheckRequest, HealthCheckResponse]
    ) -> None:
        """Sends the status at once and after each change, until the client leaves or the agent stops."""
        request = await stream.recv_message()
        if request is None:
            return
        async for response in self._responses(request.service):
            await stream.send_message(response)
        raise GRPCError(Status.UNAVAILABLE, "the agent stops")

    async def _responses(self, service: str) -> AsyncIterator[HealthCheckResponse]:
        last: HealthCheckResponse | None = None
        async for _ in self._view.revision.changes():
            response = self._response(service)
            if response != last:
                last = response
                yield response
            if self._view.ended:
                return

    def _response(self, service: str) -> HealthCheckResponse:
        if service not in _ALL:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        health = self._view.served.health
        serves = health.ready if service in _READY else health.live and not self._view.ended
        return HealthCheckResponse(status=HealthCheckResponse.SERVING if serves else HealthCheckResponse.NOT_SERVING)
