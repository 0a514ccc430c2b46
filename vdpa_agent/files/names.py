"""The file that keeps each device's socket name over restarts of the agent."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from vdpa_agent.errors import AddressError, FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.off_loop import OffLoop, Once
from vdpa_agent.model.mapping import FILE_MAX_BYTES
from vdpa_agent.model.pci import PciAddress, parse_pci_address, shown

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
"""What the kernel calls this boot of the node: proc_sys_kernel(5)."""

_NAME: Final = re.compile(r"vdpa-(?:0|[1-9][0-9]{0,5})")

log = structlog.get_logger(__name__)


class KeptNames(NamedTuple):
    """What the file says.

    Attributes:
        names: the names that were given, in the order of the file.
        this_boot: whether they were written in this boot of the node.
    """

    names: dict[PciAddress, str]
    this_boot: bool


class _Object(tuple[tuple[str, Any], ...]):
    """The members of a JSON object in order, those with the same name too."""

    __slots__ = ()


class NamesFile:
    """`socketNames.json` beside the mapping: `boot_id`, and `names`, an object of PCI addresses and socket names.

    The older form is read too: an object of addresses and names alone, which counts as of this boot.
    """

    def __init__(self, socket_list: Path, *, boot_id: Path = BOOT_ID) -> None:
        """Reads nothing yet.

        Args:
            socket_list: the mapping.
            boot_id: the kernel's file of this boot's id.
        """
        self._path = socket_list.with_name("socketNames.json")
        self._boot_id_path = boot_id
        self._off_loop = OffLoop("names")
        self._unreadable = Once()
        self._unwritable = Once()

    async def read(self) -> KeptNames:
        """The names that an earlier agent gave; none where there is no such file or it makes no sense."""
        try:
            kept = await self._off_loop.do(self._read, self._path)
        except FileRefused as error:
            if self._unreadable.is_new(str(error)):
                log.warning(
                    "names_unreadable", file=str(self._path), reason=str(error), remedy="devices are numbered anew"
                )
            return KeptNames({}, this_boot=False)
        self._unreadable.forget()
        return kept

    async def write(self, names: Mapping[PciAddress, str]) -> bool:
        """Replaces the file; a failure is logged once a reason, and matters only to the next agent."""
        try:
            await self._off_loop.do(partial(self._write, dict(names)), self._path)
        except FileRefused as error:
            if self._unwritable.is_new(str(error)):
                log.error(
                    "names_not_written",
                    file=str(self._path),
                    reason=str(error),
                    remedy="without it a restarted agent may number devices anew: give write permission and space",
                )
            return False
        self._unwritable.forget()
        return True

    async def is_current(self, names: Mapping[PciAddress, str]) -> bool:
        """Whether the file is as `write` would leave it; false also where that cannot be seen."""
        try:
            return await self._off_loop.do(partial(self._is_current, dict(names)), self._path)
        except FileRefused:
            return False

    def _read(self) -> KeptNames:
        content = disk.read(self._path)
        if content is None:
            return KeptNames({}, this_boot=False)
        if isinstance(content, disk.Unreadable):
            raise FileRefused(content.reason)
        names, boot_id = _decode(content)
        return KeptNames(names, this_boot=boot_id is None or boot_id == self._boot_id())

    def _write(self, names: dict[PciAddress, str]) -> None:
        disk.replace(self._path, self._encode(names))

    def _is_current(self, names: dict[PciAddress, str]) -> bool:
        return disk.read(self._path) == self._encode(names)

    def _encode(self, names: dict[PciAddress, str]) -> bytes:
        content = json.dumps({"boot_id": self._boot_id(), "names": names}, indent=0).encode() + b"\n"
        if len(content) > FILE_MAX_BYTES:
            message = f"{len(names)} names take more than the {FILE_MAX_BYTES} bytes that are read"
            raise FileRefused(message)
        return content

    def _boot_id(self) -> str:
        """The id of this boot; empty where the kernel's is not to be seen, which then counts as one boot."""
        try:
            return self._boot_id_path.read_text("ascii").strip()
        except (OSError, UnicodeError):
            return ""


def _decode(content: bytes) -> tuple[dict[PciAddress, str], str | None]:
    """Reads the names, and the boot that they were written in; None: that was not written down.

    Raises:
        FileRefused: anything is wrong with it; the message names the entry, counted from 1.
    """
    if len(content) > FILE_MAX_BYTES:
        message = f"it is larger than {FILE_MAX_BYTES} bytes"
        raise FileRefused(message)
    try:
        whole = json.loads(content.decode("utf-8"), object_pairs_hook=_Object)
    except UnicodeDecodeError as error:
        message = f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8"
        raise FileRefused(message) from error
    except (ValueError, RecursionError) as error:
        message = "it is nested too deeply" if isinstance(error, RecursionError) else f"not JSON: {error}"
        raise FileRefused(message) from error
    boot_id = None
    if isinstance(whole, _Object) and "names" in dict(whole):
        boot_id, whole = dict(whole).get("boot_id"), dict(whole)["names"]
    if not isinstance(whole, _Object) or not isinstance(boot_id, str | None):
        message = "it is not an object of addresses and names"
        raise FileRefused(message)
    return _names(whole), boot_id


def _names(entries: _Object) -> dict[PciAddress, str]:
    names: dict[PciAddress, str] = {}
    given: set[str] = set()
    for number, (key, name) in enumerate(entries, start=1):
        try:
            address = parse_pci_address(key)
        except AddressError as error:
            message = f"entry {number}: {error}"
            raise FileRefused(message) from error
        if not isinstance(name, str):
            message = f"entry {number}: the name of {address} is not a string"
            raise FileRefused(message)
        if _NAME.fullmatch(name) is None:
            message = f"entry {number}: {shown(name)} is not a name such as vdpa-0"
            raise FileRefused(message)
        if address in names or name in given:
            message = f"entry {number}: {address if address in names else name} occurs twice"
            raise FileRefused(message)
        names[address] = name
        given.add(name)
    return names
