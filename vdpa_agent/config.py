"""Frozen, validated settings; each component gets its own section."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from vdpa_agent.errors import ConfigError
from vdpa_agent.model.backoff import Backoff
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.health import ReadyWhen
from vdpa_agent.model.mapping import SOCKET_PATH_MAX_BYTES
from vdpa_agent.model.naming import DEVICE_SOCKET, SocketNaming
from vdpa_agent.model.pci import PciAddress

RUN_DIRECTORY: Final = Path("/var/run/vdpa")
"""Where the device plugin, the daemon and the CNI plugins meet."""

DEFAULT_SOCKET_LIST: Final = RUN_DIRECTORY / "socketList.dat"
DEFAULT_PCI_LIST: Final = RUN_DIRECTORY / "pciList.dat"
DEFAULT_SOCKET_DIRECTORY: Final = RUN_DIRECTORY / "vhost"
DEFAULT_LISTEN: Final = RUN_DIRECTORY / "vdpa.sock"

_LONGEST_DEVICE_SOCKET: Final = f"/00000000:00:00.0/{DEVICE_SOCKET}"
CONNECTIONS_FOR_ROOT: Final = 64
"""Connections that only root gets: the CNI plugins', however many others there are."""

_LONGEST_SOCKET_NAME: Final = "/vdpa-00000000:00:00.0"


class DaemonMode(StrEnum):
    """Who owns the vhost-user sockets."""

    AUTO = "auto"
    """This agent's vdpad where there is a device list, else another process."""
    NONE = "none"
    """Somebody else."""
    VDPAD = "vdpad"
    """This agent's vdpad."""
    COMMAND = "command"
    """This agent, by the program of --daemon-command."""


class SimulatedNetwork(StrEnum):
    """What software devices do with packets."""

    LOOPBACK = "loopback"
    """Each gives back what it is sent."""
    SWITCH = "switch"
    """Those of one PCI bus, as of one PF, are ports of one switch."""


class Isolation(StrEnum):
    """How many daemons serve the devices."""

    SHARED = "shared"
    """One for all of them."""
    DEVICE = "device"
    """One for each of them."""


class Memory(StrEnum):
    """What the daemon takes its memory from."""

    AUTO = "auto"
    """Hugepages where there are free ones."""
    HUGEPAGES = "hugepages"
    NONE = "none"


class LogLevel(StrEnum):
    """The least level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    """Text on a terminal, else JSON."""
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesConfig:
    """Where the lists are.

    Attributes:
        socket_list: the mapping.
        pci_list: the device list.
        resource_config: the pools of VFs; None: there are none.
    """

    socket_list: Path = DEFAULT_SOCKET_LIST
    pci_list: Path = DEFAULT_PCI_LIST
    resource_config: Path | None = None

    def __post_init__(self) -> None:
        for option, path in (("--socket-list", self.socket_list), ("--pci-list", self.pci_list)):
            _absolute(option, path)
            if not path.name:
                message = f"{option} {path} is a directory, name a file in it"
                raise ConfigError(message)
        if self.resource_config is not None:
            _absolute("--resource-config", self.resource_config)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """How the daemon is run.

    Attributes:
        mode: who owns the sockets.
        program: vdpad, a path or a name to be found on the PATH.
        command: the command line of another program in its place, as for a shell; empty: vdpad.
        isolation: whether vdpad serves all devices, or there is one for each.
        simulate: every device becomes a software device.
        simulate_network: what those do with packets.
        devargs: the DPDK device arguments of some devices, in place of those that their vendor calls for.
        sysfs: where sysfs is mounted.
        socket_dir: where the vhost-user sockets are.
        socket_naming: how they are named.
        socket_mode: their permission bits.
        socket_owner: their owner, a name or a number; None leaves it.
        socket_group: their group, likewise.
        vhost_mode: which end opens them.
        memory: what the daemon takes its memory from.
        log_level: the least level that the daemon logs.
        start_timeout_s: how long it may take to answer first, in seconds.
        stop_grace_s: how long it may take to end when asked, in seconds; the ways to ask share it.
        drain_timeout_s: how long a device that left the list is kept for the front end that uses it, in seconds.
        backoff: the delays before it is started again.
    """

    mode: DaemonMode = DaemonMode.AUTO
    program: str = "vdpad"
    command: str = ""
    isolation: Isolation = Isolation.SHARED
    simulate: bool = False
    simulate_network: SimulatedNetwork = SimulatedNetwork.LOOPBACK
    devargs: Mapping[PciAddress, str] = field(default_factory=lambda: MappingProxyType({}))
    sysfs: Path = Path("/sys")
    socket_dir: Path = DEFAULT_SOCKET_DIRECTORY
    socket_naming: SocketNaming = SocketNaming.INDEX
    socket_mode: int = 0o660
    socket_owner: str | None = None
    socket_group: str | None = None
    vhost_mode: VhostMode = VhostMode.SERVER
    memory: Memory = Memory.AUTO
    log_level: LogLevel = LogLevel.INFO
    start_timeout_s: float = 30.0
    stop_grace_s: float = 5.0
    drain_timeout_s: float = 30.0
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def device_dir(self) -> Path:
        """Where each device has a directory of its own: beside the sockets, on the same file system."""
        return self.socket_dir.with_name("devices")

    def __post_init__(self) -> None:
        _absolute("--socket-dir", self.socket_dir)
        _absolute("--sysfs", self.sysfs)
        longest = f"{self.socket_dir}{_LONGEST_SOCKET_NAME}"
        if len(longest.encode()) > SOCKET_PATH_MAX_BYTES:
            message = (
                f"--socket-dir {self.socket_dir} is too long: a socket in it would exceed the"
                f" {SOCKET_PATH_MAX_BYTES} bytes that a unix socket's path may have; choose a shorter one"
            )
            raise ConfigError(message)
        if (self.mode is DaemonMode.COMMAND) != bool(self.command):
            message = f"--daemon {self.mode} and --daemon-command {self.command!r} contradict each other, drop one"
            raise ConfigError(message)
        if self.simulate_network is SimulatedNetwork.SWITCH:
            self._check_switch()
        if self.command:
            if self.isolation is Isolation.DEVICE:
                message = "--isolation device is a way to run vdpad, drop it or --daemon-command"
                raise ConfigError(message)
            self._check_command()

    def _check_switch(self) -> None:
        if not self.simulate:
            message = "--simulate-network switch is for software devices, add --simulate or drop it"
            raise ConfigError(message)
        if self.isolation is Isolation.DEVICE:
            message = (
                "--simulate-network switch joins the devices of one vdpad, and --isolation device gives each its own:"
                " drop one of them"
            )
            raise ConfigError(message)

    def _check_command(self) -> None:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            message = f"--daemon-command {self.command!r} is no command line: {str(error).lower()}"
            raise ConfigError(message) from error
        if not words:
            message = "--daemon-command is blank, name a program"
            raise ConfigError(message)


class HostPort(NamedTuple):
    """Where HTTP is served.

    Attributes:
        host: a name, an IPv4 or an IPv6 address, the latter without brackets.
        port: 0 stands for any free one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Who may call, and how much one user may take of the agent from the others.

    What a single connection may take is fixed, see rpc/limits.py. `GetSocketpath` owes an answer to every well-formed
    request: the rate is far above what a node's CNI plugins ask for, which start a pod or two a second, not hundreds.

    Attributes:
        allow_uids: the users who may call; root and the agent's own user always may.
        allow_gids: the groups whose members may call.
        connections: connections of everybody together, of which `CONNECTIONS_FOR_ROOT` are root's alone.
        connections_per_uid: connections of one user other than root; of all who may not call together, a quarter.
        open_calls_per_uid: calls of one user that wait for their answers.
        calls_per_s: calls that one user may make for long, a second, and twice as many at once; more have to wait.
    """

    allow_uids: frozenset[int] = frozenset()
    allow_gids: frozenset[int] = frozenset()
    connections: int = 2_048
    connections_per_uid: int = 64
    open_calls_per_uid: int = 4_096
    calls_per_s: int = 1_000

    def __post_init__(self) -> None:
        if self.connections <= CONNECTIONS_FOR_ROOT:
            message = (
                f"--max-connections {self.connections} leaves nothing to others than root, who has"
                f" {CONNECTIONS_FOR_ROOT} of them, raise it"
            )
            raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Where the agent answers, and whom.

    Attributes:
        listen: the path of the gRPC socket.
        listen_mode: its permission bits.
        listen_group: its group, a number; None leaves it.
        limits: who may call, and how much.
        hold_timeout_s: how long a call for a wanted device that is not ready may wait, in seconds; 0: not at all.
        require_sockets: another process's mapping is ready only if all of its sockets listen.
        ready_when: what readiness takes.
        example_data: serve the 16 example VFs instead of any file.
        http_listen: where metrics and probes are served by HTTP; None: nowhere.
        tracing: whether calls are traced, to where the variables of OpenTelemetry say.
    """

    listen: Path = DEFAULT_LISTEN
    listen_mode: int = 0o660
    listen_group: int | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    hold_timeout_s: float = 8.0
    require_sockets: bool = False
    ready_when: ReadyWhen = ReadyWhen.RUNNING
    example_data: bool = False
    http_listen: HostPort | None = None
    tracing: bool = False

    def __post_init__(self) -> None:
        check_socket_path("--listen", self.listen)


class KubeletConfig(NamedTuple):
    """How the agent speaks with the kubelet.

    Attributes:
        directory: the kubelet's, in which plugins register; None: the agent does not speak with it.
        device_info: where a file for each device is kept for Multus; None: nowhere.
    """

    directory: Path | None = None
    device_info: Path | None = None


class LogConfig(NamedTuple):
    """How the agent logs, to standard error."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """All sections of `vdpa-agent run`."""

    files: FilesConfig = field(default_factory=FilesConfig)
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    kubelet: KubeletConfig = field(default_factory=KubeletConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        paths = {
            "--listen": self.serve.listen,
            "--socket-list": self.files.socket_list,
            "--pci-list": self.files.pci_list,
            "--socket-dir": self.daemon.socket_dir,
        }
        if self.files.resource_config is not None:
            paths["--resource-config"] = self.files.resource_config
            longest = f"{self.daemon.device_dir}{_LONGEST_DEVICE_SOCKET}"
            if len(longest.encode()) > SOCKET_PATH_MAX_BYTES:
                message = (
                    f"--socket-dir {self.daemon.socket_dir} is too long: a socket in {self.daemon.device_dir} would"
                    f" exceed the {SOCKET_PATH_MAX_BYTES} bytes that a unix socket's path may have; shorten it"
                )
                raise ConfigError(message)
        if self.daemon.device_dir == self.daemon.socket_dir:
            message = f"--socket-dir {self.daemon.socket_dir} is the place of the devices' own directories"
            raise ConfigError(message)
        self._check_kubelet()
        options: dict[Path, str] = {}
        for option, path in paths.items():
            other = options.setdefault(path, option)
            if other != option:
                message = f"{other} and {option} are both {path}, give them two names"
                raise ConfigError(message)
        if self.serve.example_data and self.daemon.mode is DaemonMode.VDPAD:
            message = "--example-data serves sockets that no daemon opens, drop it or --daemon vdpad"
            raise ConfigError(message)

    def _check_kubelet(self) -> None:
        if self.kubelet.directory is not None:
            _absolute("--kubelet-dir", self.kubelet.directory)
            if self.files.resource_config is None:
                message = "--kubelet-dir offers the pools of --resource-config to the kubelet, give one"
                raise ConfigError(message)
        if self.kubelet.device_info is not None:
            _absolute("--device-info-dir", self.kubelet.device_info)
            if self.kubelet.directory is None:
                message = "--device-info-dir is about the devices that the kubelet hands out, give --kubelet-dir"
                raise ConfigError(message)


def settings_in_force(config: AgentConfig) -> dict[str, str]:
    """The settings by the name of their option, for people to read."""
    files, daemon, serve, limits = config.files, config.daemon, config.serve, config.serve.limits
    settings: dict[str, object] = {
        "pci-list": files.pci_list,
        "socket-list": files.socket_list,
        "resource-config": files.resource_config or "",
        "kubelet-dir": config.kubelet.directory or "",
        "device-info-dir": config.kubelet.device_info or "",
        "listen": serve.listen,
        "listen-mode": f"{serve.listen_mode:04o}",
        "listen-group": "" if serve.listen_group is None else serve.listen_group,
        "allow-uid": " ".join(map(str, sorted(limits.allow_uids))),
        "allow-gid": " ".join(map(str, sorted(limits.allow_gids))),
        "max-connections": limits.connections,
        "max-connections-per-uid": limits.connections_per_uid,
        "max-open-calls-per-uid": limits.open_calls_per_uid,
        "max-calls-per-second": limits.calls_per_s,
        "http-listen": serve.http_listen or "",
        "hold-timeout": f"{serve.hold_timeout_s:g}",
        "ready-when": serve.ready_when,
        "require-sockets": str(serve.require_sockets).lower(),
        "example-data": str(serve.example_data).lower(),
        "daemon": daemon.mode,
        "vdpad": daemon.program,
        "daemon-command": daemon.command,
        "isolation": daemon.isolation,
        "devargs": " ".join(f"{address}={arguments}" for address, arguments in daemon.devargs.items()),
        "sysfs": daemon.sysfs,
        "simulate": str(daemon.simulate).lower(),
        "simulate-network": daemon.simulate_network,
        "socket-dir": daemon.socket_dir,
        "socket-naming": daemon.socket_naming,
        "socket-mode": f"{daemon.socket_mode:04o}",
        "socket-owner": daemon.socket_owner or "",
        "socket-group": daemon.socket_group or "",
        "vhost-mode": daemon.vhost_mode,
        "memory": daemon.memory,
        "drain-timeout": f"{daemon.drain_timeout_s:g}",
        "stop-grace": f"{daemon.stop_grace_s:g}",
        "log-level": config.log.level,
        "log-format": config.log.format,
    }
    return {name: str(value) for name, value in settings.items()}


def check_socket_path(option: str, path: Path) -> None:
    """Refuses a path that no unix socket can have.

    Raises:
        ConfigError: it is relative or too long.
    """
    _absolute(option, path)
    # The socket is bound under a temporary name of the same length plus a suffix, then renamed.
    room = SOCKET_PATH_MAX_BYTES - len(".new")
    if len(str(path).encode()) > room:
        message = f"{option} {path} is longer than {room} bytes, choose a shorter path"
        raise ConfigError(message)


def _absolute(option: str, path: Path) -> None:
    if not path.is_absolute():
        message = f"{option} {path} is relative, write it from the root"
        raise ConfigError(message)
