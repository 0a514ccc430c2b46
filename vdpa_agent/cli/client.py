"""The client commands' calls to a running agent."""

import asyncio
import errno
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable
from collections.abc import Mapping as ReadOnly
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf.message import Message
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from vdpa_agent.errors import NotReachable
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.serve.pb import device_service_pb2 as pb
from vdpa_agent.serve.pb.device_service_grpc import DeviceServiceStub
from vdpa_agent.serve.pb.vdpadpdk_grpc import VdpaDpdkStub
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest

_ASK_AGAIN_S: Final = 0.1
"""How often an agent that is waited for is asked."""


async def ask_sockets(path: Path, addresses: Iterable[PciAddress], *, timeout_s: float) -> list[tuple[PciAddress, str]]:
    """Asks the agent at `path` for the socket of each address, on one connection.

    Args:
        path: the agent's socket.
        addresses: what to ask for.
        timeout_s: how long each answer may take, in seconds.

    Raises:
        NotReachable: no agent answers there in time.
    """
    async with _connected(path, timeout_s) as channel:
        stub = VdpaDpdkStub(channel)
        answers = []
        for address in addresses:
            reply = await stub.GetSocketpath(GetSocketpathRequest(pciAddress=address), timeout=timeout_s)
            answers.append((address, reply.socketpath))
        return answers


class Known(NamedTuple):
    """What an agent knows of some devices.

    Attributes:
        status: how it fares.
        devices: those that it has on a list, by address.
    """

    status: pb.GetStatusResponse
    devices: ReadOnly[str, pb.Device]


async def ask_known(path: Path, addresses: Iterable[PciAddress], *, timeout_s: float) -> Known | None:
    """Asks for all that is known of devices; None: this agent has no device service.

    Raises:
        NotReachable: no agent answers there in time.
    """
    async with _connected(path, timeout_s) as channel:
        stub = DeviceServiceStub(channel)
        devices = {}
        try:
            for address in addresses:
                device = await _ask_device(stub, address, timeout_s)
                if device is not None:
                    devices[device.pci_address] = device
            return Known(await stub.GetStatus(pb.GetStatusRequest(), timeout=timeout_s), devices)
        except GRPCError as error:
            if error.status is Status.UNIMPLEMENTED:
                return None
            raise


async def _ask_device(stub: DeviceServiceStub, address: PciAddress, timeout_s: float) -> pb.Device | None:
    """A device; None if it is on no list, or no list was read yet."""
    try:
        reply = await stub.GetDevice(pb.GetDeviceRequest(pci_address=address), timeout=timeout_s)
    except GRPCError as error:
        if error.status in {Status.NOT_FOUND, Status.UNAVAILABLE}:
            return None
        raise
    return reply.device


async def ask_devices(path: Path, *, timeout_s: float, statistics: bool = False) -> list[pb.Device]:
    """Asks for all devices, if wanted with their statistics.

    Raises:
        NotReachable: no agent answers there in time.
    """
    async with _connected(path, timeout_s) as channel:
        request = pb.ListDevicesRequest(include_statistics=statistics)
        reply = await DeviceServiceStub(channel).ListDevices(request, timeout=timeout_s)
        return list(reply.devices)


async def ask_status(path: Path, *, timeout_s: float) -> pb.GetStatusResponse:
    """Asks the agent how it fares.

    Raises:
        NotReachable: no agent answers there in time.
    """
    async with _connected(path, timeout_s) as channel:
        return await DeviceServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=timeout_s)


async def ask_health(path: Path, service: str, *, wait_s: float, timeout_s: float) -> str:
    """Asks whether a service serves, in the words of the health protocol; again and again for `wait_s` until it does.

    Raises:
        NotReachable: no agent answers there in time, or it has no such service.
    """
    end = time.monotonic() + wait_s
    while True:
        last = time.monotonic() >= end
        try:
            said = await _ask_health_once(path, service, timeout_s=timeout_s)
        except NotReachable:
            if last:
                raise
        else:
            if last or said == "SERVING":
                return said
        await asyncio.sleep(_ASK_AGAIN_S)


async def _ask_health_once(path: Path, service: str, *, timeout_s: float) -> str:
    async with _connected(path, timeout_s) as channel:
        reply = await HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=timeout_s)
        return HealthCheckResponse.ServingStatus.Name(reply.status)


async def watch_devices(path: Path, show: Callable[[pb.WatchDevicesResponse], None], *, timeout_s: float) -> None:
    """Shows the whole state and each change until the agent stops or cancellation.

    Raises:
        NotReachable: no agent answers, or it stopped.
    """
    async with _connected(path, timeout_s) as channel, DeviceServiceStub(channel).WatchDevices.open() as stream:
        await stream.send_message(pb.WatchDevicesRequest(), end=True)
        async for response in stream:
            show(response)


def as_dict(message: Message) -> dict[str, object]:
    """A message in the JSON mapping of protobuf, with the names of the proto and with every field."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    return dict(MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))


def word(enum: str, value: int) -> str:
    """A value of an enum in one word, such as `ready`; the number of one that a newer agent has and we do not know."""
    kind = getattr(pb, enum)
    if value not in kind.values():
        return str(value)
    return str(kind.Name(value)).removeprefix(str(kind.Name(0)).removesuffix("UNSPECIFIED")).lower()


def front_end_word(device: pb.Device) -> str:
    """How far a device's front end has come; empty without one."""
    if device.front_end_configured:
        return "configured"
    return "connected" if device.front_end_connected else ""


def queue_pairs(device: pb.Device) -> str:
    """How many queue pairs are in use, beside those of the device, such as `2/4`; empty where they are not known."""
    return f"{device.queue_pairs_in_use}/{device.queue_pairs}" if device.queue_pairs else ""


def owner_words(device: pb.Device) -> str:
    """The container that has a device, `namespace/pod/container`; empty where none has, or it is not known."""
    owner = device.owner
    return f"{owner.namespace}/{owner.pod}/{owner.container}" if device.HasField("owner") else ""


def daemon_words(status: pb.GetStatusResponse) -> str:
    """How the daemon fares, with its process; of several, how many of them run."""
    state = word("DaemonState", status.daemon.state)
    if status.daemons:
        run = sum(daemon.state == pb.DAEMON_STATE_RUNNING for daemon in status.daemons.values())
        return f"{state}, {run} of {len(status.daemons)} run, one for each device"
    return f"{state}, process {status.daemon.pid}" if status.daemon.pid else state


@asynccontextmanager
async def _connected(path: Path, timeout_s: float) -> AsyncIterator[Channel]:
    """A channel whose failures are put in words."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    async with Channel(path=str(path)) as channel:
        try:
            yield channel
        except (TimeoutError, OSError, StreamTerminatedError, GRPCError) as error:
            # grpclib wakes a task by a cancel that stays counted: asyncio.timeout() takes its own for another's then.
            if task and task.cancelling() > cancels:
                task.uncancel()
            raise NotReachable(_words(path, error, timeout_s)) from error


def _words(path: Path, error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"the agent at {path} did not answer within {timeout_s:g} s"
    if getattr(error, "errno", None) in {errno.EACCES, errno.EPERM}:
        return (
            f"{path}: permission denied: run as root, or have the agent started with --listen-mode or --listen-group,"
            " and --allow-uid or --allow-gid"
        )
    if not isinstance(error, GRPCError):
        return f"no agent answers at {path}: {_reason(path, error)}"
    refused = f"the agent at {path} refused: {error.status.name}: {error.message}"
    if error.status is Status.PERMISSION_DENIED:
        return f"{refused}; run as root, or have the agent started with --allow-uid or --allow-gid"
    return refused


def _reason(path: Path, error: Exception) -> str:
    """Why nobody answers, and what to do about it."""
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    match getattr(error, "errno", None):
        case errno.ECONNREFUSED:
            # The kernel says so of whatever is no socket too.
            return _not_listening(path)
        case errno.EPROTOTYPE:
            return "that is a socket of another kind; see --address"
        case errno.ENOTDIR:
            return f"{reason}; see --address"
        case _:
            return f"{reason}; is it running? see --address"


def _not_listening(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = stat.S_IFSOCK  # it went just now
    if stat.S_ISDIR(mode):
        return "that is a directory, name the socket in it; see --address"
    if not stat.S_ISSOCK(mode):
        return "that is a file and no socket; see --address"
    return "nobody listens on that socket any more, start the agent again; see its log"
