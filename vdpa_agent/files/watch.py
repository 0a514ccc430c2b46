"""Watch: the kernel's notes of what happens in some directories, by inotify."""

import ctypes
import errno
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from stat import S_ISDIR
from types import TracebackType
from typing import Final, Self

from vdpa_agent.errors import FileRefused

_NAMES: Final = 0x00000FC0
"""Of linux/inotify.h: IN_MOVED_FROM to IN_MOVE_SELF, what comes and goes. Of a parent it is all that matters."""

_CHANGES: Final = _NAMES | 0x0000000E
"""The same with IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE: all but what reading the files does."""

_QUEUE_BYTES: Final = 64 * 1024

_REMEDIES: Final = {
    errno.EMFILE: "raise fs.inotify.max_user_instances, or the limit of open files",
    errno.EACCES: "give the agent read permission",
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
}

_Identity = tuple[int, int]


class Watch:
    """An inotify queue on some directories and their parents; a context manager.

    Watched are directories: a watch on a file sees only its first replacement. And their parents: a directory that was
    removed and made again is silent for ever. What is watched is held open too, so that its number is not given to
    another directory.

    Attributes:
        queue: a descriptor that is readable when something has happened.
    """

    def __init__(self, directories: Collection[Path]) -> None:
        """Watches from now on; of directories that do not exist, the nearest ancestor.

        Raises:
            FileRefused: a limit of inotify is reached, or a directory may not be watched.
            OSError: a directory cannot be opened, or has just gone.
        """
        self._directories = tuple(directories)
        self._descriptors: list[int] = []
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            self.queue = self._keep(_checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)))
            self._watched: dict[Path, _Identity] = {}
            for path in _present(self._directories):
                held = self._keep(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                mask = _CHANGES if path in self._directories else _NAMES
                _checked(libc.inotify_add_watch(self.queue, os.fsencode(path), mask), path)
                status = os.fstat(held)
                self._watched[path] = (status.st_dev, status.st_ino)
        except BaseException:
            self.close()
            raise

    def drain(self) -> bool:
        """Empties the queue; whether there was anything in it. What happens later makes it readable again."""
        try:
            return bool(os.read(self.queue, _QUEUE_BYTES))
        except BlockingIOError:
            return False

    def is_current(self) -> bool:
        """Whether the directories are still those that are watched."""
        return _present(self._directories) == self._watched

    def close(self) -> None:
        """Ends the watch."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # One that came too late for whoever wanted it.
        self.close()

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor


def _checked(result: int, path: Path | None = None) -> int:
    """What a call gave.

    Raises:
        FileRefused: it failed; for a limit, inotify(7) borrows the errors of quite other ones.
    """
    if result < 0:
        number = ctypes.get_errno()
        reason = os.strerror(number).lower()
        where = f"inotify on {path}" if path else "inotify"
        message = f"{where}: {reason}; {_REMEDIES[number]}" if number in _REMEDIES else f"{where}: {reason}"
        raise FileRefused(message)
    return result


def _present(directories: Iterable[Path]) -> dict[Path, _Identity]:
    """Each directory and its parent with what they are now; of those that do not exist, the nearest ancestor."""
    present = {}
    for directory in directories:
        for path in (directory, directory.parent):
            while (identity := _identity(path)) is None and path != path.parent:
                path = path.parent  # noqa: PLW2901 - the nearest ancestor stands for it
            if identity is not None:
                present[path] = identity
    return present


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if S_ISDIR(status.st_mode) else None
