"""Which unix sockets listen, as the kernel's table says: a probe connection would look like a front end."""

import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_TABLE: Final = Path("/proc/net/unix")
_ACCEPTS: Final = 0x10000
"""__SO_ACCEPTCON, the flag of a listening socket in the table (linux/net.h)."""


def listening_paths(table: bytes) -> set[bytes]:
    """The paths of the listening sockets in a `/proc/net/unix` (see proc_net(5))."""
    paths = set()
    for line in table.splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS:  # noqa: PLR2004 - the columns above
            paths.add(fields[7])
    return paths


def dead_sockets(paths: Iterable[str]) -> dict[str, str]:
    """Of these socket paths, those that nobody can connect to, each with the reason.

    None is called dead while the table cannot be read, as when no descriptor is left for it.
    """
    try:
        listening = listening_paths(_TABLE.read_bytes())
    except OSError:
        return {}
    dead = {}
    for path in paths:
        if path.encode() not in listening:
            dead[path] = f"nobody listens on {path}"
        elif not _is_socket(path):
            dead[path] = f"the socket file {path} is gone"
    return dead


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).lstat().st_mode)
    except OSError:
        return False


def remove_stale_sockets(directory: Path) -> None:
    """Removes the `vdpa-*` sockets of a directory that nobody listens on; everything else in it is left alone.

    What cannot be removed stays: only the device that needs its path fails, and tells why.
    """
    with suppress(OSError):
        paths = [str(path) for path in directory.glob("vdpa-*") if _is_socket(str(path))]
        for path in dead_sockets(paths):
            Path(path).unlink(missing_ok=True)
