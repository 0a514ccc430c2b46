"""A real FUSE file system (bindfs) whose server can be stopped, as one that hangs later, and goes on again."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import eventually

_OPTIONS = "allow_other,attr_timeout=0,entry_timeout=0"
"""Nothing is remembered by the kernel, so that each look reaches the server."""


class Stoppable:
    """The server of a mounted directory."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def stop(self) -> None:
        """From now on it answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again, also what was asked meanwhile."""
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def stoppable(place: Path, source: Path) -> Iterator[Stoppable]:
    """Mounts a directory over another one while the context lasts; whoever hangs in it at the end gets an error."""
    with subprocess.Popen(["bindfs", "-f", "-o", _OPTIONS, source, place]) as process:
        try:
            eventually("the mount", place.is_mount)
            yield Stoppable(process)
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)
            process.kill()
