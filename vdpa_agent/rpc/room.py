"""Room: where all connections read to, one at a time."""

import ctypes
from typing import Final

READ_BYTES: Final = 4 * 1024
"""What is read from a connection before the others have their turn: some 60 calls, 2 ms of work."""

TURN_BYTES: Final = 512
"""The same where its user has asked too often, and its connections take turns: about half a dozen calls."""


class Room:
    """Memory whose address is known.

    Attributes:
        bytes: the memory.
        address: where it is.
        turn_bytes: how much of it is filled in a turn.
    """

    def __init__(self) -> None:
        self.bytes = bytearray(READ_BYTES)
        # While this lives, the bytes stay where they are.
        self._exported = (ctypes.c_char * READ_BYTES).from_buffer(self.bytes)
        self.address = ctypes.addressof(self._exported)
        self.turn_bytes = TURN_BYTES
