"""The place of the gRPC socket on disk: one agent per path, and nothing outside of the directory is ever touched."""

import errno
import os
import socket
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from vdpa_agent.config import ServeConfig
from vdpa_agent.errors import REMEDIES, ListenError
from vdpa_agent.model.health import Standing
from vdpa_agent.node.guarded import refuse_descriptors
from vdpa_agent.node.kinds import kind_of
from vdpa_agent.node.lock import Held, Lock, held_open, is_at
from vdpa_agent.rpc.limits import BACKLOG

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Place:
    """The socket's path and the lock beside it.

    Everything here may block, as any file system may, and is to be done by a `Worker`. Whoever may write to the
    directory is not trusted: links are not followed, and the socket appears by rename, complete, out of a directory
    that nobody else can enter.

    Attributes:
        bound: the socket that listens at the path; another one after it had to be made again. Whoever takes it closes
            it.
    """

    def __init__(self, config: ServeConfig) -> None:
        """Opens nothing yet."""
        self.bound: socket.socket | None = None
        self._config = config
        self._path = config.listen
        self._lock = Lock(config.listen.with_name(f"{config.listen.name}.lock"), config.listen, "--listen")
        self._socket: Held | None = None

    def take(self) -> None:
        """Holds the lock, and listens at the path; what is as it should be is left alone.

        Raises:
            AlreadyRunning: another instance holds the lock.
            ListenError: it cannot be done; the message says what is in the way.
        """
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise _listen_error(self._path, error) from error
        self._lock.take()
        if not is_at(self._path, self._socket):
            self._bind()

    def look(self) -> Standing:
        """What is wrong with the place; `take` puts right what is not beyond the agent."""
        directory = self._path.parent
        try:
            descriptor = os.open(directory, _DIRECTORY)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                return Standing(not_ready=f"the directory {directory} is gone: {_reason(error)}")
            remedy = "give the agent what the reason names"
            return Standing(not_ready=f"the directory {directory} cannot be looked at: {_reason(error)}; {remedy}")
        try:
            linked = os.fstat(descriptor).st_nlink
        finally:
            os.close(descriptor)
        if not linked:
            # It is a mount whose source was removed: nothing can be made in it any more.
            reason = f"the directory {directory} was removed while it is mounted; only a new container can fix that"
            return Standing(not_ready=reason, not_live=reason)
        if not self._lock.is_held():
            return Standing(not_ready=f"{self._lock.path} was removed or replaced by another process")
        if not is_at(self._path, self._socket):
            return Standing(not_ready=f"{self._path} was removed or replaced by another process")
        return Standing()

    def leave(self) -> None:
        """Takes the socket away, if it is still this one, and frees the lock."""
        with suppress(OSError):
            if is_at(self._path, self._socket):
                self._path.unlink()
        if self._socket is not None:
            os.close(self._socket.descriptor)
            self._socket = None
        self._lock.leave()

    def _bind(self) -> None:
        """Listens at the path, in place of a socket that is there."""
        with ExitStack() as undo:
            try:
                bound, held = self._made(undo)
            except OSError as error:
                raise _listen_error(self._path, error) from error
        if self._socket is not None:
            os.close(self._socket.descriptor)
        self.bound, self._socket = bound, held

    def _made(self, undo: ExitStack) -> tuple[socket.socket, Held]:
        config, path = self._config, self._path
        with suppress(FileNotFoundError):
            _refuse_no_socket(path)
        parent = os.open(path.parent, _DIRECTORY)
        undo.callback(os.close, parent)
        name = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)).name
        undo.callback(_remove_directory, name, parent)
        private = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        undo.callback(os.close, private)
        found = os.fstat(private)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "another process interferes")
        undo.callback(_remove, path.name, private)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        failed = undo.enter_context(ExitStack())
        failed.callback(bound.close)
        # By the descriptor: the directory's name may lead elsewhere by now.
        bound.bind(f"/proc/self/fd/{private}/{path.name}")
        if config.listen_group is not None:
            os.chown(path.name, -1, config.listen_group, dir_fd=private, follow_symlinks=False)
        os.chmod(path.name, config.listen_mode, dir_fd=private)
        refuse_descriptors(bound)
        bound.listen(BACKLOG)
        # While it is open, no other file can get the inode's number.
        descriptor = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=private)
        failed.callback(os.close, descriptor)
        held = held_open(descriptor)
        os.rename(path.name, path.name, src_dir_fd=private, dst_dir_fd=parent)
        failed.pop_all()
        return bound, held


def _refuse_no_socket(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        message = f"--listen: {path}: {kind_of(found)} is there, not a socket; move it away, or choose another --listen"
        raise ListenError(message)


def _remove(name: str, directory: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)


def _remove_directory(name: str, directory: int) -> None:
    with suppress(OSError):
        os.rmdir(name, dir_fd=directory)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()


def _listen_error(path: Path, error: OSError) -> ListenError:
    remedy = REMEDIES.get(error.errno or 0, "the agent needs a directory that it can write to")
    return ListenError(f"--listen: {path}: {_reason(error)}; {remedy}")
