"""LastGood: the last good content of one file, whatever is done to the file."""

import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from vdpa_agent.errors import FileRefused
from vdpa_agent.files.disk import Content, Unreadable
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.model.loaded import ABSENT, Loaded, Readings

T = TypeVar("T", bound=Sized)

_SETTLE_S: Final = 0.1
"""A refused content, or one that drops entries, counts only after this time: an editor may be in the middle of it."""

_ABSENCE_GRACE_S: Final = 2.0
"""How long a file may be absent before that counts: an editor's gap."""

log = structlog.get_logger(__name__)


class Caution(NamedTuple, Generic[T]):
    """How a value that lost something of the last good one is taken.

    Attributes:
        settle_s: how long one that lost more than half must stay the same before it counts, in seconds.
        lost: how many entries of the first value the second does not have.
        joined: the first value with what only the second has.
        steps: where it is counted that a value lost more than half.
    """

    settle_s: float
    lost: Callable[[T, T], int]
    joined: Callable[[T, T], T]
    steps: DestructiveSteps


class LastGood(Generic[T]):
    """Follows one file by the contents shown to it, and publishes the last good one.

    Attributes:
        readings: how its contents were judged.
        good: the last good value alone, without what counts meanwhile of one that must settle; None before the first.
    """

    def __init__(
        self,
        path: Path,
        published: Latest[Loaded[T]],
        decode: Callable[[bytes], T],
        *,
        caution: Caution[T] | None = None,
        keeps_when_absent: bool = False,
    ) -> None:
        """Publishes nothing yet.

        Args:
            path: the file, for messages.
            published: what it writes to, as the only writer.
            decode: reads a content or raises FileRefused.
            caution: how a loss of entries is taken; None: it counts at once.
            keeps_when_absent: whether the last good value outlives the file.
        """
        self.readings = Readings()
        self.good: T | None = None
        self._path = path
        self._published = published
        self._decode = decode
        self._caution = caution
        self._keeps_when_absent = keeps_when_absent
        self._content: Content = None
        self._decoded: T | FileRefused | None = None
        self._since: float | None = None
        self._settled = False
        self._shrinks = False

    def look(self, content: Content, now: float) -> float | None:
        """Takes the content seen at `now`; returns in how many seconds it must be seen again, None: never."""
        if self._since is None or content != self._content:
            self._content = content
            self._since = now
            self._settled = False
            self._decoded = self._decode_or_refuse(content)
        if self._settled:
            return None
        wait_s = self._wait_s(now - self._since)
        if wait_s > 0:
            return wait_s
        self._settled = True
        self._publish()
        return None

    @property
    def lacks_a_good_one(self) -> bool:
        """Whether the content is refused, and none ever counted."""
        return self._published.value.refused and self._published.value.value is None

    def fall_back(self, value: T) -> None:
        """Lets a value count that was good in the life of another agent, if that is lacking."""
        if self.lacks_a_good_one:
            self.good = value
            log.warning("kept_list_used", file=str(self._path), entries=len(value))
            self._published.set(self._published.value._replace(value=value))

    def _decode_or_refuse(self, content: Content) -> T | FileRefused | None:
        if content is None:
            return None
        if isinstance(content, Unreadable):
            return FileRefused(content.reason)
        try:
            return self._decode(content)
        except FileRefused as error:
            return error

    def _wait_s(self, age_s: float) -> float:
        """How long what has been there for `age_s` must still stay before it counts."""
        before = self._published.value.value
        if self._decoded is None:
            return _ABSENCE_GRACE_S - age_s if before is not None else 0.0
        if isinstance(self._decoded, FileRefused):
            return _SETTLE_S - age_s
        if self._caution is None or self.good is None or before is None:
            return 0.0
        lost = self._caution.lost(self.good, self._decoded)
        if not lost or not (self._shrinks or 2 * lost > len(self.good)):
            return _SETTLE_S - age_s if self._caution.lost(before, self._decoded) else 0.0
        # What is new in it counts at once.
        merged = self._caution.joined(before, self._decoded)
        self._published.set(self._published.value._replace(value=merged))
        if age_s < _SETTLE_S:
            # An editor may be in the middle of it, which is no problem to speak of.
            return _SETTLE_S - age_s
        self._shrink(merged, lost, self._caution, left=len(self._decoded))
        return max(self._caution.settle_s, _SETTLE_S) - age_s

    def _shrink(self, meanwhile: T, lost: int, caution: Caution[T], *, left: int) -> None:
        """Reports that entries go unless the list is written again."""
        had = len(self.good or ())
        what = f"lost {lost} of its {had} devices: these" if left else f"was emptied: {lost} devices"
        problem = f"the list {what} go in {caution.settle_s:g} s unless it is written again"
        self._published.set(Loaded(meanwhile, problem))
        if self._shrinks:
            return
        self._shrinks = True
        caution.steps[Destructive.LIST_SHRUNK] += 1
        log.warning(
            "device_list_shrinks",
            file=str(self._path),
            before=had,
            after=left,
            wait_s=caution.settle_s,
            remedy="write the whole list again; else what is missing goes",
        )

    def _publish(self) -> None:
        before = self._published.value
        self.readings.is_refused = isinstance(self._decoded, FileRefused)
        if isinstance(self._decoded, FileRefused):
            reason, kept = str(self._decoded), before.value is not None
            self.readings.refused += 1
            log.warning("file_refused", file=str(self._path), reason=reason, last_good_kept=kept)
            self._published.set(Loaded(before.value, reason, refused=True))
        elif self._decoded is not None:
            self.readings.loaded += 1
            self.readings.loaded_at_s = time.time()
            if self._shrinks and self._caution and self.good and self._caution.lost(self.good, self._decoded):
                log.warning("device_list_shrunk", file=str(self._path), before=len(self.good), after=len(self._decoded))
            log.info("file_loaded", file=str(self._path), entries=len(self._decoded))
            self.good, self._shrinks = self._decoded, False
            self._published.set(Loaded(self._decoded))
        else:
            kept = before.value is not None and self._keeps_when_absent
            self.readings.absent += 1
            log.info("file_absent", file=str(self._path), last_good_kept=kept)
            self._published.set(Loaded(before.value if kept else None, ABSENT))
