"""Health: whether the agent is live and ready, with every reason why not."""

from collections.abc import Mapping as ReadOnly
from dataclasses import dataclass
from enum import Enum

from vdpa_agent.model.daemon import SERVED, DaemonState, DaemonStatus, DeviceState
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress


class Role(Enum):
    """Who owns the vhost-user sockets."""

    WAITING = "waiting"
    """Nothing is there yet that would decide it."""
    MANAGING = "managing"
    """This agent runs the daemon."""
    SERVING = "serving"
    """Somebody else does; the agent serves its mapping."""


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict.

    Attributes:
        live: the agent can recover by itself; true in a crash loop of the daemon.
        ready: every wanted device is served, or a valid mapping of somebody else's is loaded.
        reasons: why it is not ready, one cause each; empty if it is.
    """

    live: bool
    ready: bool
    reasons: tuple[str, ...] = ()


def role_of(daemon: DaemonStatus, mapping: Loaded[Mapping]) -> Role:
    """The role that the agent has now."""
    if daemon.managed:
        return Role.MANAGING
    return Role.WAITING if mapping.value is None else Role.SERVING


def assess(
    wanted: Loaded[DeviceList], mapping: Loaded[Mapping], daemon: DaemonStatus, dead: ReadOnly[str, str]
) -> Health:
    """Judges the snapshots.

    Args:
        wanted: the device list.
        mapping: the mapping.
        daemon: the daemon and its devices.
        dead: of the sockets of a foreign mapping, those that decide readiness and cannot be connected to, with the
            reason; empty unless that is asked for.
    """
    reasons = _managing(wanted, daemon) if daemon.managed else _serving(mapping, dead)
    return Health(live=True, ready=not reasons, reasons=tuple(reasons))


def no_mapping(mapping: Loaded[Mapping]) -> str:
    """Why there is no mapping, in the words that everybody uses for it."""
    return f"no mapping is loaded: {mapping.problem or 'nothing was read yet'}"


def no_device_list(wanted: Loaded[DeviceList]) -> str:
    """Why there is no device list, likewise."""
    return f"no device list is loaded: {wanted.problem or 'nothing was read yet'}"


def not_served(address: PciAddress, state: DeviceState, reason: str) -> str:
    """Why a device is not served, likewise."""
    return f"{address} is {state}{': ' + reason if reason else ''}"


def _serving(mapping: Loaded[Mapping], dead: ReadOnly[str, str]) -> list[str]:
    if mapping.value is None:
        return [no_mapping(mapping)]
    return list(dead.values())


def _managing(wanted: Loaded[DeviceList], daemon: DaemonStatus) -> list[str]:
    if wanted.value is None:
        return [no_device_list(wanted)]
    if not wanted.value:
        return []
    if daemon.state is not DaemonState.RUNNING:
        last = f": {daemon.last_exit}" if daemon.last_exit else ""
        loop = ", in a crash loop" if daemon.crash_loop else ""
        return [f"the daemon is in state {daemon.state}{loop}{last}"]
    if daemon.unhealthy:
        return [daemon.unhealthy]
    reasons = []
    for address in wanted.value:
        device = daemon.devices.get(address)
        if device is None:
            reasons.append(f"{address} is not asked for yet")
        elif device.state not in SERVED:
            reasons.append(not_served(address, device.state, device.reason))
    return reasons
