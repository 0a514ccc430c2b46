"""ResourceFile: the last good resource config, followed live."""

import asyncio
from contextlib import aclosing
from functools import partial
from pathlib import Path

from vdpa_agent.files.follow import follow
from vdpa_agent.files.kept_list import KeptList
from vdpa_agent.files.last_good import LastGood
from vdpa_agent.files.reader import Reader
from vdpa_agent.files.resource_config import decode_resource_config
from vdpa_agent.latest import Latest
from vdpa_agent.model.loaded import Loaded, Readings
from vdpa_agent.model.pools import ResourceConfig


class ResourceFile:
    """Follows the file and publishes what it says.

    Attributes:
        config: the last good content; nothing else writes it.
    """

    def __init__(self, path: Path, socket_list: Path, *, simulate: bool) -> None:
        """Reads nothing yet.

        Args:
            path: the file.
            socket_list: the mapping, beside which the last good config is kept.
            simulate: whether pools may have software devices.
        """
        self.config: Latest[Loaded[ResourceConfig]] = Latest(Loaded())
        self._path = path
        decode = partial(decode_resource_config, simulate=simulate)
        self._last_good = LastGood(path, self.config, decode, keeps_when_absent=True)
        self._reader = Reader(path, self._last_good)
        self._kept = KeptList(
            socket_list.with_name(".resourceConfig.last"), path, decode=decode, encode=lambda config: config.text
        )

    @property
    def readings(self) -> dict[str, Readings]:
        """How its contents were judged."""
        return {"resource_config": self._last_good.readings}

    async def first(self) -> None:
        """Looks at the file, for at most some seconds even if its file system does not answer."""
        await self._reader.first()
        await self._fall_back()

    async def run(self) -> None:
        """Follows the file until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reader.run(), name=self._reader.name)
            tasks.create_task(self._keep(), name="kept resource config")
            async with aclosing(follow((self._path,))) as changes:
                async for _ in changes:
                    self._reader.changed.set()

    async def _keep(self) -> None:
        async for _ in self.config.changes():
            await self._fall_back()
            if (good := self._last_good.good) is not None:
                await self._kept.keep(good)

    async def _fall_back(self) -> None:
        """Has the config of an earlier agent count if the present one is refused from the start."""
        if self._last_good.lacks_a_good_one and (kept := await self._kept.read()) is not None:
            self._last_good.fall_back(kept)
