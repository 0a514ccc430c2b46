"""Agents of another make than ours: they say what a test has them say."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from vdpa_agent.serve.pb import device_service_pb2 as pb
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse


@contextmanager
def answering(
    path: Path, devices: Sequence[pb.Device] = (), status: pb.GetStatusResponse | None = None
) -> Iterator[None]:
    """A server that knows these devices; without a status it is one from before there was a device service."""
    known = {device.pci_address: device for device in devices}

    def sockets(request: GetSocketpathRequest, _: grpc.ServicerContext) -> GetSocketpathResponse:
        device = known.get(request.pciAddress)
        return GetSocketpathResponse(socketpath=device.socket_path if device else "")

    def device(request: pb.GetDeviceRequest, context: grpc.ServicerContext) -> pb.GetDeviceResponse:
        if request.pci_address not in known:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such device")
        return pb.GetDeviceResponse(device=known[request.pci_address])

    def watch(_: pb.WatchDevicesRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchDevicesResponse]:
        yield pb.WatchDevicesResponse(initial=True, devices=known.values())
        yield pb.WatchDevicesResponse(removed_pci_addresses=known)
        context.abort(grpc.StatusCode.UNAVAILABLE, devices[0].reason if devices else "the end")

    server = grpc.server(ThreadPoolExecutor(4))
    _serve(server, "vdpadpdk.VdpaDpdk", GetSocketpath=(GetSocketpathRequest, sockets))
    if status is not None:
        _serve(
            server,
            "vdpa_agent.v1.DeviceService",
            GetDevice=(pb.GetDeviceRequest, device),
            ListDevices=(pb.ListDevicesRequest, lambda *_: pb.ListDevicesResponse(devices=devices)),
            WatchDevices=(pb.WatchDevicesRequest, watch),
            GetStatus=(pb.GetStatusRequest, lambda *_: status),
        )
        serving = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        _serve(server, "grpc.health.v1.Health", Check=(HealthCheckRequest, lambda *_: serving))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def _serve(server: grpc.Server, service: str, **methods: tuple[type[Message], Callable[..., Any]]) -> None:
    handlers: dict[str, Any] = {}
    for name, (request, handler) in methods.items():
        kind = grpc.unary_stream_rpc_method_handler if name.startswith("Watch") else grpc.unary_unary_rpc_method_handler
        handlers[name] = kind(handler, request.FromString, lambda answer: answer.SerializeToString())
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
