"""The device plugin of one pool: which devices there are, which are best together, and what a container gets."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from vdpa_agent.kubelet.device_info import DeviceInfo
from vdpa_agent.kubelet.directories import Directories
from vdpa_agent.kubelet.offers import Offers
from vdpa_agent.kubelet.pb import device_plugin_pb2 as pb
from vdpa_agent.kubelet.pb.device_plugin_grpc import DevicePluginBase
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Device, VhostMode
from vdpa_agent.model.health import not_served
from vdpa_agent.model.offer import MOUNT_ROOT, Offered, environment, preferred
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.pools import Pool, Vfs
from vdpa_agent.model.served import Served
from vdpa_agent.rpc.stream import Stream

OPTIONS: Final = pb.DevicePluginOptions(get_preferred_allocation_available=True)

_MARGIN_S: Final = 0.5
"""How long before a deadline of the kubelet's it gets its answer."""

log = structlog.get_logger(__name__)


class Devices:
    """What all plugins share: what is served, and the devices' directories.

    Attributes:
        given: changes whenever a device was given to a pod.
    """

    def __init__(
        self,
        offers: Offers,
        directories: Directories,
        info: DeviceInfo | None,
        *,
        served: Callable[[], Served],
        revision: Latest[int],
        hold_timeout_s: float,
    ) -> None:
        """Gives nothing yet.

        Args:
            offers: which devices there are.
            directories: those of the devices.
            info: their files for Multus; None: there are none.
            served: what is served now.
            revision: changes with it.
            hold_timeout_s: how long a pod waits for its device, in seconds.
        """
        self.offers = offers
        self.hold_timeout_s = hold_timeout_s
        self.given = Latest(0)
        self._directories = directories
        self._info = info
        self._served = served
        self._revision = revision

    @property
    def vfs(self) -> Vfs:
        """What is known of the VFs of the node."""
        pools = self._served().facts.pools.value
        return pools.vfs if pools else {}

    async def give(self, addresses: Sequence[PciAddress], hold_s: float) -> dict[PciAddress, VhostMode]:
        """Waits until devices can be given to a container, and prepares their directories.

        Returns:
            The vhost mode of each.

        Raises:
            GRPCError: one of them cannot be given; the message says why.
        """
        try:
            async with asyncio.timeout(hold_s):
                await self._revision.wait_for(lambda _: all(self._is_free(address) for address in addresses))
        except TimeoutError:
            reasons = [self._why_not(address) for address in addresses if not self._is_free(address)]
            if reasons:  # else it came in the last moment
                _refuse(Status.UNAVAILABLE, "; ".join(reasons))
        await self._directories.sync()
        devices = self._served().devices
        modes = {}
        for address in addresses:
            device = devices.get(address)
            if device is None:
                _refuse(Status.UNAVAILABLE, self._why_not(address))
            modes[address] = device.mode
            problem = self._directories.problem(address)
            if not problem and device.mode is VhostMode.CLIENT:
                problem = await self._directories.renew(address)
            if problem:
                _refuse(Status.UNAVAILABLE, f"{address} has no directory: {problem}")
        if self._info is not None:
            await self._info.sync()
        self.given.set(self.given.value + 1)
        return modes

    def directory(self, address: PciAddress) -> str:
        """The directory of a device, on the node."""
        return str(self._directories.root / address)

    def _is_free(self, address: PciAddress) -> bool:
        """Whether a device is served, and no front end of another pod uses it."""
        served = self._served()
        return address in served.sockets and not served.devices[address].front_end.is_connected

    def _why_not(self, address: PciAddress) -> str:
        device: Device | None = self._served().devices.get(address)
        if device is None:
            return f"{address} is not wanted any more"
        if device.front_end.is_connected:
            return f"a front end is still connected to {address}"
        return not_served(address, device.state, device.reason)


class DevicePlugin(DevicePluginBase):
    """Speaks with the kubelet about one resource.

    Attributes:
        watched: how many streams of the device list are open.
    """

    def __init__(self, resource: str, devices: Devices) -> None:
        """Says nothing yet.

        Args:
            resource: the resource.
            devices: its devices, and those of others.
        """
        self.watched = Latest(0)
        self._resource = resource
        self._devices = devices

    async def GetDevicePluginOptions(self, stream: Stream[pb.Empty, pb.DevicePluginOptions]) -> None:  # noqa: N802 - the names on the wire
        """Says what the kubelet may call."""
        if await stream.recv_message() is not None:
            await stream.send_message(OPTIONS)

    async def ListAndWatch(self, stream: Stream[pb.Empty, pb.ListAndWatchResponse]) -> None:  # noqa: N802
        """Sends all devices, and again after each change, until the kubelet leaves."""
        if await stream.recv_message() is None:
            return
        sent: tuple[Offered, ...] | None = None
        self.watched.set(self.watched.value + 1)
        try:
            async for offered in self._devices.offers.offered.changes():
                if self._devices.offers.ended:
                    return
                row = offered.get(self._resource, ())
                if row != sent:
                    sent = row
                    await stream.send_message(pb.ListAndWatchResponse(devices=map(_device, row)))
        finally:
            self.watched.set(self.watched.value - 1)

    async def GetPreferredAllocation(  # noqa: N802
        self, stream: Stream[pb.PreferredAllocationRequest, pb.PreferredAllocationResponse]
    ) -> None:
        """Says which of the available devices are best given together."""
        request = await stream.recv_message()
        if request is None:
            return
        vfs = self._devices.vfs
        answer = pb.PreferredAllocationResponse()
        for one in request.container_requests:
            available = [PciAddress(address) for address in one.available_deviceIDs]
            must = [PciAddress(address) for address in one.must_include_deviceIDs]
            chosen = preferred(available, must, min(one.allocation_size, len(available) + len(must)), vfs)
            answer.container_responses.add(deviceIDs=chosen)
        await stream.send_message(answer)

    async def Allocate(self, stream: Stream[pb.AllocateRequest, pb.AllocateResponse]) -> None:  # noqa: N802
        """Waits until the devices are ready, and says what the container gets: mounts and environment."""
        request = await stream.recv_message()
        if request is None:
            return
        wanted = [[PciAddress(address) for address in one.devices_ids] for one in request.container_requests]
        flat = [address for row in wanted for address in row]
        pool = self._check(flat)
        hold_s = self._devices.hold_timeout_s
        if stream.deadline is not None:
            hold_s = min(hold_s, stream.deadline.time_remaining() - _MARGIN_S)
        try:
            modes = await self._devices.give(flat, hold_s)
        except GRPCError as error:
            log.warning("device_not_given", resource=self._resource, devices=flat, reason=error.message)
            raise
        answer = pb.AllocateResponse()
        for row in wanted:
            of_row = {address: modes[address] for address in row}
            container = answer.container_responses.add(envs=environment(pool, of_row) if row else {})
            for address in row:
                container.mounts.add(
                    container_path=f"{MOUNT_ROOT}/{address}",
                    host_path=self._devices.directory(address),
                    read_only=modes[address] is VhostMode.SERVER,
                )
            if row:
                container.annotations[f"vdpa.io/{self._resource.replace('/', '_')}"] = ",".join(row)
        log.info("devices_given", resource=self._resource, devices=flat)
        await stream.send_message(answer)

    async def PreStartContainer(  # noqa: N802
        self, stream: Stream[pb.PreStartContainerRequest, pb.PreStartContainerResponse]
    ) -> None:
        """Is never called: the options say so."""
        if await stream.recv_message() is not None:
            await stream.send_message(pb.PreStartContainerResponse())

    def _check(self, addresses: Sequence[PciAddress]) -> Pool:
        """The pool of these devices.

        Raises:
            GRPCError: one of them is not this resource's, or is asked for twice.
        """
        pool = self._devices.offers.pool_of(self._resource)
        known = {offered.address for offered in self._devices.offers.offered.value.get(self._resource, ())}
        for address in addresses:
            if pool is None or address not in known:
                _refuse(Status.NOT_FOUND, f"{address[:64]} is not a device of {self._resource}")
        if len(frozenset(addresses)) < len(addresses) or pool is None:
            _refuse(Status.INVALID_ARGUMENT, "a device is asked for twice")
        return pool


def _device(offered: Offered) -> pb.Device:
    device = pb.Device(ID=offered.address, health="Healthy" if offered.healthy else "Unhealthy")
    if offered.numa_node is not None:
        device.topology.nodes.add(ID=offered.numa_node)
    return device


def _refuse(status: Status, message: str) -> NoReturn:
    raise GRPCError(status, message)
