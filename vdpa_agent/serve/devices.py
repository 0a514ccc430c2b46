"""The API for new clients: every device with all that is known of it, and the agent itself."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn

import grpclib.server
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from vdpa_agent import __version__
from vdpa_agent.errors import AddressError
from vdpa_agent.model.daemon import DaemonState, Device, DeviceState, Statistics
from vdpa_agent.model.health import Role
from vdpa_agent.model.pci import PciAddress, parse_pci_address
from vdpa_agent.serve.pb import device_service_pb2 as pb
from vdpa_agent.serve.pb.device_service_grpc import DeviceServiceBase
from vdpa_agent.serve.view import View

_DOMAIN: Final = "vdpa-agent"
_DEVICE_STATES: Final = {state: f"DEVICE_STATE_{state.name}" for state in DeviceState}
_DAEMON_STATES: Final = {state: f"DAEMON_STATE_{state.name}" for state in DaemonState}
_ROLES: Final = {role: f"ROLE_{role.name}" for role in Role}

Ask = Callable[[PciAddress], Awaitable[Statistics]]


class DeviceService(DeviceServiceBase):
    """Answers from the view; only statistics are asked of the daemon."""

    def __init__(self, view: View, statistics: Ask, settings: Mapping[str, str]) -> None:
        """Answers nothing yet.

        Args:
            view: what there is to tell.
            statistics: asks the daemon for the counters of a device.
            settings: the settings in force, by the name of their option.
        """
        self._view = view
        self._statistics = statistics
        self._settings = settings
        self._started_s = asyncio.get_running_loop().time()
        self._vhost_mode = f"VHOST_MODE_{settings.get('vhost-mode', 'unspecified').upper()}"

    async def ListDevices(  # noqa: N802 - the names on the wire
        self, stream: "grpclib.server.Stream[pb.ListDevicesRequest, pb.ListDevicesResponse]"
    ) -> None:
        """Sends all devices."""
        request = await stream.recv_message()
        if request is None:
            return
        devices = list(self._devices().values())
        if request.include_statistics:
            for device in devices:
                await self._add_statistics(device)
        await stream.send_message(pb.ListDevicesResponse(devices=devices))

    async def GetDevice(  # noqa: N802
        self, stream: "grpclib.server.Stream[pb.GetDeviceRequest, pb.GetDeviceResponse]"
    ) -> None:
        """Sends one device with its statistics."""
        request = await stream.recv_message()
        if request is None:
            return
        try:
            address = parse_pci_address(request.pci_address)
        except AddressError as error:
            _refuse(Status.INVALID_ARGUMENT, "BAD_PCI_ADDRESS", str(error))
        device = self._devices().get(address)
        if device is None:
            self._refuse_unknown(address)
        await self._add_statistics(device)
        await stream.send_message(pb.GetDeviceResponse(device=device))

    async def WatchDevices(  # noqa: N802
        self, stream: "grpclib.server.Stream[pb.WatchDevicesRequest, pb.WatchDevicesResponse]"
    ) -> None:
        """Sends the whole state, then what is new or changed since the response before."""
        if await stream.recv_message() is None:
            return
        sent: dict[PciAddress, pb.Device] | None = None
        async for _ in self._view.revision.changes():
            if self._view.ended:
                break
            devices = self._devices()
            before = sent or {}
            changed = [device for address, device in devices.items() if before.get(address) != device]
            removed = [address for address in before if address not in devices]
            if sent is None or changed or removed:
                response = pb.WatchDevicesResponse(initial=sent is None, devices=changed, removed_pci_addresses=removed)
                sent = devices
                await stream.send_message(response)
        _refuse(Status.UNAVAILABLE, "STOPPING", "the agent stops")

    async def GetStatus(  # noqa: N802
        self, stream: "grpclib.server.Stream[pb.GetStatusRequest, pb.GetStatusResponse]"
    ) -> None:
        """Sends what the agent does, and how its daemon fares."""
        if await stream.recv_message() is None:
            return
        facts, health = self._view.served.facts, self._view.served.health
        daemon = facts.daemon
        uptime = Duration()
        uptime.FromMilliseconds(int((asyncio.get_running_loop().time() - self._started_s) * 1000))
        await stream.send_message(
            pb.GetStatusResponse(
                version=__version__,
                uptime=uptime,
                role=_ROLES[facts.role],
                daemon=pb.DaemonStatus(
                    state=_DAEMON_STATES[daemon.state],
                    pid=daemon.pid or 0,
                    restarts=daemon.restarts,
                    crash_loop=daemon.crash_loop,
                    last_exit=daemon.last_exit,
                    unhealthy=daemon.unhealthy,
                ),
                live=health.live,
                ready=health.ready,
                not_ready_reasons=health.reasons,
                device_list_problem=facts.wanted.problem,
                mapping_problem=facts.mapping.problem,
                degraded_reasons=[check.reason for check in health.degraded],
                waiting_for=health.waiting_for,
                settings=self._settings,
            )
        )

    def _devices(self) -> dict[PciAddress, pb.Device]:
        return {address: self._device(device) for address, device in self._view.served.devices.items()}

    def _device(self, device: Device) -> pb.Device:
        facts = device.facts
        served = self._view.served
        return pb.Device(
            pci_address=device.address,
            socket_path=served.sockets.get(device.address, ""),
            state=_DEVICE_STATES[device.state],
            reason=device.reason,
            vhost_mode=self._vhost_mode if served.facts.role is Role.MANAGING else pb.VHOST_MODE_UNSPECIFIED,
            front_end_connected=device.state is DeviceState.CONNECTED,
            queue_pairs=facts.queue_pairs,
            features=facts.features,
            protocol_features=facts.protocol_features,
            driver=facts.driver,
            numa_node=facts.numa_node,
            type=facts.kind,
        )

    async def _add_statistics(self, device: pb.Device) -> None:
        for queue, counters in (await self._statistics(PciAddress(device.pci_address))).items():
            known = {name: value for name, value in counters.items() if 0 <= value < 2**64}
            device.statistics.append(pb.QueueStatistics(queue=queue, counters=known))

    def _refuse_unknown(self, address: PciAddress) -> NoReturn:
        if self._view.ended:
            _refuse(Status.UNAVAILABLE, "STOPPING", "the agent stops")
        if self._view.served.awaited is None:
            message = f"no list was read yet, so {address} may be a device of this node or not; try again later"
            _refuse(Status.UNAVAILABLE, "NO_LIST_YET", message)
        _refuse(Status.NOT_FOUND, "NO_SUCH_DEVICE", f"{address} is not a device of this node")


def _refuse(status: Status, reason: str, message: str) -> NoReturn:
    raise GRPCError(status, message, [ErrorInfo(reason=reason, domain=_DOMAIN)])
