"""Reads of this node what a diagnosis goes by, with a running agent's help or without."""

import asyncio
import grp
import os
import pwd
import resource
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from vdpa_agent.cli import client
from vdpa_agent.cli.sources import Sources, sources_of_agent, sources_of_files
from vdpa_agent.config import AgentConfig, DaemonConfig, DaemonMode
from vdpa_agent.errors import DaemonUnusable, NotReachable
from vdpa_agent.model.daemon import DeviceState, VhostMode
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping as SocketMapping
from vdpa_agent.model.node import (
    VFIO_CONTAINER,
    AgentFacts,
    DeviceFacts,
    DirectoryFacts,
    LimitFacts,
    Node,
    Presence,
    ProgramFacts,
    SocketFacts,
    VfioFacts,
)
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.preflight import VFIO, PciFacts
from vdpa_agent.node.process import Process, read_process
from vdpa_agent.node.sockets import dead_sockets
from vdpa_agent.node.sysfs import read_driver, read_enforcing, read_facts, read_hugepages, read_numa
from vdpa_agent.serve.pb import device_service_pb2 as pb

_VERSION_S: Final = 5.0
"""How long a program may take to say its version."""

_LABEL: Final = "security.selinux"
_SYSFS: Final = Path("/sys")

T = TypeVar("T")


class Told(NamedTuple):
    """What a running agent told; without one, why there is none.

    Attributes:
        status: how it fares; None: no agent answers.
        devices: its devices.
        presence: whether there is one all the same.
        silence: why none answers.
    """

    status: pb.GetStatusResponse | None = None
    devices: tuple[pb.Device, ...] = ()
    presence: Presence = Presence.ANSWERS
    silence: str = ""

    @property
    def settings(self) -> Mapping[str, str]:
        """Its settings by the name of their option; none without an agent."""
        return dict(self.status.settings) if self.status else {}


def ask_agent(path: Path, *, timeout_s: float) -> Told:
    """Asks the agent at a socket for all that it knows; that there is none is an answer too."""

    async def ask() -> Told:
        status = await client.ask_status(path, timeout_s=timeout_s)
        return Told(status, tuple(await client.ask_devices(path, timeout_s=timeout_s)))

    try:
        with asyncio.Runner() as runner:
            return runner.run(ask())
    except NotReachable as error:
        return Told(presence=_presence(error.__cause__), silence=str(error))


def _presence(cause: BaseException | None) -> Presence:
    """What the failure of a call says of the agent."""
    if isinstance(cause, PermissionError) or (
        isinstance(cause, GRPCError) and cause.status is Status.PERMISSION_DENIED
    ):
        return Presence.REFUSES
    return Presence.FAILS if isinstance(cause, TimeoutError | GRPCError) else Presence.ABSENT


def look_around(config: AgentConfig, told: Told, only: DeviceList) -> Node:
    """Returns what there is.

    Args:
        config: the settings that a running agent has, or that one would be started with.
        told: what the running agent told.
        only: the devices to look at; none: those of the lists.
    """
    if told.status is not None:
        sources = sources_of_agent(config, told.status, told.devices)
    else:
        sources = sources_of_files(config)
    mapping = sources.mapping
    role = _role(config, told, sources)
    managed = role is not Role.SERVING
    daemon_pid = _daemon_pid(told)
    vdpad = managed and config.daemon.mode is not DaemonMode.COMMAND
    hardware = vdpad and not config.daemon.simulate
    directories = {config.files.pci_list.parent, config.files.socket_list.parent, config.serve.listen.parent}
    if managed:
        directories.add(config.daemon.socket_dir)
    return Node(
        presence=told.presence,
        agent=_agent(told),
        silence=told.silence,
        socket=str(config.serve.listen),
        role=role,
        pci_list=str(config.files.pci_list),
        socket_list=str(config.files.socket_list),
        wanted=sources.wanted,
        mapping=mapping,
        pools=sources.pools,
        pooled=frozenset(sources.pooled),
        program=_program(config) if managed else None,
        directories=tuple(_directory(path) for path in sorted(directories)),
        devices=_devices(config, told, only or _addresses(role, sources), mapping, vdpad=vdpad),
        hardware=hardware,
        vfio=read_driver(VFIO, config.daemon.sysfs),
        numa=read_numa(os.sched_getaffinity(0), config.daemon.sysfs),
        memory=config.daemon.memory,
        hugepages=read_hugepages(config.daemon.sysfs, Path(f"/proc/{daemon_pid or 'self'}")),
        limits=_limits(daemon_pid),
        enforcing=read_enforcing(config.daemon.sysfs),
        label=_label(config.daemon.socket_dir),
        socket_dir=str(config.daemon.socket_dir),
        user=_user(os.geteuid()),
    )


def _agent(told: Told) -> AgentFacts | None:
    if told.status is None:
        return None
    status = told.status
    return AgentFacts(
        version=status.version,
        reasons=tuple(status.not_ready_reasons),
        degraded=tuple(status.degraded_reasons),
        waiting_for=status.waiting_for,
        daemon_pid=_daemon_pid(told),
        daemons=len(status.daemons),
    )


def _daemon_pid(told: Told) -> int | None:
    """The daemon, or one of those of the devices: they differ in nothing that is looked at here."""
    status = told.status
    pids = [daemon.pid for daemon in (status.daemon, *status.daemons.values()) if daemon.pid] if status else []
    return min(pids, default=None)


def _role(config: AgentConfig, told: Told, sources: Sources) -> Role:
    """Who owns the sockets, or would if an agent were started."""
    if config.daemon.mode is DaemonMode.NONE:
        return Role.SERVING
    if told.status is not None:
        return Role[pb.Role.Name(told.status.role).removeprefix("ROLE_")]
    if sources.has_devices:
        return Role.MANAGING
    return Role.WAITING if sources.mapping.value is None else Role.SERVING


def _program(config: AgentConfig) -> ProgramFacts:
    daemon = config.daemon
    name = shlex.split(daemon.command)[0] if daemon.command else daemon.program
    try:
        path = _find(name)
        # Only vdpad is known to answer this and end.
        version = "" if daemon.command else _version(path)
    except DaemonUnusable as error:
        return ProgramFacts(name=name, problem=str(error))
    return ProgramFacts(name=path, version=version)


def _find(name: str) -> str:
    """The path of a program.

    Raises:
        DaemonUnusable: there is no such program.
    """
    program = shutil.which(name)
    if program is None:
        message = f"{name} is not an executable program; install vdpad or name it with --vdpad"
        raise DaemonUnusable(message)
    return program


def _version(path: str) -> str:
    """The first line that a program says to --version.

    Raises:
        DaemonUnusable: it does not run here.
    """
    try:
        ran = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        said = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else f"silent for {_VERSION_S:g} s"
    else:
        if ran.returncode == 0:
            return ran.stdout.decode(errors="replace").partition("\n")[0]
        said = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {ran.returncode}"
    message = f"{path} --version fails: {said}"
    raise DaemonUnusable(message)


def _directory(path: Path) -> DirectoryFacts:
    ancestor = next(above for above in (path, *path.parents) if os.path.exists(above))  # noqa: PTH110 - Path.exists() may raise
    status = ancestor.stat()
    return DirectoryFacts(
        path=str(path),
        ancestor=str(ancestor),
        mode=stat.S_IMODE(status.st_mode),
        owner=_owner(status),
        writable=os.access(ancestor, os.W_OK | os.X_OK),
    )


def _addresses(role: Role, sources: Sources) -> DeviceList:
    if role is Role.MANAGING:
        return tuple(dict.fromkeys((*(sources.wanted.value or ()), *sources.pooled)))
    return tuple(address for address, _ in sources.mapping.value or ())


def _devices(
    config: AgentConfig, told: Told, addresses: DeviceList, mapping: Loaded[SocketMapping], *, vdpad: bool
) -> tuple[DeviceFacts, ...]:
    """What there is of each device; the kernel's table is read once for all sockets."""
    known = {PciAddress(device.pci_address): device for device in told.devices}
    daemon = _opener(config, told)
    sockets = {address: device.socket_path for address, device in known.items()} | dict(mapping.value or ())
    dead = dead_sockets(socket for address, socket in sockets.items() if address in addresses and socket)
    devices = []
    for address in addresses:
        device, path = known.get(address), sockets.get(address)
        pci = read_facts(address, config.daemon.sysfs) if vdpad and not config.daemon.simulate else None
        devices.append(
            DeviceFacts(
                address=address,
                pci=pci,
                vfio=_vfio(pci, daemon) if pci and daemon else (),
                socket=_socket(path, dead.get(path, ""), config.daemon, vdpad=vdpad) if path else None,
                state=_state(device) if device else None,
                reason=device.reason if device else "",
            )
        )
    return tuple(devices)


def _opener(config: AgentConfig, told: Told) -> Process | None:
    """Who opens device files: the daemon, or one that were started here; None where that is not known.

    A copy of sysfs has no /dev beside it.
    """
    pid = _daemon_pid(told)
    if config.daemon.sysfs != _SYSFS or not (pid or told.presence is Presence.ABSENT):
        return None
    try:
        return read_process(pid)
    except OSError:
        return None


def _vfio(pci: PciFacts, daemon: Process) -> tuple[VfioFacts, ...]:
    """What must be opened for a device that is bound to vfio-pci; not opened here, since a group can be only once."""
    if pci.driver != VFIO or pci.iommu_group is None:
        return ()
    try:
        return tuple(_vfio_file(path, daemon) for path in (VFIO_CONTAINER, f"/dev/vfio/{pci.iommu_group}"))
    except OSError:
        return ()


def _vfio_file(path: str, daemon: Process) -> VfioFacts:
    """One of them.

    Raises:
        OSError: the files that the daemon sees may not be looked at.
    """
    user, seen = _user(daemon.user), daemon.root / path.lstrip("/")
    # A root that may not be looked at must not pass for one without the file.
    daemon.root.stat()
    try:
        status = seen.stat()
    except FileNotFoundError:
        return VfioFacts(path=path, user=user)
    usable = daemon.may_use(seen, status)
    return VfioFacts(path=path, user=user, usable=usable, mode=stat.S_IMODE(status.st_mode), owner=_owner(status))


def _state(device: pb.Device) -> DeviceState:
    return DeviceState[pb.DeviceState.Name(device.state).removeprefix("DEVICE_STATE_")]


def _socket(path: str, dead: str, daemon: DaemonConfig, *, vdpad: bool) -> SocketFacts:
    """A socket file beside what it should be, if vdpad opens it."""
    try:
        status = Path(path).lstat()
    except OSError:
        return SocketFacts(path=path, dead=dead)
    if not vdpad or daemon.vhost_mode is VhostMode.CLIENT:
        return SocketFacts(path=path, dead=dead, mode=stat.S_IMODE(status.st_mode), owner=_owner(status))
    owner = _id(daemon.socket_owner, lambda name: pwd.getpwnam(name).pw_uid, status.st_uid)
    group = _id(daemon.socket_group, lambda name: grp.getgrnam(name).gr_gid, status.st_gid)
    return SocketFacts(
        path=path,
        dead=dead,
        mode=stat.S_IMODE(status.st_mode),
        owner=_owner(status),
        wanted_mode=daemon.socket_mode,
        wanted_owner=f"{_user(owner)}:{_group(group)}",
    )


def _id(name: str | None, look_up: Callable[[str], int], present: int) -> int:
    """The number of a user or group; that of now where none is asked for, or nobody here knows it."""
    if name is None or name.isdecimal():
        return int(name or present)
    try:
        return look_up(name)
    except KeyError:
        return present


def _owner(status: os.stat_result) -> str:
    return f"{_user(status.st_uid)}:{_group(status.st_gid)}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _limits(pid: int | None) -> LimitFacts:
    """The limits of the daemon, or of this process where there is none or it may not be looked at."""
    try:
        return _limits_of(pid)
    except OSError:
        return _limits_of(None)


def _limits_of(pid: int | None) -> LimitFacts:
    # vdpad raises its own limit of open files as far as it may.
    _, open_files = resource.prlimit(pid or 0, resource.RLIMIT_NOFILE)
    locked_bytes, _ = resource.prlimit(pid or 0, resource.RLIMIT_MEMLOCK)
    unlimited = locked_bytes == resource.RLIM_INFINITY or _locks_any_memory(pid)
    return LimitFacts(
        pid=pid,
        open_files=None if open_files == resource.RLIM_INFINITY else open_files,
        locked_bytes=None if unlimited else locked_bytes,
    )


def _locks_any_memory(pid: int | None) -> bool:
    try:
        return read_process(pid).locks_any_memory
    except OSError:
        return False


def _label(path: Path) -> str:
    try:
        return os.getxattr(path, _LABEL).rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""
