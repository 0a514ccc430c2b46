"""Diagnosis: everything that is right and wrong on a node, and whether it could serve a VF."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from vdpa_agent.model.daemon import SERVED
from vdpa_agent.model.health import Role, no_device_list, no_mapping, not_served
from vdpa_agent.model.loaded import ABSENT
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.node import VFIO_CONTAINER, DeviceFacts, Node, PoolsFacts, Presence
from vdpa_agent.model.preflight import (
    VFIO,
    Finding,
    Severity,
    assess,
    forbidden,
    kernel_driver_of,
    takes_hugepages,
)

_OPEN_FILES_BASE: Final = 64
_OPEN_FILES_PER_DEVICE: Final = 16
"""A device takes a socket, and its front end a connection and two descriptors for each of a few queues."""

_SHOWN: Final = 8
"""So many of several are named."""

_OTHERS_MAY_WRITE: Final = 0o002
_STICKY: Final = 0o1000
_SHARED_TYPES: Final = frozenset({"container_file_t", "svirt_sandbox_file_t"})
"""The SELinux types of files that a container may use: today's name, and the one before."""


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        subject: what was looked at, such as `memory`, or the address of a device.
        told: what was found.
        severity: what that means for a device; None: it is as it should be.
        remedy: what to do about it, where possible the command to type.
    """

    subject: str
    told: str
    severity: Severity | None = None
    remedy: str = ""


class Diagnosis(NamedTuple):
    """Everything that was looked at, and what follows.

    Attributes:
        checks: what concerns all devices first, then each device.
        devices: how many devices were judged.
        could_be_served: how many of them could be served, or are.
    """

    checks: tuple[Check, ...]
    devices: int
    could_be_served: int


def diagnose(node: Node) -> Diagnosis:
    """Judges a node."""
    node_itself = [
        *_system(node),
        *_lists(node),
        *_daemon(node),
        *_http2(node),
        *_directories(node),
        *_memory(node),
        *_limits(node),
        *_vfio(node),
        *_selinux(node),
    ]
    each = {device.address: list(_device(node, device)) for device in node.devices}
    general = [*_agent(node, {check.told for check in node_itself}), *node_itself]
    blocked = _blocks(general)
    could_be_served = 0 if blocked else sum(not _blocks(checks) for checks in each.values())
    return Diagnosis((*general, *(check for checks in each.values() for check in checks)), len(each), could_be_served)


def _blocks(checks: Iterable[Check]) -> bool:
    return any(check.severity is Severity.BLOCKS for check in checks)


def _agent(node: Node, told: AbstractSet[str]) -> Iterator[Check]:
    if node.agent is not None:
        yield Check("agent", f"version {node.agent.version} answers at {node.socket} and is {node.role.value}")
        # What is told with its cause need not be told twice.
        told = {*told, *(device.reason for device in node.devices)}
        told |= {not_served(device.address, device.state, device.reason) for device in node.devices if device.state}
        look = "look the agent's log up in docs/troubleshooting.md"
        for reasons, severity in ((node.agent.reasons, Severity.BLOCKS), (node.agent.degraded, Severity.DOUBT)):
            yield from (Check("agent", reason, severity, look) for reason in reasons if reason not in told)
        if node.agent.waiting_for:
            yield Check("agent", f"it waits for {node.agent.waiting_for}", Severity.DOUBT, "write it")
    elif node.presence is Presence.FAILS:
        yield Check("agent", node.silence, Severity.BLOCKS, "start it again")
    elif node.presence is Presence.REFUSES:
        yield Check("agent", node.silence, Severity.DOUBT, "sudo vdpa-agent doctor  # to hear what it knows")
    else:
        yield Check("agent", node.silence, Severity.DOUBT, "vdpa-agent run")


def _lists(node: Node) -> Iterator[Check]:
    if node.pools is not None:
        yield from _pools(node, node.pools)
    if node.role is not Role.SERVING and not (node.pools is not None and node.wanted.problem == ABSENT):
        yield from _device_list(node)
    if node.role is not Role.MANAGING:
        yield from _mapping(node)


def _device_list(node: Node) -> Iterator[Check]:
    wanted, path = node.wanted, node.pci_list
    every_vf = f"ls -d /sys/bus/pci/devices/*/physfn | cut -d/ -f6 > {path}  # all VFs of this machine"
    correct = every_vf if wanted.problem == ABSENT else f"change {path} as the reason says"
    if wanted.value is None:
        # Somebody may ask for devices that no list names yet.
        severity = Severity.DOUBT if node.devices else Severity.BLOCKS
        yield Check("device list", no_device_list(wanted, str(path)), severity, correct)
        return
    if wanted.value:
        yield Check("device list", f"{path} names {len(wanted.value)} devices")
    else:
        severity = Severity.DOUBT if node.devices else Severity.BLOCKS
        yield Check("device list", f"{path} names no device", severity, every_vf)
    if wanted.problem:
        yield Check("device list", f"its last good content counts: {wanted.problem}", Severity.DOUBT, correct)


def _pools(node: Node, pools: PoolsFacts) -> Iterator[Check]:
    if pools.problem:
        severity = Severity.DOUBT if pools.is_loaded or node.devices else Severity.BLOCKS
        told = "its last good content counts" if pools.is_loaded else "no resource config is loaded"
        yield Check("resource config", f"{pools.path}: {told}: {pools.problem}", severity, f"correct {pools.path}")
    for pool in pools.pools:
        by = "; ".join(f"{count} by {selector}" for selector, count in pool.selectors[:_SHOWN])
        told = f"{pool.devices} VFs{': ' + by if by else ''}"
        if pool.devices:
            yield Check(f"pool {pool.resource}", told)
        else:
            remedy = f"correct its selectors in {pools.path}; what VFs in no pool lack is said of them"
            yield Check(f"pool {pool.resource}", told, Severity.DOUBT, remedy)
    for address, owner, other in pools.contested[:_SHOWN]:
        told = f"{address} is in {owner}, and {other} asks for it too"
        yield Check(f"pool {owner}", told, Severity.DOUBT, f"have their selectors in {pools.path} exclude each other")
    for reason, addresses in pools.outside:
        more = f" and {len(addresses) - _SHOWN} more" if len(addresses) > _SHOWN else ""
        yield Check("in no pool", f"{', '.join(addresses[:_SHOWN])}{more}: {reason}")


def _mapping(node: Node) -> Iterator[Check]:
    mapping, path = node.mapping, node.socket_list
    correct = (
        f"start the daemon that writes {path}" if mapping.problem == ABSENT else f"change {path} as the reason says"
    )
    if mapping.value is not None:
        yield Check("mapping", f"{path}, which somebody else writes, has {len(mapping.value)} entries")
        if mapping.problem:
            yield Check("mapping", f"its last good content counts: {mapping.problem}", Severity.DOUBT, correct)
    elif node.role is Role.SERVING or mapping.problem != ABSENT:
        yield Check("mapping", no_mapping(mapping, str(path)), Severity.BLOCKS, correct)


def _daemon(node: Node) -> Iterator[Check]:
    program = node.program
    if program is None:
        return
    runs = node.agent.daemon_pid if node.agent else None
    found = program.problem or ", ".join(filter(None, (program.name, program.version)))
    several = f", one of {node.agent.daemons}, one for each device" if node.agent and node.agent.daemons else ""
    told = f"process {runs} runs{several}; {found}" if runs else found
    if not program.problem:
        yield Check("daemon", told)
    else:
        # What runs does not need its file any more; the next start will.
        severity = Severity.DOUBT if runs else Severity.BLOCKS
        yield Check("daemon", told, severity, "vdpa-agent run --vdpad=/path/to/vdpad")


def _system(node: Node) -> Iterator[Check]:
    for lack in node.lacks:
        # An agent that answers has it where it runs.
        yield Check("system", lack.problem, Severity.DOUBT if node.agent else Severity.BLOCKS, lack.remedy)


def _http2(node: Node) -> Iterator[Check]:
    if node.http2.problem:
        # An agent that answers has one where it runs.
        severity = Severity.DOUBT if node.agent else Severity.BLOCKS
        yield Check("gRPC", node.http2.problem, severity, node.http2.remedy)
    elif node.http2.name:
        yield Check("gRPC", node.http2.name)


def _directories(node: Node) -> Iterator[Check]:
    for directory in node.directories:
        mode = f"mode {directory.mode:04o} of {directory.owner}"
        there = directory.ancestor == directory.path
        # A running agent shows by itself that it may write, whoever asks here.
        if node.presence is Presence.ABSENT and not directory.writable:
            wrong = f"{node.user} may not write to {directory.ancestor}, {mode}"
            remedy = f"chown {node.user}" if there else f"install -d -o {node.user}"
            yield Check("directory", wrong, Severity.BLOCKS, f"{remedy} {directory.path}  # as root")
        elif directory.mode & _OTHERS_MAY_WRITE and there:
            wrong = f"any user may write to {directory.path}, {mode}"
            yield Check("directory", wrong, Severity.DOUBT, f"chmod o-w {directory.path}")
        else:
            yield Check("directory", f"{directory.path}, {mode}" if there else f"{directory.path} will be made")


def _memory(node: Node) -> Iterator[Check]:
    if node.program is None:
        return
    sizes = [f"{size.free} of {size.total} free, {size.size_kib} KiB each" for size in node.hugepages if size.total]
    pages = "; ".join(sizes)
    free = any(size.free for size in node.hugepages)
    runs = node.agent is not None and node.agent.daemon_pid is not None
    limit = forbidden(node.hugepages)
    if node.memory == "none":
        yield Check("memory", "ordinary, as --memory none wants it")
    elif limit is not None and node.memory == "auto":
        yield Check("memory", f"ordinary: {limit.reason}", Severity.DOUBT, limit.remedy)
    elif limit is not None:
        # A daemon that runs has its pages; the next one would get none.
        severity = Severity.DOUBT if runs else Severity.BLOCKS
        yield Check("memory", f"--memory hugepages, but {limit.reason}", severity, f"{limit.remedy}, or --memory none")
    elif free or (pages and runs):
        yield Check("memory", f"hugepages: {pages}")
    elif node.memory == "auto":
        yield Check("memory", f"ordinary: {'no hugepage is free: ' + pages if pages else 'there are no hugepages'}")
    else:
        wrong = f"--memory hugepages, but {'none is free: ' + pages if pages else 'there are none'}"
        total = max((size.total for size in node.hugepages), default=0)
        remedy = f"echo {total + 64} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages  # or --memory none"
        yield Check("memory", wrong, Severity.BLOCKS, remedy)


def _limits(node: Node) -> Iterator[Check]:
    if node.program is None:
        return
    limits = node.limits
    whose = "the daemon" if limits.pid else "a daemon started here"
    needed = _OPEN_FILES_BASE + _OPEN_FILES_PER_DEVICE * len(node.devices)
    if limits.open_files is not None and limits.open_files < needed:
        wrong = f"{whose} may have {limits.open_files} files open, fewer than {needed} for {len(node.devices)} devices"
        remedy = f"prlimit --pid {limits.pid} --nofile={needed}" if limits.pid else f"ulimit -n {needed}"
        yield Check("open files", wrong, Severity.DOUBT, remedy)
    else:
        yield Check("open files", f"{whose} may have {limits.open_files or 'any number of'} files open")
    if not node.hardware:
        return
    if limits.locked_bytes is None:
        yield Check("locked memory", f"{whose} may lock any")
    else:
        # VFIO and mlx5 lock a front end's memory while a device may reach it (the kernel's account_locked_vm()).
        wrong = f"{whose} may lock {limits.locked_bytes // 1024} KiB of memory, and no front end may have more"
        remedy = f"prlimit --pid {limits.pid} --memlock=unlimited" if limits.pid else "ulimit -l unlimited"
        yield Check("locked memory", wrong, Severity.DOUBT, f"{remedy}  # for a systemd unit LimitMEMLOCK=infinity")


def _vfio(node: Node) -> Iterator[Check]:
    if not any(device.pci and kernel_driver_of(device.pci) == VFIO for device in node.devices):
        return
    if node.vfio:
        yield Check("vfio", f"the module {VFIO} is loaded")
    else:
        # Each device that it keeps from being served is told by itself.
        wrong = f"the module {VFIO} is not loaded, so nothing can be bound to it"
        remedy = f"modprobe {VFIO}  # at each boot: echo {VFIO} > /etc/modules-load.d/{VFIO}.conf"
        yield Check("vfio", wrong, Severity.DOUBT, remedy)


def _selinux(node: Node) -> Iterator[Check]:
    if not node.enforcing:
        yield Check("selinux", "not enforced")
        return
    parts = node.label.split(":")
    kind = parts[2] if len(parts) > 2 else ""  # noqa: PLR2004 - user:role:type:level
    if kind in _SHARED_TYPES:
        yield Check("selinux", f"enforced, {node.socket_dir} is {kind}")
    else:
        wrong = f"enforced, and {node.socket_dir} is {kind or 'without a label'}: pods may be kept from its sockets"
        yield Check("selinux", wrong, Severity.DOUBT, f"chcon -R -t container_file_t {node.socket_dir}")


def _device(node: Node, device: DeviceFacts) -> Iterator[Check]:
    served = device.state in SERVED
    unlisted = _unlisted(node, device)
    if unlisted is not None:
        yield unlisted
    findings: tuple[Finding, ...] = ()
    if device.pci is not None:
        hugepages = takes_hugepages(node.memory, node.numa, node.hugepages)
        findings = assess(device.pci, node.numa, hugepages=hugepages).findings
    if device.state is not None and not served and device.reason not in {str(finding) for finding in findings}:
        reason = not_served(device.address, device.state, device.reason)
        yield Check(device.address, reason, Severity.BLOCKS, "it is tried again; the agent's log may tell more")
    for finding in findings:
        # What is served in spite of all is not blocked.
        severity = Severity.DOUBT if served else finding.severity
        yield Check(device.address, finding.reason, severity, finding.remedy)
    wrong = [*_device_files(device), *_socket(node, device)]
    yield from wrong
    if (device.state is None or served) and not findings and not wrong and not unlisted:
        yield Check(device.address, _right(device))


def _unlisted(node: Node, device: DeviceFacts) -> Check | None:
    """What to do about a device that somebody asks for and nobody else knows."""
    address = device.address
    if node.role is Role.SERVING:
        if device.address in (node.mapping.value or Mapping()).sockets:
            return None
        start = f"have the daemon that writes {node.socket_list} serve it"
        return Check(address, f"{address} is not in {node.socket_list}", Severity.BLOCKS, start)
    if address in (node.wanted.value or ()) or address in node.pooled:
        return None
    add = f"echo {address} >> {node.pci_list}"
    return Check(address, f"{address} is not in {node.pci_list}", Severity.DOUBT, add)


def _device_files(device: DeviceFacts) -> Iterator[Check]:
    """The first file of VFIO's that the daemon cannot open: it does not come to the other then."""
    file = next((file for file in device.vfio if not file.usable), None)
    if file is None:
        return
    severity = Severity.DOUBT if device.state in SERVED else Severity.BLOCKS
    if file.mode is None:
        remedy = "give the container /dev/vfio, as hostDevices of the chart; without a container: udevadm trigger"
        yield Check(device.address, f"{file.path} is not there", severity, remedy)
    else:
        wrong = f"{file.user} may not read and write {file.path}, mode {file.mode:04o} of {file.owner}"
        chown = f'chown {file.user} {file.path}  # for good by udev: SUBSYSTEM=="vfio", OWNER="{file.user}"'
        # The kernel makes the container for everybody: who opens it has no device yet (its drivers/vfio/container.c).
        remedy = f"chmod 0666 {file.path}" if file.path == VFIO_CONTAINER else chown
        yield Check(device.address, wrong, severity, remedy)


def _socket(node: Node, device: DeviceFacts) -> Iterator[Check]:
    socket = device.socket
    if socket is None:
        return
    if socket.dead:
        if device.state is None:
            start = f"start the daemon that writes {node.socket_list}"
            yield Check(device.address, socket.dead, Severity.BLOCKS, start)
        return
    if None not in {socket.mode, socket.wanted_mode} and socket.mode != socket.wanted_mode:
        wrong = f"{socket.path} has mode {socket.mode:04o}, not {socket.wanted_mode:04o}"
        yield Check(device.address, wrong, Severity.DOUBT, f"chmod {socket.wanted_mode:04o} {socket.path}")
    if socket.owner and socket.wanted_owner and socket.owner != socket.wanted_owner:
        wrong = f"{socket.path} is owned by {socket.owner}, not by {socket.wanted_owner}"
        yield Check(device.address, wrong, Severity.DOUBT, f"chown {socket.wanted_owner} {socket.path}")


def _right(device: DeviceFacts) -> str:
    """What a device is that nothing is wrong with."""
    told = [device.state.value] if device.state else []
    pci, socket = device.pci, device.socket
    if pci is not None and pci.exists:
        told += [f"VF of {pci.pf}"] if pci.pf else []
        told += [f"driver {pci.driver}"] if pci.driver else []
        told += [f"IOMMU group {pci.iommu_group}"] if pci.iommu_group is not None else []
        told += [f"NUMA node {pci.numa_node}"] if pci.numa_node is not None else []
    if socket is not None:
        mode = f" (mode {socket.mode:04o} of {socket.owner})" if socket.mode is not None else ""
        told.append(f"socket {socket.path}{mode}")
    return ", ".join(told) or "on the list"
