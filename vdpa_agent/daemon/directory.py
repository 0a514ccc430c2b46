"""SocketDirectory: makes and looks at the directory of the sockets, off the event loop, for all daemons."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from vdpa_agent.errors import AgentError, AlreadyRunning, ListenError, SocketDirUnusable
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.node.lock import Lock
from vdpa_agent.node.sockets import FileId, file_at, lost_sockets, make_directory, remove_stale_sockets
from vdpa_agent.node.worker import Stuck, Worker

T = TypeVar("T")

_DISK_S: Final = 2.0
"""How long the file system of the sockets may take to answer."""

_LOCK: Final = ".vdpa-agent.lock"
"""The file in the directory that the agent which has it holds locked."""

log = structlog.get_logger(__name__)


class SocketDirectory:
    """The directory of the sockets; one job at a time, and each waits for its turn.

    Methods raise Stuck where the file system does not answer, unless they say otherwise.

    Attributes:
        touched: changes after each change in it.
        silence: why its sockets cannot be promised now; empty where it answered last. Nothing else writes it.
    """

    def __init__(self, path: Path, steps: DestructiveSteps, touched: Latest[int]) -> None:
        """Touches nothing yet.

        Args:
            path: the directory.
            steps: where removed sockets are counted.
            touched: changes after each change in it.
        """
        self.touched = touched
        self.silence = Latest("")
        self._path = path
        self._steps = steps
        self._files: dict[str, FileId] = {}
        self._paths: dict[FileId, str] = {}
        self._worker = Worker("sockets")
        self._turn = asyncio.Lock()
        # In the directory itself, so that it is the same one by whatever path or mount an agent comes to it.
        self._lock = Lock(path / _LOCK, path, "--socket-dir", makes_directory=False)
        self._not_locked = ""

    async def claim(self) -> None:
        """Makes it, and keeps other agents from it until `leave`.

        Raises:
            AlreadyRunning: another agent has it.
        """
        with suppress(Stuck, SocketDirUnusable):  # each start tries again, and reports it
            self._note(await self._do(self._made))

    async def make(self) -> None:
        """Makes it, should it be gone.

        Raises:
            SocketDirUnusable: it cannot be made, something else has its name, another agent has it, or its file system
                does not answer.
        """
        try:
            self._note(await self._do(self._made))
        except Stuck as error:
            raise SocketDirUnusable(self._words(error)) from error
        except AlreadyRunning as error:
            raise SocketDirUnusable(str(error)) from error

    async def leave(self) -> None:
        """Lets another agent have it."""
        await self._do(self._lock.leave)

    async def remove_stale(self, names: Collection[str] | None = None) -> None:
        """Removes the sockets of daemons that ended.

        Args:
            names: the only ones to look at; None: all. A daemon that starts is for a moment as deaf as one that ended.
        """
        for socket in await self._do(partial(remove_stale_sockets, self._path, names)):
            self._steps[Destructive.STALE_SOCKET_REMOVED] += 1
            log.warning("stale_socket_removed", socket=socket)

    async def problem(self, path: str, file: FileId | None) -> str:
        """Why a socket that a daemon has just acknowledged is not to be served; empty if it is what the daemon says.

        Args:
            path: where it should be.
            file: which file it is, as the daemon says; None: it does not say.
        """
        if file is None:
            return "the daemon did not say which file its socket is (socket_file); install the vdpad of this agent"
        twin = self._paths.get(file)
        if twin in {path, None}:
            self._claim(path, file)
            twin = None

        def look() -> str:
            if reason := lost_sockets({path: file}).get(path):
                return reason
            return f"the socket file {path} is that of {twin} as well" if twin and file_at(twin) == file else ""

        try:
            reason = await self._do(look)
        except Stuck as error:
            reason = self._words(error)
        if twin and not reason:  # it was the socket of another path, which is gone
            self._claim(path, file)
        return reason

    def _claim(self, path: str, file: FileId) -> None:
        """Remembers which file a path leads to, and that of before no more."""
        before = self._files.get(path)
        if before is not None and self._paths.get(before) == path:
            del self._paths[before]
        self._files[path] = file
        self._paths[file] = path

    async def lost(self, sockets: Mapping[str, FileId | None]) -> dict[str, str]:
        """Of these sockets, those that cannot be connected to or were replaced, each with the reason.

        Args:
            sockets: the paths, each with the file that it must be; None: it is not known which.
        """
        lost, not_locked = await self._do(partial(self._looked, sockets))
        self._note(not_locked)
        return lost

    def _made(self) -> str:
        make_directory(self._path)
        return self._locked()

    def _looked(self, sockets: Mapping[str, FileId | None]) -> tuple[dict[str, str], str]:
        lost = lost_sockets(sockets)
        try:
            # What another process took away is made again, but no directory: that has another reason.
            not_locked = self._locked() if self._path.is_dir() and not self._path.is_symlink() else ""
        except AlreadyRunning as error:
            not_locked = str(error)
        return lost, not_locked

    def _locked(self) -> str:
        """Holds the lock; why it cannot, empty if it does.

        Raises:
            AlreadyRunning: another agent holds it.
        """
        try:
            self._lock.take()
        except AlreadyRunning:
            raise
        except ListenError as error:
            return str(error)  # where this agent cannot write, it replaces nothing of another one either
        return ""

    def _note(self, not_locked: str) -> None:
        if not_locked and not_locked != self._not_locked:
            log.warning("socket_dir_not_locked", reason=not_locked)
        self._not_locked = not_locked

    async def _do(self, job: Callable[[], T]) -> T:
        async with self._turn:
            try:
                done = await self._worker.run(job, timeout_s=_DISK_S)
            except Stuck as error:
                self._set_problem(self._words(error))
                raise
            except AgentError:
                self._set_problem("")  # it answers
                raise
            self._set_problem("")
            return done

    def _set_problem(self, problem: str) -> None:
        if problem and not self.silence.value:
            log.warning("socket_dir_silent", reason=problem)
        elif self.silence.value and not problem:
            log.info("socket_dir_answers", directory=str(self._path))
        self.silence.set(problem)

    def _words(self, stuck: Stuck) -> str:
        return f"the socket directory {self._path}: {stuck}"
