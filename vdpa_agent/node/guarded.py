"""Unix sockets whose peer may pass descriptors: none is ever taken, and none is closed on the event loop.

The last close of a passed file is the receiver's: it may wait for a lingering TCP connection, or for a file system that
does not answer. So nothing that carries a descriptor is read, and what still carries one is closed by a thread.
"""

import asyncio
import fcntl
import os
import select
import socket
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_SO_PASSRIGHTS: Final = 83
"""From Linux' asm-generic/socket.h, since 6.16; Python has no name for it."""

_ROOM_BYTES: Final = 64 * 1024
_ROOMS_MAX: Final = 16
"""How much of what is left of a connection is read, in pieces, to see that it carries no descriptor."""

_AGAIN_S: Final = 1.0
"""When a thread is tried again after the machine had none left."""


class DescriptorsPassed(ConnectionError):
    """The peer passes descriptors with what would be read next, or right after it; nothing of it was read."""


def refuse_descriptors(bound: socket.socket) -> None:
    """Has the kernel refuse descriptors at their sender, for all connections of a listening socket.

    Kernels before 6.16 cannot: there a `GuardedSocket` is all the guard.
    """
    with suppress(OSError):
        bound.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def refuses_descriptors(bound: socket.socket) -> bool:
    """Whether the kernel refuses descriptors for all connections of a listening socket: none need be looked for."""
    try:
        return bound.getsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS) == 0
    except OSError:
        return False


class Closers:
    """Closes what may block, each in a thread of its own that nobody waits for.

    Attributes:
        held: how many closes have not ended.
    """

    def __init__(self) -> None:
        self.held = 0
        self.room = bytearray(_ROOM_BYTES)
        self._loop = asyncio.get_running_loop()

    def close(self, descriptor: int, ended: Callable[[], None] = lambda: None) -> None:
        """Closes a descriptor in a thread; `ended` is called on the event loop when that is done."""
        self.held += 1
        self._start(descriptor, ended)

    def _start(self, descriptor: int, ended: Callable[[], None]) -> None:
        try:
            threading.Thread(target=self._close, args=(descriptor, ended), name="closer", daemon=True).start()
        except RuntimeError:  # the machine has no thread left
            self._loop.call_later(_AGAIN_S, self._start, descriptor, ended)

    def _close(self, descriptor: int, ended: Callable[[], None]) -> None:
        with suppress(OSError):
            os.close(descriptor)
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._ended, ended)

    def _ended(self, ended: Callable[[], None]) -> None:
        self.held -= 1
        ended()


class GuardedSocket:
    """A connected unix stream socket that does not block, in place of the plain one.

    Attributes:
        ended: is called once, on the event loop, when nothing of the connection is left in the kernel.
    """

    __slots__ = ("_closers", "_may_carry", "_socket", "ended", "send")

    def __init__(self, connected: socket.socket, closers: Closers, *, may_carry: bool = True) -> None:
        """Takes a socket over.

        Args:
            connected: the socket.
            closers: close it if something is left in it.
            may_carry: whether descriptors may be in it; else it is a plain socket.
        """
        connected.settimeout(0)
        if may_carry:
            # An out-of-band byte is thrown away by a plain read, and its descriptors with it.
            with suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._socket = connected
        self._closers = closers
        self._may_carry = may_carry
        self.ended: Callable[[], None] = lambda: None
        self.send = connected.send

    def fileno(self) -> int:
        """As of a plain socket."""
        return self._socket.fileno()

    def recv_into(self, buffer: Any, nbytes: int = 0) -> int:
        """As of a plain socket.

        Raises:
            DescriptorsPassed: what comes next carries descriptors.
        """
        if not self._may_carry:
            return self._socket.recv_into(buffer, nbytes)
        room = memoryview(buffer)[:nbytes] if nbytes else buffer
        # There is no room for descriptors, so the kernel reports that some were cut off; it installs none.
        size, _, seen, _ = self._socket.recvmsg_into([room], 0, socket.MSG_PEEK)
        if seen & socket.MSG_CTRUNC:
            raise DescriptorsPassed
        # What came since is another piece: this takes what was looked at, and no more.
        return self._socket.recv_into(buffer, size) if size else 0

    def has_left(self) -> bool:
        """Whether the peer has closed its end, or both directions of it; what it sent before may still be here."""
        poll = select.poll()
        poll.register(self._socket, 0)  # a hang-up is reported always
        return bool(poll.poll(0))

    def close(self) -> None:
        """Closes it at once if nothing that carries a descriptor is left in it, else by a thread."""
        if self._socket.fileno() < 0:
            return
        if self._may_carry:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # from now on nothing can be added
        if not self._may_carry or self._is_clean():
            self._socket.close()
            self.ended()
        else:
            self._closers.close(self._socket.detach(), self.ended)

    def _is_clean(self) -> bool:
        for _ in range(_ROOMS_MAX):
            try:
                if not self.recv_into(self._closers.room):
                    return not any(fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4)))
            except DescriptorsPassed:
                return False
            except OSError:
                continue  # that its peer has reset it is reported once
        return False
