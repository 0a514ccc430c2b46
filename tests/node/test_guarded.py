"""Sockets that take no descriptor and close none on the event loop."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.abuse.descriptors import lingering, pass_on
from vdpa_agent.node.guarded import Closers, DescriptorsPassed, GuardedSocket

pytestmark = pytest.mark.anyio

PATIENCE_S = 20


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def _pair(held: ExitStack, closers: Closers) -> tuple[GuardedSocket, socket.socket]:
    ours, theirs = socket.socketpair()
    held.enter_context(theirs)
    return GuardedSocket(ours, closers), theirs


def _read(ours: GuardedSocket) -> bytes:
    room = bytearray(100)
    return bytes(room[: ours.recv_into(room)])


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_bytes_are_read_as_they_are(held: ExitStack) -> None:
    ours, theirs = _pair(held, Closers())
    room = bytearray(6)
    with pytest.raises(BlockingIOError):
        ours.recv_into(room)
    theirs.send(b"abc")
    theirs.send(b"defgh")
    assert (ours.recv_into(room), bytes(room)) == (6, b"abcdef")
    assert _read(ours) == b"gh"
    theirs.send(b"ijk")
    assert ours.recv_into(room, 2) == 2
    assert _read(ours) == b"k"
    theirs.close()
    assert ours.recv_into(room) == 0
    ours.close()


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
async def test_what_carries_descriptors_is_never_read(held: ExitStack, flags: int) -> None:
    ours, theirs = _pair(held, Closers())
    theirs.send(b"plain")
    before = _files()
    assert _read(ours) == b"plain"
    pass_on(theirs, b"!", [theirs.fileno()] * 100, flags)
    theirs.send(b"more")
    for _ in range(2):
        with pytest.raises(DescriptorsPassed):
            _read(ours)
    assert _files() == before
    ours.close()


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
@pytest.mark.parametrize("before", [b"", b"x" * 100_000])
async def test_a_close_waits_for_no_descriptor(held: ExitStack, flags: int, before: bytes) -> None:
    closers = Closers()
    ours, theirs = _pair(held, closers)
    theirs.send(before)
    stuck, peer = lingering(held)
    pass_on(theirs, b"!", [stuck.fileno()], flags)
    stuck.close()
    ended = asyncio.Event()
    ours.ended = ended.set
    # One that is held holds no other.
    other, its_peer = _pair(held, closers)
    pass_on(its_peer, b"!", [its_peer.fileno()])
    other_ended = asyncio.Event()
    other.ended = other_ended.set
    ours.close()
    other.close()
    async with asyncio.timeout(PATIENCE_S):
        await other_ended.wait()
    assert (closers.held, ended.is_set()) == (1, False)
    peer.close()  # a reset ends the wait
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()
    assert closers.held == 0


async def test_what_has_no_descriptor_is_closed_at_once(held: ExitStack) -> None:
    closers = Closers()
    for data in (b"", b"x" * 100_000):
        ours, theirs = _pair(held, closers)
        theirs.send(data)
        descriptor = ours.fileno()
        ended: list[int] = []
        ours.ended = lambda ended=ended: ended.append(1)  # type: ignore[misc]
        ours.close()
        ours.close()
        assert (ended, closers.held) == ([1], 0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        assert theirs.recv(10) == b""
