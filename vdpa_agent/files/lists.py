"""The last good contents of the device list and of the mapping, as two Latest values."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeGuard

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files.follow import follow
from vdpa_agent.files.formats import Form, decode_device_list, decode_mapping_file, form_of
from vdpa_agent.files.last_good import Content, LastGood, read
from vdpa_agent.latest import Latest
from vdpa_agent.model.loaded import Loaded, Readings
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList

_ABSENCE_GRACE_S: Final = 2.0
"""How long a foreign mapping may be absent before it is dropped: an editor's gap."""

_REQUEST_GRACE_S: Final = 1.0
"""A malformed request is put aside after this time, since it keeps the daemon from writing the mapping."""

log = structlog.get_logger(__name__)


class Lists:
    """Follows the two files and publishes what they say; the only writer of `devices` and `mapping`."""

    def __init__(self, config: FilesConfig, *, takes_requests: bool) -> None:
        """Reads nothing yet.

        Args:
            config: the paths.
            takes_requests: whether a device list found in place of the mapping is taken as the device list.
        """
        self.devices: Latest[Loaded[DeviceList]] = Latest(Loaded())
        self.mapping: Latest[Loaded[Mapping]] = Latest(Loaded())
        self._config = config
        self._takes_requests = takes_requests
        self._device_list = LastGood(
            config.pci_list, self.devices, self._decode_devices, drops=_drops_devices, keeps_when_absent=True
        )
        self._mapping_file = LastGood(config.socket_list, self.mapping, decode_mapping_file)
        self._request_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def readings(self) -> dict[str, Readings]:
        """How the contents of the two files were judged."""
        return {"device_list": self._device_list.readings, "mapping": self._mapping_file.readings}

    async def run(self) -> None:
        """Follows the files until cancelled."""
        try:
            async for _ in follow((self._config.pci_list, self._config.socket_list)):
                self.check()
        finally:
            self._disarm()

    def check(self) -> None:
        """Looks at both files now and publishes what changed; asks to be called again where something must settle."""
        self._disarm()
        loop = asyncio.get_running_loop()
        now = loop.time()
        content = read(self._config.socket_list)
        if self._takes_requests and _is_request(content):
            content = self._take_request(content, now)
        else:
            self._request_since = None
        waits = []
        if self._takes_requests:
            waits.append(self._device_list.look(read(self._config.pci_list), now, absence_grace_s=_ABSENCE_GRACE_S))
        waits.append(self._mapping_file.look(content, now, absence_grace_s=_ABSENCE_GRACE_S))
        wait_s = min((wait for wait in waits if wait is not None), default=None)
        if wait_s is not None:
            self._timer = loop.call_later(wait_s, self.check)

    async def retire_mapping(self) -> None:
        """Takes the mapping away because its sockets are dead; a device list that came in its place is kept.

        The file is renamed aside before it is judged, so that nothing written in between is lost; what an earlier
        process left aside is judged too.
        """
        aside = self._config.socket_list.with_name(f".{self._config.socket_list.name}.retired")
        try:
            self._judge_retired(aside)
            _refuse_unreadable(self._config.socket_list)
            with suppress(FileNotFoundError):
                self._config.socket_list.rename(aside)
            self._judge_retired(aside)
        except OSError as error:
            log.error(
                "mapping_not_retired",
                file=str(self._config.socket_list),
                reason=os.strerror(error.errno or 0),
                remedy="give the agent write permission on the directory, and space",
            )
        self.check()

    def _judge_retired(self, aside: Path) -> None:
        _refuse_unreadable(aside)
        content = read(aside)
        if content is None:
            return
        if self._takes_requests and _is_request(content) and not self._is_superseded(aside):
            self._accept_or_put_aside(aside, content)
        else:
            aside.unlink(missing_ok=True)

    def _is_superseded(self, request: Path) -> bool:
        """Whether the device list was written after a request: the newest wins."""
        try:
            return self._config.pci_list.stat().st_mtime_ns > request.stat().st_mtime_ns
        except FileNotFoundError:
            return False

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_request(self, content: bytes, now: float) -> Content:
        """Moves a device list from the mapping's place to its own; returns what is in the mapping's place then."""
        source = self._config.socket_list
        try:
            decode_device_list(content)
        except FileRefused:
            self._request_since = now if self._request_since is None else self._request_since
            if now - self._request_since < _REQUEST_GRACE_S:
                return content
        self._request_since = None
        try:
            self._accept_or_put_aside(source, content)
        except OSError as error:
            log.error(
                "device_list_not_moved",
                file=str(source),
                to=str(self._config.pci_list),
                reason=os.strerror(error.errno or 0),
                remedy="keep both files in one writable directory",
            )
            return content
        return None

    def _accept_or_put_aside(self, source: Path, content: bytes) -> None:
        try:
            addresses, _ = decode_device_list(content)
        except FileRefused as error:
            refused = self._config.socket_list.with_name(f"{self._config.socket_list.name}.refused")
            source.replace(refused)
            log.warning("device_list_refused", file=str(source), reason=str(error), moved_to=str(refused))
            return
        source.replace(self._config.pci_list)
        log.info("device_list_taken", file=str(source), moved_to=str(self._config.pci_list), devices=len(addresses))

    def _decode_devices(self, content: bytes) -> DeviceList:
        addresses, duplicates = decode_device_list(content)
        if duplicates:
            log.info("duplicates_merged", file=str(self._config.pci_list), duplicates=duplicates)
        return addresses


def _refuse_unreadable(path: Path) -> None:
    """What cannot be read may be a list: it stays where it is.

    Raises:
        OSError: the file is there and cannot be read.
    """
    with suppress(FileNotFoundError):
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def _is_request(content: Content) -> TypeGuard[bytes]:
    return isinstance(content, bytes) and form_of(content) is Form.LINES


def _drops_devices(old: DeviceList, new: DeviceList) -> bool:
    return not set(old) <= set(new)
