"""Which role the agent has: decided in one place, by what is there."""

from collections.abc import Mapping as ReadOnly
from pathlib import PurePath

from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress


def role_after(
    role: Role,
    wanted: Loaded[DeviceList],
    mapping: Loaded[Mapping],
    *,
    may_manage: bool,
    leftover: bool,
) -> Role:
    """The role that follows from what is there; an agent that manages a daemon does so for good.

    Args:
        role: the role so far.
        wanted: the device list.
        mapping: the mapping file.
        may_manage: whether a device list makes the agent manage a daemon.
        leftover: whether the mapping is one that an earlier agent's daemon left behind.
    """
    if role is Role.MANAGING or (may_manage and wanted.value is not None):
        return Role.MANAGING
    return Role.WAITING if mapping.value is None or leftover else Role.SERVING


def is_own(mapping: Mapping, names: ReadOnly[PciAddress, str], directory: PurePath, device_dir: PurePath) -> bool:
    """Whether each entry of a mapping names the socket that this agent gave to that device.

    A mapping without entries is one that a daemon of this agent may have left, if the agent ever named a device here.

    Args:
        mapping: what the mapping file says.
        names: the socket names that this agent, or one before it, gave.
        directory: where its sockets are.
        device_dir: where each device has a directory of its own, in which front ends make theirs.
    """
    if not names:
        return False
    return all(
        address in names and (path == str(directory / names[address]) or PurePath(path).parent == device_dir / address)
        for address, path in mapping
    )
