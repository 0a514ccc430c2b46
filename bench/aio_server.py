"""Answers GetSocketpath from a mapping file with grpcio's asyncio server: read once, a log line for each request."""

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import grpc

from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

log = logging.getLogger("aio_server")


async def serve(listen: str, sockets: dict[str, str]) -> None:
    """Answers until SIGTERM."""

    async def get_socketpath(request: GetSocketpathRequest, _context: Any) -> GetSocketpathResponse:
        socket = sockets.get(request.pciAddress, "")
        log.info("device %s socket %s", request.pciAddress, socket)
        return GetSocketpathResponse(socketpath=socket)

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        get_socketpath,
        request_deserializer=GetSocketpathRequest.FromString,
        response_serializer=GetSocketpathResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("vdpadpdk.VdpaDpdk", {"GetSocketpath": method}),)
    )
    server.add_insecure_port(f"unix:{listen}")
    await server.start()
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    await end.wait()
    await server.stop(0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    entries = json.loads(Path(sys.argv[2]).read_bytes())
    asyncio.run(serve(sys.argv[1], {entry["pciAddress"]: entry["socketpath"] for entry in entries}))
