"""Health: whether the agent is live and ready, with every reason why not."""

from collections.abc import Iterator
from collections.abc import Mapping as ReadOnly
from enum import StrEnum
from typing import NamedTuple

from vdpa_agent.model.daemon import SERVED, DaemonState, DaemonStatus, Device, DeviceState
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress


class Role(StrEnum):
    """Who owns the vhost-user sockets."""

    WAITING = "waiting"
    """Nothing is there yet that would decide it."""
    MANAGING = "managing"
    """This agent runs the daemon."""
    SERVING = "serving"
    """Somebody else does; the agent serves its mapping."""


class Check(NamedTuple):
    """One thing that readiness takes.

    Attributes:
        name: what was looked at.
        reason: why it is not as it should be, empty if it is.
    """

    name: str
    reason: str = ""


class Health(NamedTuple):
    """The verdict.

    Attributes:
        live: the agent can recover by itself; true in a crash loop of the daemon.
        checks: what readiness takes, as far as it could be looked at.
    """

    live: bool
    checks: tuple[Check, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether every wanted device is served, or a valid mapping of somebody else's is loaded."""
        return not any(check.reason for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not ready, one cause each; empty if it is."""
        return tuple(check.reason for check in self.checks if check.reason)


class Standing(NamedTuple):
    """What the agent stands on: its own socket and the directory of it.

    Attributes:
        not_ready: why it cannot be reached now, empty if it can.
        not_live: why only a new container can help, empty if the agent can recover by itself.
    """

    not_ready: str = ""
    not_live: str = ""


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
    return Health(live=True, checks=tuple(_managing(wanted, daemon) if daemon.managed else _serving(mapping, dead)))


def no_mapping(mapping: Loaded[Mapping]) -> str:
    """Why there is no mapping, in the words that everybody uses for it."""
    return f"no mapping is loaded: {mapping.problem or 'nothing was read yet'}"


def no_device_list(wanted: Loaded[DeviceList]) -> str:
    """Why there is no device list, likewise."""
    return f"no device list is loaded: {wanted.problem or 'nothing was read yet'}"


def not_served(address: PciAddress, state: DeviceState, reason: str) -> str:
    """Why a device is not served, likewise."""
    return f"{address} is {state}{': ' + reason if reason else ''}"


def _serving(mapping: Loaded[Mapping], dead: ReadOnly[str, str]) -> Iterator[Check]:
    if mapping.value is None:
        yield Check("mapping", no_mapping(mapping))
        return
    yield Check("mapping")
    for path, reason in dead.items():
        yield Check(f"socket {path}", reason)


def _managing(wanted: Loaded[DeviceList], daemon: DaemonStatus) -> Iterator[Check]:
    if wanted.value is None:
        yield Check("device list", no_device_list(wanted))
        return
    yield Check("device list")
    if not wanted.value:
        return
    daemon_check = Check("daemon", _daemon(daemon))
    yield daemon_check
    if daemon_check.reason:
        return
    for address in wanted.value:
        yield Check(f"device {address}", _device(address, daemon.devices.get(address)))


def _daemon(daemon: DaemonStatus) -> str:
    if daemon.state is not DaemonState.RUNNING:
        last = f": {daemon.last_exit}" if daemon.last_exit else ""
        loop = ", in a crash loop" if daemon.crash_loop else ""
        return f"the daemon is in state {daemon.state}{loop}{last}"
    return daemon.unhealthy


def _device(address: PciAddress, device: Device | None) -> str:
    if device is None:
        return f"{address} is not asked for yet"
    if device.state in SERVED:
        return ""
    return not_served(address, device.state, device.reason)
