"""MappingFile: takes the mapping of a dead daemon away."""

from pathlib import Path

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Found, Unreadable
from vdpa_agent.files.off_loop import OffLoop, Once
from vdpa_agent.files.requests import accept, is_request

log = structlog.get_logger(__name__)


class MappingFile:
    """The mapping that the agent's own daemon writes."""

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

    def _retire(self) -> None:
        path = self._config.socket_list
        aside = path.with_name(f".{path.name}.retired")
        self._judge(aside)
        found = disk.find(path)
        if found is None:
            return
        if isinstance(found, Unreadable):
            # It may be a list: it stays where it is.
            raise FileRefused(found.reason)
        disk.move(path, aside)
        self._judge(aside)

    def _judge(self, aside: Path) -> None:
        found = disk.find(aside)
        if isinstance(found, Found) and self._takes_requests and is_request(found) and not self._superseded(found):
            accept(self._config, aside, found)
        elif isinstance(found, Unreadable) and not found.odd:
            raise FileRefused(found.reason)  # it may be a list
        elif found is not None:
            disk.clear(aside)

    def _superseded(self, request: Found) -> bool:
        """Whether the device list was written after a request: the newest wins."""
        present = disk.find(self._config.pci_list)
        return isinstance(present, Found) and present.modified_ns > request.modified_ns
