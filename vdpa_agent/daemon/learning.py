"""FrontEndList: asks the daemon, now and then, for the front ends of all its devices."""

from collections.abc import Callable
from typing import Final

import structlog

from vdpa_agent.daemon.answers import Told, parse_front_ends
from vdpa_agent.daemon.control import Control
from vdpa_agent.errors import RequestRefused, Unanswered

_LIST_S: Final = 5.0
"""How long the daemon may take to list its devices."""

_LEARN_S: Final = 10.0
"""How often the daemon is asked for all front ends: a notification may be lost, and refusals have none."""

log = structlog.get_logger(__name__)


class FrontEndList:
    """What the daemon lists, which is asked for every few seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Asks nothing yet.

        Args:
            clock: the time in seconds.
        """
        self._now_s = clock
        self._due_s = 0.0
        self._is_known = True

    @property
    def is_due(self) -> bool:
        """Whether the daemon is to be asked again."""
        return self._now_s() >= self._due_s

    def is_due_now(self) -> None:
        """The daemon is another one: it is to be asked at once."""
        self._due_s = 0.0

    async def ask(self, control: Control) -> dict[str, Told]:
        """The front ends of each device by its address; none where the daemon refuses to list them, or does not."""
        self._due_s = self._now_s() + _LEARN_S
        try:
            told = parse_front_ends(await control.call("device.list", timeout_s=_LIST_S))
        except (RequestRefused, Unanswered) as error:
            report = log.warning if self._is_known else log.debug
            self._is_known = False
            report("front_ends_unknown", reason=str(error))
            return {}
        self._is_known = True
        return told
