"""MappingFile: takes the mapping of dead daemons away, and writes that of several."""

from collections.abc import Mapping
from functools import partial

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Found, Unreadable
from vdpa_agent.files.formats import Form, decode_mapping_file, encode_mapping, form_of
from vdpa_agent.files.off_loop import OffLoop, Once
from vdpa_agent.files.requests import aside_of, judge_aside
from vdpa_agent.model.pci import PciAddress

log = structlog.get_logger(__name__)


class MappingFile:
    """The mapping that the agent's own daemon writes, or the agent where it has several."""

    def __init__(self, config: FilesConfig, *, takes_requests: bool) -> None:
        """Does nothing yet.

        Args:
            config: the paths.
            takes_requests: whether a device list that is found there is kept as the device list.
        """
        self._config = config
        self._takes_requests = takes_requests
        self._off_loop = OffLoop("mapping")
        self._failures = Once()

    async def retire(self) -> None:
        """Takes the mapping away because its sockets are dead; a device list that came in its place is kept.

        The file is renamed aside before it is judged, so that nothing written in between is lost; what an earlier
        process left aside is judged too. What fails is logged, once a reason.
        """
        path = self._config.socket_list
        try:
            await self._off_loop.do(self._retire, path)
        except FileRefused as error:
            if self._failures.is_new(str(error)):
                log.error(
                    "mapping_not_retired",
                    file=str(path),
                    reason=str(error),
                    remedy="give the agent write permission on the directory, and space",
                )
        else:
            self._failures.forget()

    async def write(self, sockets: Mapping[PciAddress, str]) -> str:
        """Replaces the mapping in one step; returns why it could not, empty if it did.

        What is not a mapping stays; a device list that came in its place meanwhile is kept.
        """
        path = self._config.socket_list
        try:
            await self._off_loop.do(partial(self._write, encode_mapping(sockets)), path)
        except FileRefused as error:
            return str(error)
        return ""

    def _write(self, content: bytes) -> None:
        path, aside = self._config.socket_list, aside_of(self._config)
        judge_aside(self._config, takes_requests=self._takes_requests)
        _refuse_other(disk.find(path))
        disk.replace(aside, content)
        disk.put(aside, path)
        try:
            held = disk.find(aside)
            if not (isinstance(held, Found) and form_of(held.content) is Form.LINES):
                _refuse_other(held)
        except FileRefused:
            disk.put(aside, path)  # it came since it was looked at
            raise
        finally:
            judge_aside(self._config, takes_requests=self._takes_requests)

    def _retire(self) -> None:
        path = self._config.socket_list
        aside = aside_of(self._config)
        judge_aside(self._config, takes_requests=self._takes_requests)
        found = disk.find(path)
        if found is None:
            return
        if isinstance(found, Unreadable):
            # It may be a list: it stays where it is.
            raise FileRefused(found.reason)
        disk.move(path, aside)
        judge_aside(self._config, takes_requests=self._takes_requests)


def _refuse_other(found: Found | Unreadable | None) -> None:
    """Refuses what is there and is not a mapping.

    Raises:
        FileRefused: it is something else; the message says what.
    """
    if isinstance(found, Unreadable):
        raise FileRefused(found.reason)
    if found is not None:
        try:
            decode_mapping_file(found.content)
        except FileRefused as error:
            message = f"what is there is not a mapping ({error}); take it away"
            raise FileRefused(message) from error
