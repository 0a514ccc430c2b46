"""Mounts: rings when something was mounted or unmounted, which inotify does not report."""

import asyncio
import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

_TABLE: Final = "/proc/self/mountinfo"


@contextmanager
def on_mounts(ring: Callable[[], None]) -> Iterator[None]:
    """Calls `ring` on the running event loop after each change of the mounts that this process sees.

    The table's text is never read: programs choose much of what is in it. Where there is no /proc, or no descriptor,
    nothing rings, so callers look now and then as well.

    Args:
        ring: what to call; it may be called once for several changes.
    """
    with ExitStack() as undo:
        try:
            table = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, table)
            # A change is an exceptional condition of the table, see proc_pid_mountinfo(5): asyncio waits for none, but
            # for an epoll queue that does. The queue must stay registered: to look whether it has something empties it.
            queue = undo.enter_context(select.epoll())
            queue.register(table, select.EPOLLPRI)
            loop = asyncio.get_running_loop()
            loop.add_reader(queue.fileno(), ring)
            undo.callback(loop.remove_reader, queue.fileno())
        except OSError:
            undo.close()
        yield
