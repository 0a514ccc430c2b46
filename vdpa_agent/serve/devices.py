"""The API for new clients: every device with all that is known of it, and the agent itself."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, NoReturn

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from vdpa_agent import __version__
from vdpa_agent.errors import AddressError
from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceState, Statistics
from vdpa_agent.model.health import Role
from vdpa_agent.model.pci import PciAddress, parse_pci_address
from vdpa_agent.model.pools import Pool, Pools
from vdpa_agent.model.served import Served
from vdpa_agent.rpc.stream import Framed, Stream
from vdpa_agent.serve.pb import device_service_pb2 as pb
from vdpa_agent.serve.pb.device_service_grpc import DeviceServiceBase
from vdpa_agent.serve.view import View

_DOMAIN: Final = "vdpa-agent"
_DEVICE_STATES: Final = {state: f"DEVICE_STATE_{state.name}" for state in DeviceState}
_DAEMON_STATES: Final = {state: f"DAEMON_STATE_{state.name}" for state in DaemonState}
_ROLES: Final = {role: f"ROLE_{role.name}" for role in Role}

_STATISTICS_S: Final = 1.0
"""How long the daemon may take to tell the statistics of all devices together."""

Devices = dict[PciAddress, pb.Device]
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
        self._made_of: Served | None = None
        self._last = _State(0, {}, {})
        self._one_at_a_time = asyncio.Lock()
        self._counted: dict[PciAddress, Statistics] = {}
        self._counted_s = self._started_s
        self._default_mode = f"VHOST_MODE_{settings.get('vhost-mode', 'unspecified').upper()}"

    async def ListDevices(  # noqa: N802 - the names on the wire
        self, stream: Stream[pb.ListDevicesRequest, pb.ListDevicesResponse]
    ) -> None:
        """Sends all devices."""
        request = await stream.recv_message()
        if request is None:
            return
        state = self._state()
        if not request.include_statistics:
            await stream.send_message(state.listed)
            return
        statistics = await self._all_statistics()
        devices = [_with(device, statistics.get(address, {})) for address, device in state.devices.items()]
        await stream.send_message(pb.ListDevicesResponse(devices=devices))

    async def GetDevice(  # noqa: N802
        self, stream: Stream[pb.GetDeviceRequest, pb.GetDeviceResponse]
    ) -> None:
        """Sends one device with its statistics."""
        request = await stream.recv_message()
        if request is None:
            return
        try:
            address = parse_pci_address(request.pci_address)
        except AddressError as error:
            _refuse(Status.INVALID_ARGUMENT, "BAD_PCI_ADDRESS", str(error))
        device = self._state().devices.get(address)
        if device is None:
            self._refuse_unknown(address)
        device = _with(device, await self._statistics(address))
        await stream.send_message(pb.GetDeviceResponse(device=device))

    async def WatchDevices(  # noqa: N802
        self, stream: Stream[pb.WatchDevicesRequest, pb.WatchDevicesResponse]
    ) -> None:
        """Sends the whole state, then each change; to a reader that is too slow for that, the newest state again."""
        if await stream.recv_message() is None:
            return
        sent: int | None = None
        async for _ in self._view.revision.changes():
            if self._view.ended:
                break
            state = self._state()
            if state.number != sent:
                message = state.change if sent == state.number - 1 else state.whole
                sent = state.number
                await stream.send_message(message)
        _refuse(Status.UNAVAILABLE, "STOPPING", "the agent stops")

    async def GetStatus(  # noqa: N802
        self, stream: Stream[pb.GetStatusRequest, pb.GetStatusResponse]
    ) -> None:
        """Sends what the agent does, and how its daemon fares."""
        if await stream.recv_message() is None:
            return
        facts, health = self._view.served.facts, self._view.served.health
        uptime = Duration()
        uptime.FromMilliseconds(int((asyncio.get_running_loop().time() - self._started_s) * 1000))
        await stream.send_message(
            pb.GetStatusResponse(
                version=__version__,
                uptime=uptime,
                role=_ROLES[facts.role],
                daemon=_daemon(facts.daemon),
                daemons={address: _daemon(daemon) for address, daemon in facts.daemons.items()},
                live=health.live,
                ready=health.ready,
                not_ready_reasons=health.reasons,
                device_list_problem=facts.wanted.problem,
                mapping_problem=facts.mapping.problem,
                degraded_reasons=[check.reason for check in health.degraded],
                waiting_for=health.waiting_for,
                settings=self._settings,
                resource_config_problem=facts.pools.problem,
                **_pools(facts.pools.value, self._default_mode),
                front_ends=self._front_ends(),
            )
        )

    def _front_ends(self) -> pb.FrontEnds | None:
        """The front ends of all devices together; nothing is known of those of another process's daemon."""
        served = self._view.served
        if served.facts.role is not Role.MANAGING:
            return None
        devices = tuple(served.devices.values())
        told = pb.FrontEnds(
            connected=sum(device.front_end.is_connected for device in devices),
            configured=sum(device.front_end.is_configured for device in devices),
            refused=min(sum(count for device in devices for count in device.refusals.values()), 2**64 - 1),
        )
        refused = [device for device in devices if device.last_refusal.reason]
        if refused:
            last = max(refused, key=lambda device: device.last_refusal.seen_s)
            told.last_refused_pci_address, told.last_refusal = last.address, last.last_refusal.reason
            age_s = asyncio.get_running_loop().time() - last.last_refusal.seen_s
            told.last_refusal_age.FromMilliseconds(int(age_s * 1000))
        return told

    def _state(self) -> "_State":
        """What is true of all devices now, made once for everybody."""
        served, last = self._view.served, self._last
        if served is not self._made_of:
            self._made_of = served
            devices = {address: self._device(device) for address, device in served.devices.items()}
            if devices != last.devices or list(devices) != list(last.devices):
                self._last = _State(last.number + 1, devices, last.devices)
        return self._last

    def _device(self, device: Device) -> pb.Device:
        facts = device.facts
        served = self._view.served
        pool = served.pools.get(device.address)
        owner = served.facts.owners.get(device.address)
        return pb.Device(
            pci_address=device.address,
            socket_path=served.sockets.get(device.address, ""),
            state=_DEVICE_STATES[device.state],
            reason=device.reason,
            remark=device.remark,
            vhost_mode=self._mode_of(device, pool) if served.facts.role is Role.MANAGING else None,
            front_end_connected=device.front_end.is_connected,
            front_end_configured=device.front_end.is_configured,
            queue_pairs_in_use=device.front_end.queue_pairs,
            front_ends_refused=device.refusals,
            queue_pairs=facts.queue_pairs,
            features=facts.features,
            protocol_features=facts.protocol_features,
            driver=facts.driver,
            numa_node=facts.numa_node,
            type=facts.kind,
            resource=pool.resource if pool else "",
            owner=pb.Owner(**owner._asdict()) if owner else None,
        )

    def _mode_of(self, device: Device, pool: Pool | None) -> str:
        """Which end opens the socket of a device; as long as the daemon does not know it, which one will."""
        return f"VHOST_MODE_{device.mode.name}" if device.socket else _mode(pool, self._default_mode)

    async def _all_statistics(self) -> dict[PciAddress, Statistics]:
        """The counters of all devices, as many as the daemon tells in time; asked for everybody who waits."""
        clock = asyncio.get_running_loop().time
        asked_s = clock()
        async with self._one_at_a_time:
            if self._counted_s < asked_s:
                self._counted = {}
                with suppress(TimeoutError):
                    async with asyncio.timeout(_STATISTICS_S):
                        for address in self._view.served.sockets:
                            self._counted[address] = await self._statistics(address)
                self._counted_s = clock()
            return self._counted

    def _refuse_unknown(self, address: PciAddress) -> NoReturn:
        if self._view.ended:
            _refuse(Status.UNAVAILABLE, "STOPPING", "the agent stops")
        if self._view.served.awaited is None:
            message = f"no list was read yet, so {address} may be a device of this node or not; try again later"
            _refuse(Status.UNAVAILABLE, "NO_LIST_YET", message)
        _refuse(Status.NOT_FOUND, "NO_SUCH_DEVICE", f"{address} is not a device of this node")


class _State:
    """What is true of all devices, with the messages that say it, each made when somebody needs it first.

    Attributes:
        number: one more than that of the state before.
        devices: every device, without statistics.
    """

    def __init__(self, number: int, devices: Devices, before: Devices) -> None:
        self.number = number
        self.devices = devices
        self._changed = [device for address, device in devices.items() if before.get(address) != device]
        self._removed = [address for address in before if address not in devices]

    @cached_property
    def listed(self) -> Framed:
        """The answer of ListDevices."""
        return Framed.of(pb.ListDevicesResponse(devices=self.devices.values()))

    @cached_property
    def whole(self) -> Framed:
        """What somebody gets to see first who watches."""
        return Framed.of(pb.WatchDevicesResponse(initial=True, devices=self.devices.values()))

    @cached_property
    def change(self) -> Framed:
        """What differs from the state before."""
        return Framed.of(pb.WatchDevicesResponse(devices=self._changed, removed_pci_addresses=self._removed))


def _daemon(daemon: DaemonStatus) -> pb.DaemonStatus:
    return pb.DaemonStatus(
        state=_DAEMON_STATES[daemon.state],
        pid=daemon.pid or 0,
        restarts=daemon.restarts,
        crash_loop=daemon.crash_loop,
        last_exit=daemon.last_exit,
        unhealthy=daemon.unhealthy,
    )


def _pools(pools: Pools | None, default_mode: str) -> dict[str, Any]:
    """The fields of the status that are about pools."""
    if pools is None:
        return {}
    return {
        "pools": [
            pb.Pool(
                resource=pool.resource,
                vhost_mode=_mode(pool, default_mode),
                pci_addresses=devices,
                selectors=[
                    pb.Selector(selector=str(selector), vfs=vfs)
                    for selector, vfs in zip(pool.selectors, taken, strict=True)
                ],
            )
            for pool, devices, taken in pools.members
        ],
        "vfs_outside_pools": [
            pb.VfsOutsidePools(reason=reason, pci_addresses=addresses) for reason, addresses in pools.outside
        ],
        "contested_vfs": [
            pb.ContestedVf(pci_address=address, resource=owner, other_resource=other)
            for address, owner, other in pools.contested
        ],
    }


def _mode(pool: Pool | None, default: str) -> str:
    """Which end opens the sockets of the VFs of a pool."""
    return default if pool is None or pool.vhost_mode is None else f"VHOST_MODE_{pool.vhost_mode.name}"


def _with(device: pb.Device, statistics: Statistics) -> pb.Device:
    """A device with its counters."""
    counted = pb.Device()
    counted.CopyFrom(device)
    for queue, counters in statistics.items():
        known = {name: value for name, value in counters.items() if 0 <= value < 2**64}
        counted.statistics.append(pb.QueueStatistics(queue=queue, counters=known))
    return counted


def _refuse(status: Status, reason: str, message: str) -> NoReturn:
    raise GRPCError(status, message, [ErrorInfo(reason=reason, domain=_DOMAIN)])
