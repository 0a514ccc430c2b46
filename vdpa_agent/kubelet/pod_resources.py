"""PodResources: which container has which device, as the kubelet says."""

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog
from grpclib.client import Channel
from grpclib.exceptions import GRPCError, StreamTerminatedError

from vdpa_agent.errors import AddressError
from vdpa_agent.kubelet.pb import pod_resources_pb2 as pb
from vdpa_agent.kubelet.pb.pod_resources_grpc import PodResourcesListerStub
from vdpa_agent.latest import Latest
from vdpa_agent.model.owner import Owner, Owners
from vdpa_agent.model.pci import PciAddress, parse_pci_address
from vdpa_agent.model.text import printable
from vdpa_agent.rpc.repeats import Repeats

_SOCKET: Final = Path("pod-resources", "kubelet.sock")
_ASK_S: Final = 10.0
"""How often the kubelet is asked."""

_SOON_S: Final = 1.0
"""How soon after a device was given: the kubelet knows of it when the pod is admitted."""

_ANSWER_S: Final = 5.0
_NAME_CHARACTERS: Final = 253
"""The longest name of a pod, and more than one of a namespace or container has (RFC 1123, as Kubernetes wants it)."""

log = structlog.get_logger(__name__)


class PodResources:
    """Asks the kubelet now and then."""

    def __init__(self, kubelet_dir: Path, owners: Latest[Owners], given: Latest[int]) -> None:
        """Asks nothing yet.

        Args:
            kubelet_dir: the kubelet's directory, normally /var/lib/kubelet.
            owners: the container that has each device; nothing else writes it.
            given: changes whenever a device was given to a pod.
        """
        self._owners = owners
        self._path = kubelet_dir / _SOCKET
        self._given = given
        self._repeats = Repeats(asyncio.get_running_loop().time, at_once=1, every_s=300.0, of_all=5)

    async def run(self) -> None:
        """Asks until cancelled."""
        while True:
            given = self._given.value
            await self.ask()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK_S):
                    await self._given.wait_for(partial(_differs, given))
                    await asyncio.sleep(_SOON_S)

    async def ask(self) -> None:
        """Asks now; without an answer what was known is still true, as far as anybody knows."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(_ANSWER_S), Channel(path=str(self._path)) as channel:
                answer = await PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest())
        except (TimeoutError, OSError, StreamTerminatedError, GRPCError) as error:
            # grpclib wakes a task by a cancel that stays counted.
            if task and task.cancelling() > cancels:
                task.uncancel()
            if count := self._repeats.due("unknown"):
                reason = str(error).lower() or "no answer in time"
                remedy = "mount the kubelet's pod-resources directory; without it nobody knows which pod has which VF"
                log.warning("pod_resources_unknown", reason=reason, remedy=remedy, count=count)
            return
        self._owners.set(MappingProxyType(_owners(answer)))


def _owners(answer: pb.ListPodResourcesResponse) -> dict[PciAddress, Owner]:
    """The containers that have devices whose id is a PCI address, whatever resource they are of."""
    owners = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            owner = Owner(*(printable(name, _NAME_CHARACTERS) for name in (pod.namespace, pod.name, container.name)))
            for device in (one for devices in container.devices for one in _ours(devices)):
                owners[device] = owner
    return owners


def _ours(devices: pb.ContainerDevices) -> list[PciAddress]:
    found = []
    for text in devices.device_ids:
        with suppress(AddressError):
            found.append(parse_pci_address(text))
    return found


def _differs(before: int, now: int) -> bool:
    return now != before
