"""Latest[T]: the newest value of something, with its changes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds one immutable value; one writer sets it, any number of readers look or follow.

    A slow reader sees the newest value, never a queue of old ones, so it cannot grow memory.
    """

    def __init__(self, value: T, changed: Callable[[], None] | None = None) -> None:
        """Holds a first value.

        Args:
            value: the first value.
            changed: called in `set`, right after each change: for a whole that must never lag behind its parts.
        """
        self._value = value
        self._tell = changed
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        """The newest value."""
        return self._value

    def set(self, value: T) -> None:
        """Replaces the value and wakes the readers; an equal value changes nothing."""
        if value == self._value:
            return
        self._value = value
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._tell is not None:
            self._tell()

    async def changes(self) -> AsyncIterator[T]:
        """Yields the value as it is now, then the newest one after each change. Never ends by itself."""
        while True:
            changed = self._changed
            yield self._value
            await changed.wait()

    async def wait_for(self, wanted: Callable[[T], bool]) -> T:
        """Returns the first value, the present one included, for which `wanted` is true."""
        while True:
            changed = self._changed
            value = self._value
            if wanted(value):
                return value
            await changed.wait()
