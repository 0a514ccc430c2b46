"""Acceptor: takes the connections of a listening socket, and rests while there is no descriptor or memory for one."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

import structlog

_AGAIN_S: Final = 1.0
"""When connections are taken again after there was no descriptor or memory left for one."""

_TELL_AGAIN_S: Final = 10.0

_OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger(__name__)


class Acceptor:
    """In place of asyncio's server, which takes as many at once as may wait, and makes a transport for each."""

    def __init__(
        self,
        bound: socket.socket,
        let_in: Callable[[socket.socket], bool],
        *,
        at_once: int,
        most: int,
        full: Callable[[], str] = str,
    ) -> None:
        """Takes none yet.

        Args:
            bound: listens, and does not block.
            let_in: is given each connection; whether it stays, else it has been closed.
            at_once: connections that stay, before those that are open have their turn.
            most: the same with those that do not.
            full: why none can be taken now; empty: they can.
        """
        self._bound = bound
        self._let_in = let_in
        self._at_once = at_once
        self._most = most
        self._full = full
        self._loop = asyncio.get_running_loop()
        self._told_s = self._loop.time() - _TELL_AGAIN_S
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Takes connections."""
        self._loop.add_reader(self._bound, self._take)

    def end(self) -> None:
        """Takes no more."""
        self._loop.remove_reader(self._bound)
        if self._again is not None:
            self._again.cancel()

    def _take(self) -> None:
        stayed = 0
        for _ in range(self._most):
            if reason := self._full():
                self._rest(reason)
                return
            try:
                connected, _address = self._bound.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF:
                    raise
                self._rest(os.strerror(error.errno).lower())
                return
            stayed += self._let_in(connected)
            if stayed == self._at_once:
                return

    def _rest(self, reason: str) -> None:
        """Takes none for a while: the socket would stay readable, and the loop be busy with that alone."""
        self._loop.remove_reader(self._bound)
        self._again = self._loop.call_later(_AGAIN_S, self.start)
        if self._loop.time() - self._told_s >= _TELL_AGAIN_S:
            self._told_s = self._loop.time()
            log.error(
                "connections_not_accepted",
                reason=reason,
                remedy="see who keeps so many connections open, or raise the limit of open files",
            )
