"""Lock: a file beside what only one process may have, held by one of them at a time."""

import errno
import fcntl
import os
import socket
import stat
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from vdpa_agent.errors import REMEDIES, AlreadyRunning, ListenError
from vdpa_agent.node.kinds import kind_of
from vdpa_agent.node.sockets import FileId

# Not for writing: an open file that can be written keeps its file system from being mounted read-only.
_MAKE: Final = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_TRIES: Final = 10
"""How often a lock is taken anew whose holder takes the file away while it is taken."""

_HOLDER_BYTES: Final = 512
"""What is read of a lock's content: a process id, and a name of at most HOST_NAME_MAX, which is 64."""

_WITHOUT_RIGHT: Final = (errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

_REMEDIES: Final = {
    **REMEDIES,
    **dict.fromkeys(_WITHOUT_RIGHT, "the agent needs a directory that it can write to"),
    errno.EPERM: "the agent needs a directory that can be written to: chattr -i, if lsattr -d shows an i",
}


class Held(NamedTuple):
    """A file that is held open, so that no other one can be it.

    Attributes:
        descriptor: of the open file; to ask it for more would wait for its file system, whatever is at its path now.
        file: which file it is.
    """

    descriptor: int
    file: FileId


class Lock:
    """A lock file; everything here may block, as any file system may, and is to be done by a `Worker`.

    The kernel frees the lock when the process ends, however it ends. Only the user that made the file can open it.
    """

    def __init__(self, path: Path, guarded: Path, option: str, *, makes_directory: bool = True) -> None:
        """Opens nothing yet.

        Args:
            path: the file.
            guarded: what only one process may have, for messages.
            option: the option that says where that is, likewise.
            makes_directory: whether the directory of the file is made; else it must be there, and be no link.
        """
        self.path = path
        self._guarded = guarded
        self._option = option
        self._makes_directory = makes_directory
        self._held: Held | None = None

    def take(self) -> None:
        """Takes the lock, unless it is held already.

        Raises:
            AlreadyRunning: another process holds it.
            ListenError: it cannot be taken; the message says what is in the way.
        """
        for _ in range(_TRIES):
            if self.is_held():
                return
            held, self._held = self._held, None
            if held is not None:
                _close_aside(held.descriptor)
            self._held = self._taken()

    def is_held(self) -> bool:
        """Whether this process holds it, and the file is still there for others to see."""
        return is_at(self.path, self._held)

    def leave(self) -> None:
        """Takes the file away and frees the lock."""
        with suppress(OSError):
            if self.is_held():
                self.path.unlink()
        held, self._held = self._held, None
        if held is not None:
            os.close(held.descriptor)

    def _taken(self) -> Held:
        path = self.path
        with ExitStack() as undo:
            try:
                if self._makes_directory:
                    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                directory = os.open(path.parent, _DIRECTORY | (0 if self._makes_directory else os.O_NOFOLLOW))
                undo.callback(os.close, directory)
                descriptor = os.open(path.name, _MAKE, 0o600, dir_fd=directory)
                kept = undo.enter_context(ExitStack())
                kept.callback(os.close, descriptor)
                self._refuse_foreign(os.fstat(descriptor))
                # Any process that can open it can lock it.
                os.fchmod(descriptor, 0o600)
            except OSError as error:
                raise self._error(error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                remedy = f"stop it or choose another {self._option}"
                message = f"another agent, {_holder(descriptor)}, holds {self._guarded}; {remedy}"
                raise AlreadyRunning(message) from error
            # The holder is for people; a full disk has no room for it, and the lock is held all the same.
            with suppress(OSError):
                _write_holder(directory, path.name, descriptor)
            held = held_open(descriptor)
            kept.pop_all()
        return held

    def _refuse_foreign(self, found: os.stat_result) -> None:
        """Refuses a file that is not a plain one of this user alone."""
        wrong = ""
        if not stat.S_ISREG(found.st_mode):
            wrong = f"it is {kind_of(found)}"
        elif found.st_nlink > 1:
            wrong = f"the file has {found.st_nlink} names"
        elif found.st_uid != os.geteuid():
            wrong = f"it belongs to user {found.st_uid}, the agent runs as {os.geteuid()}"
        if wrong:
            raise ListenError(self._in_the_way(wrong))

    def _error(self, error: OSError) -> ListenError:
        number = error.errno or 0
        reason = os.strerror(number).lower()
        if number in _REMEDIES:
            return ListenError(f"{self._option}: {self.path}: {reason}; {_REMEDIES[number]}")
        return ListenError(self._in_the_way("it is a symbolic link" if error.errno == errno.ELOOP else reason))

    def _in_the_way(self, reason: str) -> str:
        return f"{self._option}: {self.path}: {reason}; move it away, or choose another {self._option}"


def is_at(path: Path, held: Held | None) -> bool:
    """Whether an open file is what a path names, without following a link; the file itself is not asked."""
    if held is None:
        return False
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == held.file


def held_open(descriptor: int) -> Held:
    """An open file, with which it is.

    Raises:
        OSError: it cannot be looked at.
    """
    found = os.fstat(descriptor)
    return Held(descriptor, (found.st_dev, found.st_ino))


def _close_aside(descriptor: int) -> None:
    """Closes what was replaced, in a thread of its own: that waits for its file system, which may hang for good."""
    try:
        threading.Thread(target=_close, args=(descriptor,), name="closer", daemon=True).start()
    except RuntimeError:  # the machine has no thread left
        _close(descriptor)


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


def _write_holder(directory: int, name: str, descriptor: int) -> None:
    """Has a lock's content name this process, unless another file has its name by now.

    Raises:
        OSError: it cannot be written.
    """
    writable = os.open(name, _WRITE, dir_fd=directory)
    try:
        if not os.path.samestat(os.fstat(writable), os.fstat(descriptor)):
            return
        os.truncate(writable, 0)
        os.write(writable, f"{os.getpid()} {socket.gethostname()}\n".encode())
    finally:
        os.close(writable)


def _holder(descriptor: int) -> str:
    """Who holds a lock, by its content: a process id is of use only together with its host, or pod."""
    words = os.pread(descriptor, _HOLDER_BYTES, 0).decode("ascii", "replace").split()
    process = words[0] if words and words[0].isdecimal() else "unknown"
    host = words[1] if len(words) > 1 and words[1].isprintable() else ""
    return f"process {process} on {host}" if host else f"process {process}"
