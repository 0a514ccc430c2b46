"""Worker: does what may block, one job at a time, in a thread that nobody has to wait for."""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from vdpa_agent.errors import NoThread
from vdpa_agent.node.mounts import on_mounts

T = TypeVar("T")

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]

_FIRST_PAUSE_S: Final = 1.0
"""How long a thread must have hung before it is given up; each further one twice as long as the one before."""

_AFTER_MOUNT: Final = 1 / 8
"""Which part of the pause is enough once something was mounted or unmounted: that may be what it takes."""

_GIVEN_UP_MAX: Final = 16
"""So many threads of a worker hang at most beside the present one: since pauses double, the last waits for hours."""


class Stuck(Exception):
    """The job was not done in time; the message says why and what to do. It may end later."""


class _GivenUp(BaseException):
    """Is raised in a thread that was given up, as soon as the call that holds it returns: it does nothing more."""


class _Hand:
    """A daemon thread that does jobs one after the other."""

    def __init__(self, name: str) -> None:
        """Starts the thread.

        Raises:
            RuntimeError: the machine has none left.
        """
        self.current: asyncio.Future[Any] | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    @property
    def is_busy(self) -> bool:
        """Whether a job has not ended."""
        return self.is_alive and self.current is not None and not self.current.done()

    def do(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        """Has a job done."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self.current = done
        self._jobs.put((job, done, loop))
        return done

    def give_up(self) -> None:
        """Has the thread end as soon as it can; of its job it does no further step."""
        self._jobs.put(None)
        if self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(_GivenUp))

    def _work(self) -> None:
        with suppress(MemoryError, _GivenUp):  # the next job gets another thread
            self._work_on()

    def _work_on(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, done, loop = given
            try:
                result, error = job(), None
            except BaseException as raised:  # noqa: BLE001 - it is raised where the job was wanted
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_settle, done, result, error)
            except RuntimeError:
                return  # the loop is closed: the process ends
            # A result is not to be held until the next job comes.
            del given, job, done, result, error


class Worker:
    """A thread with one job at a time, which is given up for another one when it hangs.

    A file system that does not answer holds the thread, never the event loop, and never the end of the process. While
    it is held, every further job is refused at once, so that nothing piles up behind it; but now and then one is
    tried by a new thread, since what hangs may have been replaced. A job whose caller was cancelled is waited for.
    """

    def __init__(self, name: str) -> None:
        """Starts no thread yet.

        Args:
            name: the thread's, for those who look at the process.
        """
        self._name: Final = name
        self._hand: _Hand | None = None
        self._given_up: list[_Hand] = []
        self._hangs = False
        self._tried_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._mounted = asyncio.Event()
        self._watching = ExitStack()

    async def run(self, job: Callable[[], T], *, timeout_s: float) -> T:
        """Returns what `job` returns, or raises what it raises.

        Cancellation leaves the job to its thread.

        Args:
            job: called in the thread.
            timeout_s: how long to wait for it, in seconds.

        Raises:
            Stuck: it did not end in time, the job before it has not ended yet, or the machine has no thread for it.
        """
        hand = await self._free_hand(timeout_s)
        done = hand.do(job)
        await asyncio.wait({done}, timeout=timeout_s)
        if not done.done():
            raise self._stuck(timeout_s)
        self._recovered()
        return done.result()

    async def _free_hand(self, timeout_s: float) -> _Hand:
        """A thread that has nothing else to do.

        Raises:
            Stuck: there is none.
        """
        hand = self._hand
        if hand is not None and hand.is_busy and hand.current is not None:
            if not self._hangs:  # its caller was cancelled
                await asyncio.wait({hand.current}, timeout=timeout_s)
            if hand.is_busy:
                if not self._is_due():
                    raise self._stuck(timeout_s)
                hand.give_up()
                self._given_up.append(hand)
                self._hand = hand = None
                self._pause_s *= 2
                self._mounted.clear()
                self._hangs = False
        if hand is None or not hand.is_alive:
            try:
                self._hand = hand = _Hand(self._name)
            except RuntimeError as error:
                raise Stuck(str(NoThread())) from error
        return hand

    def _stuck(self, timeout_s: float) -> Stuck:
        """The thread hangs; from now on another one is due some time."""
        if not self._hangs:
            self._hangs = True
            self._tried_s = asyncio.get_running_loop().time()
            self._watching.close()
            self._watching.enter_context(on_mounts(self._mounted.set))
        remedy = "see to the mount below it"
        if not self._has_room():
            remedy += f", and start the agent again if that was replaced: {_GIVEN_UP_MAX + 1} threads hang"
        return Stuck(f"the file system does not answer within {timeout_s:g} s; {remedy}")

    def _recovered(self) -> None:
        self._hangs = False
        self._pause_s = _FIRST_PAUSE_S
        self._mounted.clear()
        self._watching.close()

    def _is_due(self) -> bool:
        """Whether a thread that hangs is to be given up now."""
        if not self._hangs or not self._has_room():
            return False
        pause_s = self._pause_s * _AFTER_MOUNT if self._mounted.is_set() else self._pause_s
        return asyncio.get_running_loop().time() >= self._tried_s + pause_s

    def _has_room(self) -> bool:
        self._given_up = [hand for hand in self._given_up if hand.is_alive]
        return len(self._given_up) < _GIVEN_UP_MAX


def _settle(done: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
        done.exception()  # whoever waited may be gone
