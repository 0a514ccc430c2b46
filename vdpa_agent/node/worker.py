"""Worker: does what may block, one job at a time, in a thread that nobody has to wait for."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from vdpa_agent.errors import NoThread

T = TypeVar("T")

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Stuck(Exception):
    """The job was not done in time; the message says why and what to do. It may end later."""


class Worker:
    """A daemon thread with one job at a time.

    A file system that does not answer holds the thread, never the event loop, and never the end of the process. While
    it is held, every further job is refused at once, so that nothing piles up behind it. A job whose caller was
    cancelled is waited for.
    """

    def __init__(self, name: str) -> None:
        """Starts no thread yet.

        Args:
            name: the thread's, for those who look at the process.
        """
        self._name: Final = name
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: asyncio.Future[Any] | None = None
        self._hangs = False

    async def run(self, job: Callable[[], T], *, timeout_s: float) -> T:
        """Returns what `job` returns, or raises what it raises.

        Cancellation leaves the job to its thread.

        Args:
            job: called in the thread.
            timeout_s: how long to wait for it, in seconds.

        Raises:
            Stuck: it did not end in time, the job before it has not ended yet, or the machine has no thread for it.
        """
        hung = f"the file system does not answer within {timeout_s:g} s; see to the mount below it"
        alive = self._thread is not None and self._thread.is_alive()
        if alive and self._current is not None and not self._current.done():
            if not self._hangs:  # its caller was cancelled
                await asyncio.wait({self._current}, timeout=timeout_s)
            if not self._current.done():
                self._hangs = True
                raise Stuck(hung)
        if not alive:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:
                raise Stuck(str(NoThread())) from error
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._current = done
        self._jobs.put((job, done, loop))
        self._hangs = False
        await asyncio.wait({done}, timeout=timeout_s)
        if not done.done():
            self._hangs = True
            raise Stuck(hung)
        return done.result()

    def _work(self) -> None:
        with suppress(MemoryError):  # the next job gets another thread
            self._work_on()

    def _work_on(self) -> None:
        while True:
            job, done, loop = self._jobs.get()
            try:
                result, error = job(), None
            except BaseException as raised:  # noqa: BLE001 - it is raised where the job was wanted
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_settle, done, result, error)
            except RuntimeError:
                return  # the loop is closed: the process ends
            # A result is not to be held until the next job comes.
            del job, done, result, error


def _settle(done: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
        done.exception()  # whoever waited may be gone
