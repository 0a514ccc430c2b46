"""Plugins: all that speaks with the kubelet, run together."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from vdpa_agent.kubelet.device_info import DeviceInfo
from vdpa_agent.kubelet.device_plugin import Devices
from vdpa_agent.kubelet.directories import Directories
from vdpa_agent.kubelet.offers import Offers
from vdpa_agent.kubelet.pod_resources import PodResources
from vdpa_agent.kubelet.registration import Registration
from vdpa_agent.kubelet.unconnected import Unconnected
from vdpa_agent.latest import Latest
from vdpa_agent.model.owner import Owners
from vdpa_agent.model.served import Served


class Plugins:
    """A device plugin for each pool, and who has which device."""

    def __init__(
        self,
        kubelet_dir: Path,
        directories: Directories,
        *,
        device_info_dir: Path | None,
        owners: Latest[Owners],
        lost: Latest[str],
        served: Callable[[], Served],
        revision: Latest[int],
        hold_timeout_s: float,
    ) -> None:
        """Speaks with nobody yet.

        Args:
            kubelet_dir: the kubelet's directory, normally /var/lib/kubelet.
            directories: those of the devices.
            device_info_dir: where their files for Multus are; None: nowhere.
            owners: where it is written which container has each device.
            lost: where it is written why only a new container finds the kubelet.
            served: what is served now.
            revision: changes with it.
            hold_timeout_s: how long a pod waits for its device, in seconds.
        """
        self._offers = Offers(served, revision)
        self._info = DeviceInfo(device_info_dir, served, revision) if device_info_dir else None
        devices = Devices(
            self._offers, directories, self._info, served=served, revision=revision, hold_timeout_s=hold_timeout_s
        )
        self._registration = Registration(kubelet_dir, devices, lost)
        self._pod_resources = PodResources(kubelet_dir, owners, devices.given)
        self._unconnected = Unconnected(served, revision)

    async def run(self) -> None:
        """Speaks with the kubelet, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._offers.run(), name="offers")
            tasks.create_task(self._registration.run(), name="registration")
            tasks.create_task(self._pod_resources.run(), name="pod resources")
            tasks.create_task(self._unconnected.run(), name="unconnected")
            if self._info is not None:
                tasks.create_task(self._info.run(), name="device info")
