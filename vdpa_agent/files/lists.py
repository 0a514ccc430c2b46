"""The last good contents of the device list and of the mapping, as two Latest values."""

import asyncio
from collections.abc import Callable, Sized
from contextlib import aclosing, suppress
from functools import partial
from operator import ne
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Content, Found, Unreadable
from vdpa_agent.files.follow import follow
from vdpa_agent.files.formats import decode_device_list, decode_mapping_file
from vdpa_agent.files.kept_list import KeptList
from vdpa_agent.files.last_good import Caution, LastGood
from vdpa_agent.files.off_loop import OffLoop
from vdpa_agent.files.requests import Requests, judge_aside
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.loaded import Loaded, Readings
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList

T = TypeVar("T", bound=Sized)

_FIRST_WAIT_S: Final = 0.2
"""The longest wait of the first look: for what is refused to stay so."""

_FIRST_LOOKS: Final = 5
"""The most looks of the first: a file may be written all the time."""

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
        self._kept = KeptList(config)
        self._device_list = LastGood(
            config.pci_list,
            self.devices,
            self._decode_devices,
            caution=Caution(shrink_settle_s, _lost, _joined, steps),
            keeps_when_absent=True,
        )
        self._mapping_file = LastGood(config.socket_list, self.mapping, decode_mapping_file)
        self._device_reader = _Reader(config.pci_list, self._device_list, _content)
        self._mapping_reader = _Reader(
            config.socket_list, self._mapping_file, self._requests.take if takes_requests else _content
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
        readers: list[_Reader[Mapping] | _Reader[DeviceList]] = [self._mapping_reader]
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


class _Reader(Generic[T]):
    """Shows one file to its LastGood, off the event loop, when it may have changed.

    Attributes:
        name: the file's.
        changed: set when the file may have changed.
        off_loop: where its file is worked on.
    """

    def __init__(
        self, path: Path, last_good: LastGood[T], take: Callable[[Found | Unreadable | None, float], Content]
    ) -> None:
        self.name = path.name
        self.changed = asyncio.Event()
        self._path = path
        self._last_good = last_good
        self._take = take
        self.off_loop = OffLoop(f"read {path.name}")
        self._detached = False

    async def run(self) -> None:
        while True:
            self.changed.clear()
            wait_s = await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.changed.wait()

    async def first(self) -> None:
        for _ in range(_FIRST_LOOKS):
            wait_s = await self._look()
            if wait_s is None or wait_s > _FIRST_WAIT_S:
                return
            await asyncio.sleep(wait_s)

    async def _look(self) -> float | None:
        now = asyncio.get_running_loop().time()
        try:
            content = await self.off_loop.do(partial(self._read, now), self._path)
        except FileRefused as error:
            content = Unreadable(str(error))
        return self._last_good.look(content, now)

    def _read(self, now: float) -> Content:
        found = disk.find(self._path)
        if isinstance(found, Found) and found.detached and not self._detached:
            log.warning(
                "file_detached",
                file=str(self._path),
                remedy="it was replaced where it is mounted from and never changes here: mount its directory",
            )
        self._detached = isinstance(found, Found) and found.detached
        return self._take(found, now)


def _content(found: Found | Unreadable | None, _now: float) -> Content:
    return found.content if isinstance(found, Found) else found


def _lost(old: DeviceList, new: DeviceList) -> int:
    return len(set(old) - set(new))


def _joined(old: DeviceList, new: DeviceList) -> DeviceList:
    return tuple(dict.fromkeys((*old, *new)))
