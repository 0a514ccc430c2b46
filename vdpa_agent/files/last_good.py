"""LastGood: the last good content of one file, whatever is done to the file."""

import errno
import os
import stat
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from vdpa_agent.errors import FileRefused
from vdpa_agent.latest import Latest
from vdpa_agent.model.loaded import ABSENT, Loaded, Readings
from vdpa_agent.model.mapping import FILE_MAX_BYTES

T = TypeVar("T", bound=Sized)

_SETTLE_S: Final = 0.1
"""A refused content, or one that drops entries, counts only after this time: an editor may be in the middle of it."""

_REMEDIES: Final = {
    errno.EACCES: "give the agent read permission",
    errno.EPERM: "give the agent read permission",
    errno.EMFILE: "raise the agent's limit of open files",
    errno.ENFILE: "raise the machine's limit of open files",
}

log = structlog.get_logger(__name__)


class Unreadable(NamedTuple):
    """A file is there and cannot be read."""

    reason: str


Content = bytes | Unreadable | None
"""What reading a file gave; None: it is not there."""


def read(path: Path) -> Content:
    """Reads a file without ever blocking on what it turns out to be; at most one byte more than is allowed."""
    # O_NONBLOCK: opening a FIFO must not stop the event loop.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            return None
        return Unreadable(
            f"{os.strerror(error.errno or 0).lower()}; {_REMEDIES.get(error.errno or 0, 'see to the disk')}"
        )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return Unreadable("not a regular file; put a file in its place")
        chunks = []
        left = FILE_MAX_BYTES + 1  # one more than allowed: the decoder refuses it by its size
        while left > 0 and (chunk := os.read(descriptor, left)):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    except OSError as error:
        return Unreadable(os.strerror(error.errno or 0).lower())
    finally:
        os.close(descriptor)


class LastGood(Generic[T]):
    """Follows one file by the contents shown to it, and publishes the last good one.

    Attributes:
        readings: how its contents were judged.
    """

    def __init__(
        self,
        path: Path,
        published: Latest[Loaded[T]],
        decode: Callable[[bytes], T],
        *,
        drops: Callable[[T, T], bool] | None = None,
        keeps_when_absent: bool = False,
    ) -> None:
        """Publishes nothing yet.

        Args:
            path: the file, for messages.
            published: what it writes to, as the only writer.
            decode: reads a content or raises FileRefused.
            drops: whether the second of two values lost something of the first; such a change must settle before it
                counts, since a file written in place is short for a moment. None: no such change is delicate.
            keeps_when_absent: whether the last good value outlives the file.
        """
        self.readings = Readings()
        self._path = path
        self._published = published
        self._decode = decode
        self._drops = drops
        self._keeps_when_absent = keeps_when_absent
        self._content: Content = None
        self._decoded: T | FileRefused | None = None
        self._since: float | None = None
        self._settled = False

    def look(self, content: Content, now: float, *, absence_grace_s: float) -> float | None:
        """Takes the content seen at `now`; returns in how many seconds it must be seen again, None: never."""
        if self._since is None or content != self._content:
            self._content = content
            self._since = now
            self._settled = False
            self._decoded = self._decode_or_refuse(content)
        if self._settled:
            return None
        before = self._published.value
        wait_s = 0.0
        if content is None:
            wait_s = absence_grace_s if before.value is not None else 0.0
        elif isinstance(self._decoded, FileRefused) or self._is_drop(before.value, self._decoded):
            wait_s = _SETTLE_S
        left_s = self._since + wait_s - now
        if left_s > 0:
            return left_s
        self._settled = True
        self._publish(before)
        return None

    def _is_drop(self, old: T | None, new: T | None) -> bool:
        return self._drops is not None and old is not None and new is not None and self._drops(old, new)

    def _decode_or_refuse(self, content: Content) -> T | FileRefused | None:
        if content is None:
            return None
        if isinstance(content, Unreadable):
            return FileRefused(content.reason)
        try:
            return self._decode(content)
        except FileRefused as error:
            return error

    def _publish(self, before: Loaded[T]) -> None:
        self.readings.is_refused = isinstance(self._decoded, FileRefused)
        if isinstance(self._decoded, FileRefused):
            reason = str(self._decoded)
            kept = before.value is not None
            self.readings.refused += 1
            log.warning("file_refused", file=str(self._path), reason=reason, last_good_kept=kept)
            self._published.set(Loaded(before.value, reason))
        elif self._decoded is not None:
            self.readings.loaded += 1
            self.readings.loaded_at_s = time.time()
            log.info("file_loaded", file=str(self._path), entries=len(self._decoded))
            self._published.set(Loaded(self._decoded))
        else:
            kept = before.value is not None and self._keeps_when_absent
            self.readings.absent += 1
            log.info("file_absent", file=str(self._path), last_good_kept=kept)
            self._published.set(Loaded(before.value if kept else None, ABSENT))
