"""What a process of this node may do, as the kernel reports it."""

import errno
import os
from pathlib import Path
from typing import Final, NamedTuple

_ACL: Final = "system.posix_acl_access"

_DAC_OVERRIDE: Final = 1
"""CAP_DAC_OVERRIDE, which stands above the permissions of files (linux/capability.h)."""

_IPC_LOCK: Final = 14
"""CAP_IPC_LOCK, which stands above the limit of locked memory."""


class Process(NamedTuple):
    """What a process may do, by its status (proc_pid_status(5)).

    Attributes:
        root: the root of the files that it sees.
        user: the user that it is, by number.
        groups: its groups, by number.
        capabilities: those in effect, a bit for each.
    """

    root: Path
    user: int
    groups: frozenset[int]
    capabilities: int

    @property
    def locks_any_memory(self) -> bool:
        """Whether it stands above its limit of locked memory."""
        return bool(self.capabilities >> _IPC_LOCK & 1)

    def may_use(self, path: Path, status: os.stat_result) -> bool:
        """Whether it may read and write a file; where an access control list decides it counts as yes."""
        if self.capabilities >> _DAC_OVERRIDE & 1 or _ACL in os.listxattr(path):
            return True
        shift = 6 if self.user == status.st_uid else 3 if status.st_gid in self.groups else 0
        return status.st_mode >> shift & 0o6 == 0o6  # noqa: PLR2004 - read and write


def read_process(pid: int | None) -> Process:
    """What a process may do; None: this one.

    Raises:
        OSError: there is no such process, or what the kernel says of it makes no sense.
    """
    directory = Path(f"/proc/{pid or 'self'}")
    lines = (line.partition(":") for line in (directory / "status").read_text(errors="replace").splitlines())
    told = {name: value.split() for name, _, value in lines}
    try:
        return Process(
            root=directory / "root",
            user=int(told["Uid"][1]),
            groups=frozenset(map(int, [told["Gid"][1], *told["Groups"]])),
            capabilities=int(told["CapEff"][0], 16),
        )
    except (LookupError, ValueError) as error:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(directory / "status")) from error


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, which can hang up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def uid_of_root(proc: Path = Path("/proc")) -> int:
    """The number that root of the surrounding user namespace has in this process's own (user_namespaces(7)).

    Where that maps no number to it, it is the one that the kernel shows for all such users (proc_sys_kernel(5)).

    Raises:
        OSError: the kernel says nothing of it, or nothing that makes sense.
    """
    try:
        for line in (proc / "self/uid_map").read_text().splitlines():
            inside, outside, _ = map(int, line.split())
            if outside == 0:
                return inside
        return int((proc / "sys/kernel/overflowuid").read_text())
    except ValueError as error:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(proc / "self/uid_map")) from error
