"""Reads, replaces and moves single files in a directory where others may have put anything in their place."""

import ctypes
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Final, NamedTuple

from vdpa_agent.errors import REMEDIES, FileRefused
from vdpa_agent.model.mapping import FILE_MAX_BYTES

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
"""Of linux/fs.h."""

_TRIES: Final = 4
"""How often a file is looked at anew that was replaced, or taken away, between two steps."""

_TICK_NS: Final = 20_000_000
"""Longer than a tick of any kernel's clock (HZ=100: 10 ms), which the times of files are rounded to, in nanoseconds."""

_LINKS_MAX: Final = 40
"""The most symbolic links on the way to a file: MAXSYMLINKS of Linux."""

_REMEDIES: Final = {
    **REMEDIES,
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "mount the directory writable",
    errno.EISDIR: "remove the directory",
    errno.ENOTEMPTY: "remove the directory",
    errno.EXDEV: "keep the files in one directory",
}

_LEADS_OUT: Final = "a symbolic link that leads out of its directory; put a file in its place"
_ENDLESS: Final = "a symbolic link without an end; put a file in its place"
_LEADS_NOWHERE: Final = "a symbolic link to a file that is not there; put a file in its place"
_REPLACED: Final = "a file that is replaced all the time; write it less often"
_NOT_REGULAR: Final = "not a regular file; put a file in its place"


class Unreadable(NamedTuple):
    """A file is there and cannot be read, or is not to be.

    Attributes:
        reason: why, and what to do.
        odd: whether it is something that is never read, whatever it holds.
    """

    reason: str
    odd: bool = False


Content = bytes | Unreadable | None
"""What reading a file gave; None: it is not there."""


class Found(NamedTuple):
    """A file as it was read.

    Attributes:
        content: at most one byte more than is allowed, for the decoder to refuse it by its size.
        modified_ns: when it was last written, in nanoseconds since the epoch.
        identity: device and inode.
        detached: whether no directory has it any more: a file that was mounted alone, and replaced where it came from.
    """

    content: bytes
    modified_ns: int
    identity: tuple[int, int]
    detached: bool


def words(error: OSError, *, needed: str = "write") -> str:
    """The reason of a failed call, and what to do about it.

    Args:
        error: the failure.
        needed: the permission that the call needs.
    """
    number = error.errno or 0
    permission = f"give the agent {needed} permission"
    remedy = permission if isinstance(error, PermissionError) else _REMEDIES.get(number, "see to the disk")
    return f"{os.strerror(number).lower()}; {remedy}"


def read(path: Path) -> Content:
    """Reads a file; blocks only for as long as its file system does not answer."""
    found = find(path)
    return found.content if isinstance(found, Found) else found


def find(path: Path) -> Found | Unreadable | None:
    """Reads a file, with what else is known of it.

    Only a regular file with one name is read. A symbolic link counts as far as it stays beneath the directory of the
    file, as in a ConfigMap's volume.
    """
    try:
        with _opened(path.parent) as directory:
            for _ in range(_TRIES):
                # It may be replaced on the way; a ConfigMap's volume takes away what its links led to a moment ago.
                with suppress(FileRefused):
                    return _find_beneath(directory, path.name)
            return _find_beneath(directory, path.name)
    except FileRefused as error:
        return Unreadable(str(error), odd=True)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return None
        return Unreadable(words(error, needed="read"))


def replace(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Writes a file in one step, under a new name that then becomes its own.

    Args:
        path: the file; only a regular one with one name is replaced.
        content: what it holds then.
        mode: its permission bits, less the umask.

    Raises:
        FileRefused: something else has its name.
        OSError: it cannot be written.
    """
    with _opened(path.parent) as directory:
        _refuse_odd(directory, path.name)
        temporary, descriptor = _make(directory, f".{path.name}.new", mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise


def move(source: Path, target: Path, *, only: Found | None = None) -> None:
    """Renames a file, over another one if there is one; both are regular and have one name.

    Args:
        source: the file.
        target: what it becomes.
        only: the file that it must be; None: any.

    Raises:
        FileRefused: one of them is anything else.
        OSError: it cannot be renamed; a FileNotFoundError if it is not there any more.
    """
    with _opened(source.parent) as here, _opened(target.parent) as there:
        status = _refuse_odd(here, source.name)
        if status is None or (only and only.identity != (status.st_dev, status.st_ino)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        _refuse_odd(there, target.name)
        os.rename(source.name, target.name, src_dir_fd=here, dst_dir_fd=there)


def put(source: Path, target: Path) -> None:
    """Renames a file to a name beside it, and what had that name to the first one, in one step.

    Where the file system knows no such step, what had the name is lost.

    Raises:
        FileRefused: what has the name is not a regular file with one name.
        OSError: it cannot be renamed.
    """
    with _opened(source.parent) as directory:
        _refuse_odd(directory, target.name)
        for flags in (_RENAME_NOREPLACE, _RENAME_EXCHANGE, _RENAME_NOREPLACE):
            number = _renameat2(directory, source.name, target.name, flags)
            if number == 0:
                return
            if number in {errno.EINVAL, errno.ENOSYS}:
                os.rename(source.name, target.name, src_dir_fd=directory, dst_dir_fd=directory)
                return
            if number not in {errno.EEXIST, errno.ENOENT}:
                break
    raise OSError(number, os.strerror(number), str(target))


def clear(path: Path) -> None:
    """Takes a name away, whatever has it; what it leads to, or is called otherwise too, is not touched.

    Raises:
        FileRefused: it is a directory with something in it.
        OSError: it cannot be taken away.
    """
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        try:
            path.rmdir()
        except OSError as error:
            message = f"{path.name} is a directory with something in it; remove it"
            raise FileRefused(message) from error


def _renameat2(directory: int, source: str, target: str, flags: int) -> int:
    """renameat2(2), which Python does not have; 0 or the error's number."""
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    done: int = rename(directory, os.fsencode(source), directory, os.fsencode(target), flags)
    return 0 if done == 0 else ctypes.get_errno()


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _find_beneath(top: int, name: str) -> Found:
    """Walks to a file by its directories, following links by hand: they may change at any moment.

    Raises:
        FileRefused: it is not a file to be read.
        OSError: it cannot be read.
    """
    left, above, links = [name], [top], 0
    try:
        while left:
            part = left.pop()
            if part == "..":
                if len(above) == 1:
                    raise FileRefused(_LEADS_OUT)
                os.close(above.pop())
                continue
            status = os.stat(part, dir_fd=above[-1], follow_symlinks=False)
            if S_ISLNK(status.st_mode):
                links += 1
                left += _steps_of_link(part, above[-1], links)
            elif left:
                above.append(os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above[-1]))
            else:
                return _find(above[-1], part, status)
    except FileNotFoundError as error:
        if links:
            raise FileRefused(_LEADS_NOWHERE) from error
        raise
    finally:
        for descriptor in above[1:]:
            os.close(descriptor)
    raise FileRefused(_NOT_REGULAR)


def _steps_of_link(name: str, directory: int, links: int) -> list[str]:
    """The names on the way that a link gives, the last one first.

    Raises:
        FileRefused: it is one link too many, or leads out of the directory.
        OSError: it cannot be read.
    """
    target = os.readlink(name, dir_fd=directory)
    if links > _LINKS_MAX:
        raise FileRefused(_ENDLESS)
    if target.startswith("/"):
        raise FileRefused(_LEADS_OUT)
    return [piece for piece in reversed(target.split("/")) if piece not in {"", "."}]


def _find(directory: int, name: str, seen: os.stat_result) -> Found:
    # Before it is opened too: opening a device can do something.
    _refuse_irregular(seen, _NOT_REGULAR)
    descriptor = os.open(name, _READ, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not os.path.samestat(status, seen):
            raise FileRefused(_REPLACED)
        _refuse_irregular(status, _NOT_REGULAR)
        if _was_renamed_just_now(status):
            time.sleep(_TICK_NS / 1e9)
            raise FileRefused(_REPLACED)
        chunks = []
        left = FILE_MAX_BYTES + 1
        while left > 0 and (chunk := os.read(descriptor, left)):
            chunks.append(chunk)
            left -= len(chunk)
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if os.path.samestat(named, status):
            _refuse_irregular(named, _NOT_REGULAR)
        after = os.fstat(descriptor)
        if after.st_ctime_ns != status.st_ctime_ns and after.st_mtime_ns == status.st_mtime_ns:
            raise FileRefused(_REPLACED)
        # Replaced meanwhile, it has no name either; but then another file has that.
        detached = seen.st_nlink == 0 and named.st_nlink == 0
        return Found(b"".join(chunks), status.st_mtime_ns, (status.st_dev, status.st_ino), detached)
    finally:
        os.close(descriptor)


def _was_renamed_just_now(status: os.stat_result) -> bool:
    """Whether a file that was written earlier got a name, or lost one, so lately that its next change may not show.

    Its number of names can change between any two looks: a link to a file of others, which was in this place a moment
    ago, has one name again once it is replaced. But each such change sets its ctime, in steps of the kernel's clock.
    """
    lately_ns = time.time_ns() - status.st_ctime_ns
    return abs(lately_ns) < _TICK_NS and status.st_ctime_ns - status.st_mtime_ns >= _TICK_NS


def _make(directory: int, name: str, mode: int) -> tuple[str, int]:
    """Makes a file that nobody had before: under a name, or under a fresh one if that is held by a directory.

    What a killed agent left there goes. What anybody else did goes too: the name, not what it leads to.

    Raises:
        OSError: it cannot be made.
    """
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)
    try:
        return name, os.open(name, _MAKE, mode, dir_fd=directory)
    except FileExistsError:
        name = f"{name}.{os.urandom(8).hex()}"
        return name, os.open(name, _MAKE, mode, dir_fd=directory)


def _refuse_odd(directory: int, name: str) -> os.stat_result | None:
    """What a file to be replaced or renamed is; None: it is not there.

    Raises:
        FileRefused: there is something that is not a regular file with one name.
        OSError: it cannot be looked at.
    """
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    _refuse_irregular(status, f"{name} is not a regular file; remove it")
    return status


def _refuse_irregular(status: os.stat_result, not_regular: str) -> None:
    if not S_ISREG(status.st_mode):
        raise FileRefused(not_regular)
    if status.st_nlink > 1:
        message = f"a file with {status.st_nlink} names (hard links); put a copy in its place"
        raise FileRefused(message)
