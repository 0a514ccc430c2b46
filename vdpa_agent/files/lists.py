"""The last good contents of the device list and of the mapping, as two Latest values."""

import asyncio
from collections.abc import Sized
from contextlib import aclosing, suppress
from functools import partial
from operator import ne
from typing import Final, TypeVar

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files.follow import follow
from vdpa_agent.files.formats import decode_device_list, decode_mapping_file
from vdpa_agent.files.kept_list import kept_device_list
from vdpa_agent.files.last_good import Caution, LastGood
from vdpa_agent.files.reader import Reader, content_of
from vdpa_agent.files.requests import Requests, judge_aside
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.loaded import Loaded, Readings
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList

T = TypeVar("T", bound=Sized)

_KEEP_S: Final = 10.0
"""How often the kept list is looked at without any event, in seconds."""

log = structlog.get_logger(__name__)


class Lists:
    """Follows the two files and publishes what they say; the only writer of `devices` and `mapping`."""

    def __init__(
        self, config: FilesConfig, *, takes_requests: bool, shrink_settle_s: float, steps: DestructiveSteps
    ) -> None:
        """Reads nothing yet.

        Args:
            config: the paths.
            takes_requests: whether there is a daemon to manage, so that the device list counts, and one that is found
                in place of the mapping is taken as it.
            shrink_settle_s: how long a device list that lost more than half of its devices must stay the same before
                it counts, in seconds.
            steps: where that is counted.
        """
        self.devices: Latest[Loaded[DeviceList]] = Latest(Loaded())
        self.mapping: Latest[Loaded[Mapping]] = Latest(Loaded())
        self._config = config
        self._takes_requests = takes_requests
        self._requests = Requests(config)
        self._kept = kept_device_list(config)
        self._device_list = LastGood(
            config.pci_list,
            self.devices,
            self._decode_devices,
            caution=Caution(shrink_settle_s, _lost, _joined, steps),
            keeps_when_absent=True,
        )
        self._mapping_file = LastGood(config.socket_list, self.mapping, decode_mapping_file)
        self._device_reader = Reader(config.pci_list, self._device_list, content_of)
        self._mapping_reader = Reader(
            config.socket_list, self._mapping_file, self._requests.take if takes_requests else content_of
        )

    @property
    def readings(self) -> dict[str, Readings]:
        """How the contents of the two files were judged."""
        return {"device_list": self._device_list.readings, "mapping": self._mapping_file.readings}

    async def first(self) -> None:
        """Looks at both files, each for at most some seconds even if its file system does not answer."""
        if self._takes_requests:
            # A list that a killed agent left there is the newest. What fails is tried, and logged, before each start.
            with suppress(FileRefused):
                aside = partial(judge_aside, self._config, takes_requests=True)
                await self._mapping_reader.off_loop.do(aside, self._config.socket_list)
        # What is found in the mapping's place may become the device list.
        await self._mapping_reader.first()
        if self._takes_requests:
            await self._device_reader.first()
            await self._fall_back()

    async def run(self) -> None:
        """Follows the files until cancelled."""
        readers: list[Reader[Mapping] | Reader[DeviceList]] = [self._mapping_reader]
        async with asyncio.TaskGroup() as tasks:
            if self._takes_requests:
                readers.append(self._device_reader)
                tasks.create_task(self._keep(), name="kept list")
            for reader in readers:
                tasks.create_task(reader.run(), name=reader.name)
            async with aclosing(follow((self._config.pci_list, self._config.socket_list))) as changes:
                async for _ in changes:
                    for reader in readers:
                        reader.changed.set()

    async def _keep(self) -> None:
        """Has the kept list on disk be the last good device list."""
        while True:
            await self._fall_back()
            loaded = self.devices.value
            if (good := self._device_list.good) is not None:
                await self._kept.keep(good)
            with suppress(TimeoutError):
                async with asyncio.timeout(_KEEP_S):
                    await self.devices.wait_for(partial(ne, loaded))

    async def _fall_back(self) -> None:
        """Has the list of an earlier agent count if the present one is refused from the start."""
        if self._device_list.lacks_a_good_one and (kept := await self._kept.read()) is not None:
            self._device_list.fall_back(kept)

    def _decode_devices(self, content: bytes) -> DeviceList:
        addresses, duplicates = decode_device_list(content)
        if duplicates:
            log.info("duplicates_merged", file=str(self._config.pci_list), duplicates=duplicates)
        return addresses


def _lost(old: DeviceList, new: DeviceList) -> int:
    return len(set(old) - set(new))


def _joined(old: DeviceList, new: DeviceList) -> DeviceList:
    return tuple(dict.fromkeys((*old, *new)))
