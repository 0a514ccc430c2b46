"""Passes descriptors that block whoever closes them last, prints `ready`, and holds their other ends.

It goes when its input ends.

usage: python -m tests.abuse.descriptors HOW SOCKET
"""

import array
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Final

from hyperframe.frame import PingFrame, SettingsFrame

from tests.abuse.wire import PREFACE, Wire

LINGER_S: Final = 600
"""Longer than any test waits."""

_PING: Final = PingFrame(0, b"12345678").serialize()


def lingering(held: ExitStack, linger_s: int = LINGER_S) -> tuple[socket.socket, socket.socket]:
    """A TCP socket whose last close waits, and its peer, which has read nothing yet."""
    listener = held.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    stuck.connect(listener.getsockname())
    peer = held.enter_context(listener.accept()[0])
    stuck.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            stuck.send(b"x" * 65536)
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger_s))
    return stuck, peer


def pass_on(connection: socket.socket, data: bytes, descriptors: Iterable[int], flags: int = 0) -> None:
    """Sends bytes with descriptors."""
    rights = array.array("i", descriptors)
    connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], flags)


def _pass_stuck(held: ExitStack, connection: socket.socket, data: bytes = _PING, flags: int = 0) -> None:
    stuck, _ = lingering(held)
    try:
        with suppress(OSError):  # it is turned away already
            pass_on(connection, data, [stuck.fileno()], flags)
    finally:
        # The agent may have been quicker: then the last close is this one.
        closing = threading.Thread(target=stuck.close, daemon=True)
        closing.start()
        closing.join(0.1)


def amid_frames(held: ExitStack, listen: str) -> None:
    """With a frame on a connection that is in use."""
    wire = Wire(listen)
    wire.ask(1)
    held.callback(wire.close)
    _pass_stuck(held, wire.socket)


def half_read(held: ExitStack, listen: str) -> None:
    """Behind more than is read at once, of which the first ends the connection."""
    connection = _connected(held, listen)
    connection.send(PREFACE + SettingsFrame(0).serialize() + b"\0\0\x08\x06\0\0\0\0\1" + bytes(8) + _PING * 100)
    _pass_stuck(held, connection)


def out_of_band(held: ExitStack, listen: str) -> None:
    """With an out-of-band byte between frames."""
    connection = _connected(held, listen)
    connection.send(PREFACE + SettingsFrame(0).serialize())
    _pass_stuck(held, connection, b"!", socket.MSG_OOB)
    with suppress(BrokenPipeError):  # it is turned away already
        connection.send(_PING)


def with_the_greeting(held: ExitStack, listen: str) -> None:
    """With the first byte."""
    _pass_stuck(held, _connected(held, listen), PREFACE)


def turned_away(held: ExitStack, listen: str) -> None:
    """On connections beyond those that a user may have."""
    for _ in range(100):
        _pass_stuck(held, _connected(held, listen), PREFACE)


def hundreds(held: ExitStack, listen: str) -> None:
    """More, again and again, than the agent may have descriptors."""
    null = os.open(os.devnull, os.O_RDONLY)
    held.callback(os.close, null)
    for _ in range(200):
        connection = _connected(held, listen)
        with suppress(OSError):
            pass_on(connection, PREFACE + _PING, [null] * 100)
    _pass_stuck(held, _connected(held, listen), PREFACE)


def _connected(held: ExitStack, listen: str) -> socket.socket:
    connection = held.enter_context(socket.socket(socket.AF_UNIX))
    connection.connect(listen)
    return connection


if __name__ == "__main__":
    how: Callable[[ExitStack, str], None] = globals()[sys.argv[1]]
    with ExitStack() as held:
        how(held, sys.argv[2])
        print("ready", flush=True)  # noqa: T201
        sys.stdin.read()
