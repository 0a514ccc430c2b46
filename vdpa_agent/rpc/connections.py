"""Connections: takes them, looks after them, and parts from those that stay."""

import asyncio
import socket
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Any, Final

from vdpa_agent.node.guarded import Closers, GuardedSocket, refuses_descriptors
from vdpa_agent.rpc.acceptor import Acceptor
from vdpa_agent.rpc.connection import Connection
from vdpa_agent.rpc.handled import Handled
from vdpa_agent.rpc.limits import Patience
from vdpa_agent.rpc.nghttp2 import give_back, load
from vdpa_agent.rpc.peers import Peers
from vdpa_agent.rpc.room import Room
from vdpa_agent.rpc.services import Services

_AT_ONCE: Final = 64
_LET_IN_AT_ONCE: Final = 8
"""Connections that are taken, and of them let in, before those that are open have their turn."""

_LAST_WORDS_S: Final = 0.2
"""How long running calls may take to end by themselves before they are cancelled."""

_CLOSE_S: Final = 1.0
"""How long the closing of connections may take; a client that reads nothing holds its own up."""

_HELD_MAX: Final = 512
"""Closes that have not ended before no more connections are taken; each is a thread. Kernels since 6.16 have none."""

_CROWD: Final = 32
"""After so many connections at once, the memory that they had is given back."""

_LOOK_S: Final = 1.0
"""How often connections are looked at for what takes too long."""


class Connections:
    """All open connections of a listening socket, also of one that takes the place of another."""

    def __init__(self, services: Collection[Any], peers: Peers, patience: Patience = Patience()) -> None:  # noqa: B008
        """Listens nowhere yet.

        Args:
            services: what can be called.
            peers: the accounts.
            patience: how long a connection may take.

        Raises:
            LibraryMissing: HTTP/2 cannot be spoken.
        """
        load()
        self._services = Services(services)
        self._peers = peers
        self._patience = patience
        self._room = Room()
        self._open: set[Connection] = set()
        self._most = 0
        self._all_gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._closers = Closers()
        self._may_carry = True
        self._bound: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._looks: asyncio.TimerHandle | None = None

    @property
    def handled(self) -> Handled:
        """How the calls of all of them ended."""
        return self._services.handled

    def listen(self, bound: socket.socket) -> None:
        """Takes connections of a socket that listens, and of the one before no more; those that are open go on.

        Args:
            bound: the socket, which is closed when its time is over.
        """
        self._unlisten()
        bound.settimeout(0)
        self._bound = bound
        self._may_carry = not refuses_descriptors(bound)
        self._acceptor = Acceptor(bound, self._let_in, at_once=_LET_IN_AT_ONCE, most=_AT_ONCE, full=self._full)
        self._acceptor.start()

    async def end(self) -> None:
        """Takes no new connection, ends running calls, and closes every connection."""
        self._unlisten()
        for connection in list(self._open):
            connection.go_away()
        # Who was told at the last moment still gets to send it.
        calls = [task for connection in self._open for task in connection.running]
        if calls:
            await asyncio.wait(calls, timeout=_LAST_WORDS_S)
        for connection in list(self._open):
            connection.close()
        if self._open:
            self._all_gone.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._all_gone.wait()
        for connection in list(self._open):
            connection.abort()
        if calls:
            await asyncio.wait(calls, timeout=_CLOSE_S)  # those that were cancelled
        if self._looks is not None:
            self._looks.cancel()

    def _unlisten(self) -> None:
        if self._acceptor is None or self._bound is None:
            return
        self._acceptor.end()
        with suppress(OSError):
            self._bound.shutdown(socket.SHUT_RDWR)
        # Who still waits to be accepted may have sent descriptors.
        self._closers.close(self._bound.detach())
        self._acceptor = self._bound = None

    def _full(self) -> str:
        return "too many connections with descriptors wait to be closed" if self._closers.held >= _HELD_MAX else ""

    def _let_in(self, plain: socket.socket) -> bool:
        peer = self._peers.identify(plain)
        account = self._peers.account_of(peer)
        stays = self._peers.enter(peer, account)
        if not stays and not self._may_carry:
            plain.close()
            self._peers.leave(account)
            return False
        connected = GuardedSocket(plain, self._closers, may_carry=self._may_carry)
        connected.ended = partial(self._peers.leave, account)
        if not stays:
            connected.close()
            return False
        connection = Connection(
            connected,
            self._services,
            self._peers,
            peer,
            account,
            room=self._room,
            patience=self._patience,
            gone=self._forget,
        )
        self._open.add(connection)
        self._most = max(self._most, len(self._open))
        connection.start()
        if self._looks is None:
            self._looks = self._loop.call_later(_LOOK_S, self._look)
        return True

    def _look(self) -> None:
        self._looks = self._loop.call_later(_LOOK_S, self._look) if self._open or self._most >= _CROWD else None
        now_s = self._peers.clock()
        for connection in list(self._open):
            connection.look(now_s)
        if self._most >= _CROWD and len(self._open) < _CROWD // 2:
            self._most = len(self._open)
            give_back()

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_gone.set()
