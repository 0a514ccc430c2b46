"""Mounts that are gone at the end, as root."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(place: Path, source: Path | None = None) -> Iterator[None]:
    """Something else is mounted over a file or a directory while the context lasts: an empty tmpfs, or `source`."""
    what = ["--bind", str(source)] if source else ["-t", "tmpfs", "vdpa-agent-test"]
    subprocess.run(["mount", *what, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def in_mount_namespace(script: str, *command: str) -> tuple[str, ...]:
    """A command line that runs a command after a shell script, where no mount of either is seen from outside."""
    return ("unshare", "-m", "--propagation", "private", "sh", "-ec", f'{script}\nexec "$@"', "sh", *command)
