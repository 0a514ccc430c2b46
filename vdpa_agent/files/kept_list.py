"""KeptList: the last good content of a list on disk, for a start at which the present one is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.formats import decode_device_list
from vdpa_agent.files.off_loop import OffLoop, Once
from vdpa_agent.model.pci import DeviceList

T = TypeVar("T")

log = structlog.get_logger(__name__)


class KeptList(Generic[T]):
    """A list beside the mapping, in the form of the original."""

    def __init__(
        self, path: Path, original: Path, *, decode: Callable[[bytes], T], encode: Callable[[T], bytes]
    ) -> None:
        """Reads nothing yet.

        Args:
            path: where it is kept.
            original: the list that it is kept of, for messages.
            decode: reads a content or raises FileRefused.
            encode: makes a content.
        """
        self._path = path
        self._original = original
        self._decode = decode
        self._encode = encode
        self._off_loop = OffLoop("kept list")
        self._unreadable = Once()
        self._unwritable = Once()

    async def read(self) -> T | None:
        """The list that last counted; None where there is none, or it makes no sense."""
        try:
            content = await self._off_loop.do(partial(disk.read, self._path), self._path)
            if isinstance(content, disk.Unreadable):
                raise FileRefused(content.reason)
            return None if content is None else self._decode(content)
        except FileRefused as error:
            if self._unreadable.is_new(str(error)):
                remedy = f"correct {self._original}: then this one is written anew"
                log.warning("kept_list_unreadable", file=str(self._path), reason=str(error), remedy=remedy)
            return None

    async def keep(self, value: T) -> None:
        """Has the file hold this; a failure is logged once a reason, and matters only to the next agent."""
        content = self._encode(value)
        try:
            await self._off_loop.do(partial(_keep, self._path, content), self._path)
        except FileRefused as error:
            if self._unwritable.is_new(str(error)):
                log.error(
                    "device_list_not_kept",
                    file=str(self._path),
                    reason=str(error),
                    remedy=f"without it a restarted agent has no device of {self._original} while that is refused",
                )
        else:
            self._unwritable.forget()


def kept_device_list(config: FilesConfig) -> KeptList[DeviceList]:
    """`.pciList.last` beside the mapping."""
    return KeptList(
        config.socket_list.with_name(f".{config.pci_list.stem}.last"),
        config.pci_list,
        decode=lambda content: decode_device_list(content)[0],
        encode=lambda devices: "".join(f"{address}\n" for address in devices).encode(),
    )


def _keep(path: Path, content: bytes) -> None:
    if disk.read(path) != content:
        disk.replace(path, content, mode=0o600)
