"""Conversations that are nearly right, with a sanitized vdpad, beside a front end that is right.

`python -m tests.e2e.fuzz_front_ends --seconds 60` ends with 1, and the seed, when vdpad or the neighbour suffers.
With `--switch` the devices are ports of one switch, and two of them are held by such conversations at once.
"""

import argparse
import mmap
import os
import random
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from tests.e2e.front_ends import DEVICES, MEMORY_BYTES, SET_OWNER, USER_ADDRESS, FrontEnd, Vdpad, settled

HOSTILE, NEIGHBOUR = DEVICES
SECOND: Final = "0000:82:00.4"
"""Where front ends are hostile at two ports of one switch at once."""

WORDS: Final = (0, 1, 2, 3, 7, 8, 255, 256, 4096, 0x10000, 0x20000, MEMORY_BYTES, USER_ADDRESS, USER_ADDRESS + 0x20000)
EDGES: Final = (2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 4096, 2**64 - 1)
RINGS: Final = range(8, 19)
"""The requests about rings."""


def _payload(chance: random.Random, request: int) -> bytes:
    words = [chance.choice(WORDS + EDGES if chance.random() < 0.5 else WORDS) for _ in range(chance.randrange(6))]
    payload = b"".join(struct.pack("<Q", word) for word in words)
    if request in RINGS and chance.random() < 0.7:
        payload = struct.pack("<II", chance.randrange(9), chance.choice((0, 1, 2, 256))) + payload[8:]
    if request == 5 and chance.random() < 0.7:
        count = chance.randrange(1, 4)
        payload = struct.pack("<II", count, 0)
        for number in range(count):
            size = chance.choice((4096, 0x10000, 0x80000))
            start = number * 0x80000
            payload += struct.pack("<QQQQ", start, size, USER_ADDRESS + start, chance.choice((0, 4096, 0x10000)))
    return payload


def _scribble(chance: random.Random, front: FrontEnd) -> None:
    """Writes what no driver writes into the rings."""
    if front.memory < 0 or os.fstat(front.memory).st_size < MEMORY_BYTES:
        return
    with mmap.mmap(front.memory, MEMORY_BYTES) as memory:
        for _ in range(chance.randrange(40)):
            at = 0x10000 * chance.randrange(1, 9) + chance.choice((0, 0x2000, 0x4000)) + 2 * chance.randrange(40)
            struct.pack_into("<H", memory, at, chance.choice((0, 1, 2, 3, 4, 255, 256, 0x8000, 0xFFFF)))
    front.kick()


def _frames(chance: random.Random, front: FrontEnd) -> None:
    """Makes buffers available, and sends frames that lie anywhere, with addresses that a switch has to look at."""
    if front.memory < 0 or os.fstat(front.memory).st_size < MEMORY_BYTES:
        return
    with mmap.mmap(front.memory, MEMORY_BYTES) as memory:
        for number in range(256):
            at, length = chance.choice((0x80000, 0x90000, 0xFFF00)), chance.choice((14, 64, 1500, 2000))
            struct.pack_into("<QIHH", memory, 0x10000 + 16 * number, 0xA0000 + 256 * number, 256, 2, 0)
            struct.pack_into(
                "<QIHH", memory, 0x20000 + 16 * number, at, length, chance.choice((0, 0, 0, 1)), number // 2
            )
            for ring in (0x12000, 0x22000):
                struct.pack_into("<H", memory, ring + 4 + 2 * number, number)
        for at in (0x80000, 0x90000):
            to = chance.choice((b"\xff" * 6, b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"))
            memory[at + 12 : at + 26] = to + bytes((2, 0, 0, 0, 0, chance.randrange(4))) + b"\x08\0"
        for ring in (0x12000, 0x22000):
            struct.pack_into("<HH", memory, ring, 0, chance.randrange(257))
    front.kick()


def _conversation(chance: random.Random, vdpad: Vdpad, address: str, fds: tuple[int, ...]) -> None:
    with FrontEnd(vdpad.socket(address)) as front:
        if chance.random() < 0.8:
            front.share()
        if chance.random() < 0.6:
            front.start_rings(chance.choice((1, 2, 8)))
            if chance.random() < 0.5:
                _frames(chance, front)
        for _ in range(chance.randrange(30)):
            request = chance.choice((*range(42), *RINGS, *RINGS, 5, 5))
            passed = [chance.choice(fds) for _ in range(chance.choice((0, 0, 1, 1, 2, 9)))]
            front.send(request, _payload(chance, request), passed, flags=chance.choice((1, 1, 1, 9, 0)))
            if chance.random() < 0.1:
                _scribble(chance, front)
            if chance.random() < 0.02 and front.memory >= 0:
                os.ftruncate(front.memory, chance.choice((0, 4096)))
        front.kick()
        if chance.random() < 0.9:
            front.finish()


class _Second(threading.Thread):
    """Conversations at a second port, until it is stopped."""

    def __init__(self, vdpad: Vdpad, seed: int, fds: tuple[int, ...]) -> None:
        super().__init__(daemon=True)
        self.held = 0
        self.error: BaseException | None = None
        self._vdpad, self._chance, self._fds = vdpad, random.Random(seed), fds
        self._stopped = threading.Event()

    def run(self) -> None:
        """Holds them."""
        try:
            while not self._stopped.is_set():
                _conversation(self._chance, self._vdpad, SECOND, self._fds)
                self.held += 1
        except (AssertionError, OSError) as error:
            self.error = error

    def finish(self) -> int:
        """Ends; returns how many conversations there were."""
        self._stopped.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.held


def converse(vdpad: Vdpad, *, seed: int, seconds: float, conversations: int, second: bool = False) -> int:
    """Holds conversations, until there are so many or the time is over; returns how many there were.

    Raises: AssertionError when the neighbour is no longer served, or something is left behind.
    """
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    event, pipe, file = os.eventfd(0), os.pipe(), os.memfd_create("file")
    os.ftruncate(file, MEMORY_BYTES)
    held = 0
    with FrontEnd(vdpad.socket(NEIGHBOUR)) as other:
        other.share()
        other.start_rings()
        settled("the neighbour is served", lambda: vdpad.device(NEIGHBOUR)["configured"])
        assert other.ask(SET_OWNER) == bytes(8)  # it comes after all that was sent before: their descriptors are there
        before = vdpad.descriptors()
        fds = (event, file, file, pipe[0])
        beside = _Second(vdpad, seed + 1, fds)
        if second:
            beside.start()
        while held < conversations and time.monotonic() < end:
            _conversation(chance, vdpad, HOSTILE, fds)
            assert other.ask(SET_OWNER) == bytes(8)
            held += 1
        if second:
            held += beside.finish()
            settled("the second ones are gone", lambda: not vdpad.device(SECOND)["connected"])
        settled("the hostile ones are gone", lambda: not vdpad.device(HOSTILE)["connected"])
        settled("no descriptor is left", lambda: vdpad.descriptors() <= before)
        assert vdpad.device(NEIGHBOUR)["configured"]
    for fd in (event, file, *pipe):
        os.close(fd)
    return held


def main() -> int:
    """Runs as long as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--switch", action="store_true")
    options = parser.parse_args()
    network = f"--simulate-network={'switch' if options.switch else 'loopback'}"
    devices = dict.fromkeys((*DEVICES, SECOND), "")
    with (
        tempfile.TemporaryDirectory(prefix="va-") as directory,
        Vdpad(Path(directory), "native-sanitized", network, devices=devices) as vdpad,
    ):
        try:
            held = converse(
                vdpad, seed=options.seed, seconds=options.seconds, conversations=sys.maxsize, second=options.switch
            )
        except (AssertionError, OSError) as error:
            sys.stdout.write(f"seed {options.seed}: {error}\n{''.join(vdpad.log[-60:])}")
            return 1
        refusals = vdpad.refusals(HOSTILE)
        crossed = sum(vdpad.stats(address, "packets", receiving=True) for address in (HOSTILE, SECOND))
    sys.stdout.write(f"seed {options.seed}: {held} conversations, refused: {refusals}, frames received: {crossed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
