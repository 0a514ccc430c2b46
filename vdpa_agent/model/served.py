"""Served: what is true of every device now, computed in one place from everything that is known."""

from collections.abc import Iterator
from collections.abc import Mapping as ReadOnly
from types import MappingProxyType
from typing import Final, NamedTuple

from vdpa_agent.model.daemon import SERVED, DaemonState, DaemonStatus, Device, DeviceState, VhostMode, together
from vdpa_agent.model.health import (
    Check,
    Health,
    ReadyWhen,
    Role,
    Standing,
    no_device_list,
    no_mapping,
    no_resource_config,
    not_served,
)
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.owner import NO_OWNERS, Owners
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Pool, Pools

Devices = ReadOnly[PciAddress, Device]

_NONE: Final[frozenset[PciAddress]] = frozenset()
_STOPS: Final = "the agent stops"

_REASONS: Final = MappingProxyType(
    {
        DeviceState.WANTED: "the daemon has not been asked for it yet",
        DeviceState.STARTING: "the daemon was asked for it and has not answered yet",
        DeviceState.FAILED: "the daemon refused it and gave no reason",
        DeviceState.REMOVING: "it left the list",
    }
)
"""Why a device is not ready of which nothing else is known than its state."""


class Facts(NamedTuple):
    """Everything that `Served` is computed from.

    Attributes:
        role: who owns the vhost-user sockets.
        wanted: the devices of all sources; what is wrong is said of the device list.
        pools: the resources with their VFs; without a value where there is no resource config, or none that counts.
        mapping: what the mapping file says.
        daemon: the daemon of this agent; in `Served` what is true of several of them together.
        daemons: where each device has a daemon of its own, those that there are.
        devices: its devices, as it acknowledged them.
        owners: the container that has each device, as far as the kubelet says.
        kubelet_lost: why only a new container finds the kubelet; empty if this one does, or need not.
        dead: of the sockets of an external mapping, those that nobody listens on, each with the reason.
        left: devices that left the list so lately that callers may still hope for them.
        standing: the agent's own socket and directory.
        socket_dir: why no socket that the daemon opens can be promised, as its directory does not answer; empty if it
            does.
        stopping: whether the agent was asked to stop.
        require_sockets: whether a device of an external mapping is ready only if its socket is alive.
        ready_when: what readiness takes.
        pci_list: where the device list is, for messages.
        socket_list: where the mapping is, likewise.
        resource_config: where the resource config is, likewise; empty: there is to be none.
    """

    role: Role = Role.WAITING
    wanted: Loaded[DeviceList] = Loaded()
    pools: Loaded[Pools] = Loaded()
    mapping: Loaded[Mapping] = Loaded()
    daemon: DaemonStatus = DaemonStatus()
    daemons: ReadOnly[PciAddress, DaemonStatus] = MappingProxyType({})
    devices: Devices = MappingProxyType({})
    owners: Owners = NO_OWNERS
    kubelet_lost: str = ""
    dead: ReadOnly[str, str] = MappingProxyType({})
    left: frozenset[PciAddress] = _NONE
    standing: Standing = Standing()
    socket_dir: str = ""
    stopping: bool = False
    require_sockets: bool = False
    ready_when: ReadyWhen = ReadyWhen.RUNNING
    pci_list: str = "the device list"
    socket_list: str = "the mapping"
    resource_config: str = ""

    @property
    def ending(self) -> bool:
        """Whether nothing of the daemon may be promised any more."""
        return self.stopping or self.daemon.state in {DaemonState.STOPPING, DaemonState.STOPPED}


class Served(NamedTuple):
    """One snapshot, which answers, device service, health, probes, metrics and CLI read, and nothing else.

    A wanted device is ready, in `devices`, if and only if `sockets` has its path, if and only if it has no reason, and
    if and only if `health` has none about it.

    Attributes:
        facts: what it was computed from.
        devices: every device of the list and of the daemon, or of the external mapping, in that order.
        pools: the pool of each VF that belongs to one.
        sockets: the path that is promised for each device that is ready.
        awaited: the devices that are not ready and may become so; None: any address may be one, since no list has been
            read yet.
        health: whether the agent is live and ready, with every reason.
    """

    facts: Facts
    devices: Devices
    pools: ReadOnly[PciAddress, Pool]
    sockets: ReadOnly[PciAddress, str]
    awaited: frozenset[PciAddress] | None
    health: Health

    def is_awaited(self, address: PciAddress) -> bool:
        """Whether a device may become ready, so that callers may wait for it."""
        return self.awaited is None or address in self.awaited


def serve(facts: Facts) -> Served:
    """What is true of every device, given the facts."""
    if facts.daemons and not facts.ending:
        wanted = facts.wanted.value or ()
        whole = together({address: facts.daemons[address] for address in wanted if address in facts.daemons})
        facts = facts._replace(daemon=whole._replace(restarts=facts.daemon.restarts))
    devices = dict(_managed(facts) if facts.role is Role.MANAGING else _external(facts))
    sockets = {address: device.socket for address, device in devices.items() if device.state in SERVED}
    return Served(
        facts=facts,
        devices=MappingProxyType(devices),
        pools=MappingProxyType(facts.pools.value.by_device if facts.pools.value else {}),
        sockets=MappingProxyType(sockets),
        awaited=_awaited(facts, sockets),
        health=_health(facts, devices),
    )


def _managed(facts: Facts) -> Iterator[tuple[PciAddress, Device]]:
    """The devices of the list, then those that left it and that the daemon still has."""
    wanted = facts.wanted.value or ()
    for address in wanted:
        device = facts.devices.get(address) or Device(address, "", DeviceState.WANTED)
        unserved = _STOPS if facts.ending else _problem_for(facts, address) or _hidden(facts, device)
        if unserved and device.state in SERVED:
            device = device._replace(state=DeviceState.FAILED, reason=unserved)
        elif unserved and (not device.reason or (device.state is DeviceState.WANTED and address in facts.daemons)):
            device = device._replace(reason=unserved)
        elif device.state is DeviceState.REMOVING:
            device = device._replace(reason="it left the list and came back; the daemon is asked for it next")
        yield address, _explained(device)
    for address in facts.devices.keys() - set(wanted):
        device = facts.devices[address]
        if device.state in SERVED:  # the list is ahead of the daemon: no new pod gets it
            device = device._replace(state=DeviceState.REMOVING, reason="")
        yield address, _explained(device)


def _explained(device: Device) -> Device:
    """A device that says why, if it is not ready."""
    if device.reason or device.state in SERVED:
        return device
    return device._replace(reason=_REASONS[device.state])


def _external(facts: Facts) -> Iterator[tuple[PciAddress, Device]]:
    """The devices of another process's mapping, which is the truth: its sockets outlive this agent."""
    if facts.role is not Role.SERVING:
        return
    for address, path in facts.mapping.value or ():
        dead = facts.dead.get(path, "")
        if dead and facts.require_sockets:
            yield address, Device(address, path, DeviceState.FAILED, dead)
        else:
            yield address, Device(address, path, DeviceState.READY, remark=dead)


def _awaited(facts: Facts, sockets: ReadOnly[PciAddress, str]) -> frozenset[PciAddress] | None:
    if facts.stopping or (facts.role is Role.MANAGING and facts.ending):
        return _NONE
    if facts.role is Role.SERVING:
        return frozenset(address for address, _ in facts.mapping.value or () if address not in sockets)
    if facts.role is Role.WAITING or facts.wanted.value is None:
        return None
    return (facts.left | frozenset(facts.wanted.value)) - sockets.keys()


def _health(facts: Facts, devices: Devices) -> Health:
    unserved = tuple(_unserved(facts, devices))
    checks = [check for check in (Check("agent", _STOPS if facts.stopping else ""),) if check.reason]
    checks.append(Check("socket", facts.standing.not_ready))
    checks += _role_checks(facts)
    if facts.ready_when is ReadyWhen.ALL_DEVICES or facts.role is Role.SERVING:
        checks += unserved
    return Health(
        not_live=facts.standing.not_live or facts.kubelet_lost,
        checks=tuple(checks),
        unserved=unserved,
        waiting_for=_waiting_for(facts),
    )


def _role_checks(facts: Facts) -> Iterator[Check]:
    """What the role takes: a list or a mapping that is not refused, and a daemon that runs."""
    if facts.role is Role.SERVING:
        yield Check("mapping")
        return
    if facts.role is Role.WAITING:
        yield Check("mapping", no_mapping(facts.mapping, facts.socket_list) if _is_refused(facts.mapping) else "")
    yield Check("device list", no_device_list(facts.wanted, facts.pci_list) if _is_refused(facts.wanted) else "")
    if facts.resource_config:
        refused = _is_refused(facts.pools)
        yield Check("resource config", no_resource_config(facts.pools, facts.resource_config) if refused else "")
    if facts.wanted.value:
        problem = _daemon_problem(facts.daemon)
        several = f"none of {len(facts.daemons)} daemons serves: " if problem and facts.daemons else ""
        yield Check("daemon", several + problem)
        if not problem:
            yield Check("socket directory", facts.socket_dir)


def _unserved(facts: Facts, devices: Devices) -> Iterator[Check]:
    """The wanted devices that are not ready, unless the daemon or the directory of the sockets is the reason."""
    if facts.role is Role.MANAGING:
        if facts.ending or _daemon_problem(facts.daemon):
            return
        names = facts.wanted.value or ()
    else:
        names = tuple(devices)
    for address in names:
        device = devices[address]
        if device.state not in SERVED and not (device.reason and device.reason == _hidden(facts, device)):
            yield Check(f"device {address}", not_served(address, device.state, device.reason))


def _waiting_for(facts: Facts) -> str:
    """What a node without any list waits for; empty where nothing is missing."""
    if facts.role is Role.SERVING or facts.wanted.value is not None:
        return ""
    sources = [f"a device list at {facts.pci_list}"]
    sources += [f"a resource config at {facts.resource_config}"] if facts.resource_config else []
    sources += [f"a mapping at {facts.socket_list}"] if facts.role is Role.WAITING else []
    return ", or ".join(sources)


def _is_refused(loaded: Loaded[DeviceList] | Loaded[Mapping] | Loaded[Pools]) -> bool:
    """Whether there is a file and nothing of it counts, nor of an earlier one."""
    return loaded.value is None and loaded.refused


def _problem_for(facts: Facts, address: PciAddress) -> str:
    """Why nothing of a device's daemon can be promised, its own or the one of all; empty if it runs and answers."""
    daemon = facts.daemons.get(address)
    if daemon is not None and daemon.state is DaemonState.IDLE:
        return "its daemon waits for its turn to start"
    return _daemon_problem(facts.daemon if daemon is None else daemon)


def _hidden(facts: Facts, device: Device) -> str:
    """Why the socket of a device cannot be promised though its daemon runs; empty if it can."""
    return facts.socket_dir if device.mode is VhostMode.SERVER and facts.role is Role.MANAGING else ""


def _daemon_problem(daemon: DaemonStatus) -> str:
    """Why nothing of the daemon can be promised, empty if it runs and answers."""
    if daemon.state is not DaemonState.RUNNING:
        last = f": {daemon.last_exit}" if daemon.last_exit else ""
        loop = ", in a crash loop" if daemon.crash_loop else ""
        return f"the daemon is in state {daemon.state}{loop}{last}"
    return daemon.unhealthy
