"""KeptList: the last good device list on disk, for a start at which the present one is refused."""

from functools import partial
from pathlib import Path

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.formats import decode_device_list
from vdpa_agent.files.off_loop import OffLoop, Once
from vdpa_agent.model.pci import DeviceList

log = structlog.get_logger(__name__)


class KeptList:
    """`.pciList.last` beside the mapping: a device list in the form of any other."""

    def __init__(self, config: FilesConfig) -> None:
        """Reads nothing yet."""
        self._path: Path = config.socket_list.with_name(f".{config.pci_list.stem}.last")
        self._off_loop = OffLoop("kept list")
        self._unreadable = Once()
        self._unwritable = Once()

    async def read(self) -> DeviceList | None:
        """The list that last counted; None where there is none, or it makes no sense."""
        try:
            content = await self._off_loop.do(partial(disk.read, self._path), self._path)
            if isinstance(content, disk.Unreadable):
                raise FileRefused(content.reason)
            return None if content is None else decode_device_list(content)[0]
        except FileRefused as error:
            if self._unreadable.is_new(str(error)):
                remedy = "correct the device list: then this one is written anew"
                log.warning("kept_list_unreadable", file=str(self._path), reason=str(error), remedy=remedy)
            return None

    async def keep(self, devices: DeviceList) -> None:
        """Has the file hold this list; a failure is logged once a reason, and matters only to the next agent."""
        content = "".join(f"{address}\n" for address in devices).encode()
        try:
            await self._off_loop.do(partial(_keep, self._path, content), self._path)
        except FileRefused as error:
            if self._unwritable.is_new(str(error)):
                log.error(
                    "device_list_not_kept",
                    file=str(self._path),
                    reason=str(error),
                    remedy="without it a restarted agent has no device while the list is refused",
                )
        else:
            self._unwritable.forget()


def _keep(path: Path, content: bytes) -> None:
    if disk.read(path) != content:
        disk.replace(path, content, mode=0o600)
