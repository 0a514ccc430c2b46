"""System: what the agent and its daemon cannot do without, and that this system lacks."""

import os
import stat
from pathlib import Path
from typing import Final

from vdpa_agent.errors import SystemLacks
from vdpa_agent.model.node import Lack

_NO_PROC: Final = Lack("no /proc is mounted", "mount -t proc proc /proc")
_NO_NULL: Final = Lack("/dev/null is not there, or no device", "rm -f /dev/null && mknod -m 666 /dev/null c 1 3")


def lacks(sysfs: Path | None = None) -> tuple[Lack, ...]:
    """What this system lacks, each with what mends it.

    Args:
        sysfs: where sysfs is, which a daemon that has devices needs; None: there is none to be had.
    """
    found = []
    if not os.path.exists("/proc/self/fd"):  # noqa: PTH110 - Path.exists() may raise
        found.append(_NO_PROC)
    if not _is_device(Path(os.devnull)):
        found.append(_NO_NULL)
    if sysfs is not None and not os.path.exists(sysfs / "devices"):  # noqa: PTH110 - as above
        found.append(Lack(f"no sysfs is mounted at {sysfs}", f"mount -t sysfs sysfs {sysfs}"))
    return tuple(found)


def refuse_lacks() -> None:
    """Looks for what every agent needs, whoever owns the sockets.

    Raises:
        SystemLacks: something is not there.
    """
    for lack in lacks():
        message = f"{lack.problem}; {lack.remedy}"
        raise SystemLacks(message)


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
