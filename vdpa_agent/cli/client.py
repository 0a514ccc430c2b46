"""The client commands' calls to a running agent."""

from collections.abc import Iterable
from pathlib import Path

from grpclib.client import Channel
from grpclib.exceptions import GRPCError, StreamTerminatedError

from vdpa_agent.errors import NotReachable
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.serve.pb.vdpadpdk_grpc import VdpaDpdkStub
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest


async def ask_sockets(path: Path, addresses: Iterable[PciAddress], *, timeout_s: float) -> list[tuple[PciAddress, str]]:
    """Asks the agent at `path` for the socket of each address, on one connection.

    Args:
        path: the agent's socket.
        addresses: what to ask for.
        timeout_s: how long each answer may take, in seconds.

    Raises:
        NotReachable: no agent answers there in time.
    """
    async with Channel(path=str(path)) as channel:
        stub = VdpaDpdkStub(channel)
        answers = []
        try:
            for address in addresses:
                reply = await stub.GetSocketpath(GetSocketpathRequest(pciAddress=address), timeout=timeout_s)
                answers.append((address, reply.socketpath))
        except TimeoutError as error:
            message = f"the agent at {path} did not answer within {timeout_s:g} s"
            raise NotReachable(message) from error
        except (OSError, StreamTerminatedError) as error:
            message = f"no agent answers at {path}: {_reason(error)}; is it running? see --address"
            raise NotReachable(message) from error
        except GRPCError as error:
            message = f"the agent at {path} refused: {error.status.name}: {error.message}"
            raise NotReachable(message) from error
        return answers


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
