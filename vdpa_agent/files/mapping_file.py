"""MappingFile: takes the mapping of a dead daemon away."""

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Unreadable
from vdpa_agent.files.off_loop import OffLoop, Once
from vdpa_agent.files.requests import aside_of, judge_aside

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
