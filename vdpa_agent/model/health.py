"""Health: whether the agent is live and ready, with every reason why not."""

from enum import StrEnum
from typing import NamedTuple

from vdpa_agent.model.daemon import DeviceState
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Pools


class Role(StrEnum):
    """Who owns the vhost-user sockets."""

    WAITING = "waiting"
    """Nothing is there yet that would decide it."""
    MANAGING = "managing"
    """This agent runs the daemon."""
    SERVING = "serving"
    """Another process does; the agent serves its mapping."""


class ReadyWhen(StrEnum):
    """What readiness takes."""

    RUNNING = "running"
    """The agent answers, and what it manages runs; a device that is not served is degraded."""
    ALL_DEVICES = "all-devices"
    """The same, and every device of the list is served."""


class Standing(NamedTuple):
    """What the agent stands on: its own socket and the directory of it.

    Attributes:
        not_ready: why callers cannot reach it now, empty if they can.
        not_live: why only a new container can help, empty if the agent can recover by itself.
    """

    not_ready: str = ""
    not_live: str = ""


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
        not_live: why the agent cannot recover by itself, empty if it can, as in a crash loop of the daemon.
        checks: what readiness takes, as far as it could be looked at.
        unserved: the wanted devices that are not served although the daemon runs, each with its reason.
        waiting_for: what a ready agent that serves nothing waits for, empty if it waits for nothing.
    """

    not_live: str = ""
    checks: tuple[Check, ...] = ()
    unserved: tuple[Check, ...] = ()
    waiting_for: str = ""

    @property
    def live(self) -> bool:
        """Whether the agent can recover by itself."""
        return not self.not_live

    @property
    def ready(self) -> bool:
        """Whether the agent answers, and what it manages runs."""
        return not any(check.reason for check in self.checks)

    @property
    def degraded(self) -> tuple[Check, ...]:
        """Those that are not served and hold nothing up: what keeps the agent from being ready is no part of it."""
        return tuple(check for check in self.unserved if check not in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not ready, one cause each; empty if it is."""
        return tuple(check.reason for check in self.checks if check.reason)


def no_mapping(mapping: Loaded[Mapping], path: str) -> str:
    """Why there is no mapping, in the words that status, probes and doctor use for it."""
    return f"no mapping is loaded: {path}: {mapping.problem or 'nothing was read yet'}"


def no_device_list(wanted: Loaded[DeviceList], path: str) -> str:
    """Why there is no device list, likewise."""
    return f"no device list is loaded: {path}: {wanted.problem or 'nothing was read yet'}"


def no_resource_config(pools: Loaded[Pools], path: str) -> str:
    """Why there is no resource config, likewise."""
    return f"no resource config is loaded: {path}: {pools.problem or 'nothing was read yet'}"


def not_served(address: PciAddress, state: DeviceState, reason: str) -> str:
    """Why a device is not served, likewise."""
    return f"{address} is {state}{': ' + reason if reason else ''}"
