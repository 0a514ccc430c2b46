"""Reaper: takes the ends of orphans, and ends those that the daemon left behind."""

import asyncio
import ctypes
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from vdpa_agent.daemon.child import RLIMIT_LOCKS, Child, read_mark

_PR_SET_CHILD_SUBREAPER: Final = 36
"""Of linux/prctl.h: orphans among the descendants of the process become its children, as they do with process 1."""

_PAUSE_S: Final = 0.02
"""How long children that end are gathered before they are looked at."""

_LAST_LOOKS: Final = 50
"""How often, with that pause, the end of the agent looks for what the daemon left."""

log = structlog.get_logger(__name__)


class Reaper:
    """Reaps every child of this process that is not the daemon; the daemon's end is left to its `Child`."""

    def __init__(self) -> None:
        self._own: dict[int, Child] = {}
        self._pause: asyncio.TimerHandle | None = None

    def own(self, child: Child) -> Child:
        """Makes a child known before the event loop goes on; returns it."""
        self._own[child.pid] = child
        child.exited.add_done_callback(lambda _: self.end_leftovers())
        return child

    def start(self) -> None:
        """Begins to reap."""
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            log.warning("orphans_not_adopted", reason=os.strerror(ctypes.get_errno()).lower())
        elif resource.getrlimit(RLIMIT_LOCKS)[1] != resource.RLIM_INFINITY:
            log.warning("orphans_not_adopted", reason="a hard limit of file locks is set, by which they would be known")
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._child_ended)
        # Each signal is a byte in a socket of the loop. Where a thousand orphans have filled it, the loop is awake, and
        # looks at all of them; Python need not print that there was no room.
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
        self._look()

    def stop(self) -> None:
        """Reaps no more."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        if self._pause is not None:
            self._pause.cancel()

    def end_leftovers(self) -> bool:
        """Kills what daemons that have ended left, even in sessions of its own; whether there was any.

        Their children become ours when they end, which SIGCHLD reports.
        """
        alive = self._alive()
        living_marks = {child.mark for child in alive.values()}
        found = False
        for pid in _children():
            mark = None if pid in alive else read_mark(pid)
            if mark is None or mark in living_marks:
                continue  # as process 1 we also get the orphans of who came into the container: those have no mark
            with suppress(PermissionError):
                os.kill(pid, signal.SIGKILL)  # only we can reap it: the number is still its own
                found = True
        return found

    def _alive(self) -> dict[int, Child]:
        self._own = {pid: child for pid, child in self._own.items() if not child.reaped}
        return self._own

    def _child_ended(self) -> None:
        if self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(_PAUSE_S, self._look)

    def _look(self) -> None:
        """Reaps all that have ended; who ends from now on is told by a signal."""
        self._pause = None
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if child := self._alive().get(ended.si_pid):
                    child.reap()
                else:
                    os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)
        self.end_leftovers()


@asynccontextmanager
async def reaping() -> AsyncIterator[Reaper]:
    """A Reaper at work; at the end, which must be after that of the daemon, nothing of it is left."""
    reaper = Reaper()
    reaper.start()
    try:
        yield reaper
    finally:
        try:
            for _ in range(_LAST_LOOKS):
                if not reaper.end_leftovers():
                    break
                await asyncio.sleep(_PAUSE_S)
        finally:
            reaper.stop()


def _children() -> list[int]:
    """The processes whose parent we are; none where the kernel does not list them, or no descriptor is left to look."""
    children: list[int] = []
    with suppress(OSError):
        for path in Path("/proc/self/task").glob("*/children"):
            children += map(int, path.read_text().split())
    return children
