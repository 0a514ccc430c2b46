"""The options of each command, their environment variables and their help; --help alone imports no settings."""

import argparse
import sys
from collections.abc import Callable, Mapping
from enum import EnumType
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from vdpa_agent import __version__
from vdpa_agent.cli import commands
from vdpa_agent.cli.output import complain, complain_lines
from vdpa_agent.cli.values import (
    Mode,
    count,
    device_arguments,
    group,
    host_port,
    listen_path,
    path,
    permission_bits,
    seconds,
    seconds_or_none,
    user,
    utf8,
)

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})

_COLLECTOR: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The variables of OpenTelemetry that name a collector; where one is set, calls are traced."""

_EXIT_CODES: Final = """\
exit codes:
  0    success
  1    failure
  2    usage or configuration
  3    the daemon can never start: missing program, refused arguments
  4    no such device
  5    agent not reachable or not ready
  100  another instance holds the socket

An option can also be given as the environment variable named in its brackets; the command line wins, and an empty
variable counts as none.
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose options may come from the environment too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_EXIT_CODES, allow_abbrev=False, **settings
        )
        self.environment: Mapping[str, str] = {}

    def read_from(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def option(self, name: str, *, kind: Callable[[str], Any], default: Any, metavar: str, help_text: str) -> None:
        """Adds an option with a value.

        Args:
            name: such as `--socket-list`.
            kind: turns the text into the value, or raises ValueError.
            default: the value where neither the command line nor the environment gives one.
            metavar: what the value is called in the help.
            help_text: what it does.
        """
        variable = _variable(name)
        # argparse converts a default that is a string as it would an argument, so the variable is checked alike.
        given = self.environment.get(variable) or default
        shown = "" if default in {None, ""} else f"; default {_plain(default)}"
        self.add_argument(
            name, type=_Named(kind, variable), default=given, metavar=metavar, help=f"{help_text} [{variable}{shown}]"
        )

    def several(self, name: str, *, kind: Callable[[str], Any], metavar: str, help_text: str) -> None:
        """Adds an option that may be given several times; its variable has the values with blanks between them."""
        variable = _variable(name)
        convert = _Named(kind, variable)
        try:
            given = [convert(text) for text in self.environment.get(variable, "").split()]
        except argparse.ArgumentTypeError as error:
            self.error(f"environment variable {variable}: {error}")
        self.add_argument(
            name, type=convert, action="append", default=given, metavar=metavar, help=f"{help_text} [{variable}]"
        )

    def flag(self, name: str, help_text: str) -> None:
        """Adds an option without a value."""
        variable = _variable(name)
        text = self.environment.get(variable, "").lower()
        if text not in _TRUE | _FALSE:
            self.error(f"environment variable {variable}: {text!r} is neither true nor false")
        self.add_argument(name, action="store_true", default=text in _TRUE, help=f"{help_text} [{variable}]")

    def error(self, message: str) -> NoReturn:
        complain(f"{self.prog}: {message}")
        complain(f"try {self.prog} --help")
        sys.exit(2)


_Fill = Callable[[_Parser], None]
"""Adds the options of a command."""


class _Named:
    """A converter that keeps the name of what it converts for argparse's message."""

    def __init__(self, kind: Callable[[str], Any], variable: str) -> None:
        self._kind = kind
        self._variable = variable

    def __call__(self, text: str) -> Any:
        try:
            return self._kind(utf8(text))
        except ValueError as error:
            values = f", give one of {', '.join(self._kind)}" if isinstance(self._kind, EnumType) else ""
            reason = str(error) if not values else f"{text!r} is not known"
            message = f"{reason}{values} (or {self._variable} in the environment)"
            raise argparse.ArgumentTypeError(message) from error


def _variable(name: str) -> str:
    return "VDPA_AGENT_" + name.removeprefix("--").replace("-", "_").upper()


def _plain(default: object) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)


def build_parser(environment: Mapping[str, str], only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; a parsed command is called with its own options.

    Args:
        environment: where options may come from too.
        only: the one command whose options are wanted, which saves the time of the others'; None: all.
    """
    parser = _Parser(
        prog="vdpa-agent",
        description="Supervises the DPDK vDPA daemon of a node and answers by gRPC which socket serves which VF.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # Not `required`, which argparse would report before an option that it does not know.
    parser.set_defaults(command=partial(_show_help, parser))
    added = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int], help_text: str, fill: _Fill) -> None:
        of_command = added.add_parser(name, help=help_text, description=command.__doc__)
        of_command.set_defaults(command=command)
        of_command.read_from(environment)
        if only in {None, name}:
            fill(of_command)

    add("run", commands.run, "run the agent", _add_run)
    add("get", commands.get, "ask for the sockets of VFs", _add_get)
    add("list", commands.list_all, "list all VFs with their sockets", _add_client)
    add("watch", commands.watch, "show all VFs and each change", _add_watch)
    add("status", commands.status, "show how the agent fares", _add_client)
    add("health", commands.health, "ask whether the agent is ready", _add_health)
    add("top", commands.top, "show the VFs and their packet rates live", _add_top)
    add("doctor", commands.doctor, "show what is right and wrong on this node", _add_doctor)
    add("completion", commands.completion, "print a shell's completion script", partial(_add_completion, parser))
    return parser


def _show_help(parser: argparse.ArgumentParser, _options: argparse.Namespace) -> int:
    """What is done without a command."""
    complain_lines(parser.format_help())
    return 2


def _add_completion(parser: argparse.ArgumentParser, of_command: _Parser) -> None:
    of_command.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    of_command.set_defaults(parser=parser)


def _add_get(parser: _Parser) -> None:
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="a PCI address such as 0000:82:00.2")
    _add_client(parser)


def _add_watch(parser: _Parser) -> None:
    _add_client(parser, ("table", "json"))


def _add_health(parser: _Parser) -> None:
    parser.add_argument(
        "service",
        nargs="?",
        type=utf8,
        default="",
        metavar="SERVICE",
        help="a gRPC service; without it the agent as a whole",
    )
    parser.option(
        "--wait", kind=seconds_or_none, default=0.0, metavar="SECONDS", help_text="how long to wait until it serves"
    )
    _add_client(parser, ("table", "json"))


def _add_top(parser: _Parser) -> None:
    _add_address(parser)
    parser.option("--interval", kind=seconds, default=1.0, metavar="SECONDS", help_text="how often packets are counted")
    parser.flag("--once", "count for one interval, print one table and end")


def _add_client(parser: _Parser, outputs: tuple[str, ...] = ("table", "wide", "json")) -> None:
    _add_address(parser)
    parser.add_argument("-o", "--output", choices=outputs, default="table", help="the form of the output")


def _add_address(parser: _Parser) -> None:
    from vdpa_agent.config import DEFAULT_LISTEN  # noqa: PLC0415

    parser.option(
        "--address", kind=listen_path, default=DEFAULT_LISTEN, metavar="SOCKET", help_text="the agent's socket"
    )
    parser.option(
        "--timeout", kind=seconds, default=10.0, metavar="SECONDS", help_text="how long to wait for an answer"
    )


def _add_doctor(parser: _Parser) -> None:
    """The options that say where to look; without a default, since a running agent knows better."""
    from vdpa_agent.config import Memory  # noqa: PLC0415

    parser.add_argument(
        "addresses", nargs="*", metavar="ADDRESS", help="a PCI address such as 0000:82:00.2; none: those of the lists"
    )
    _add_client(parser, ("table", "json"))
    option = parser.option
    option("--pci-list", kind=path, default=None, metavar="PATH", help_text="the device list")
    option("--socket-list", kind=path, default=None, metavar="PATH", help_text="the mapping file")
    option("--resource-config", kind=path, default=None, metavar="PATH", help_text="the pools of VFs")
    option("--vdpad", kind=str, default=None, metavar="PROGRAM", help_text="the daemon, a path or a name on the PATH")
    option("--socket-dir", kind=path, default=None, metavar="DIRECTORY", help_text="where the sockets are made")
    option("--sysfs", kind=path, default=None, metavar="DIRECTORY", help_text="where sysfs, or a copy of it, is")
    option(
        "--memory",
        kind=Memory,
        default=None,
        metavar="auto|hugepages|none",
        help_text="what the daemon takes its memory from",
    )
    parser.flag("--simulate", "judge no hardware: every listed address is to be a software device")


def _add_run(parser: _Parser) -> None:
    from vdpa_agent.config import (  # noqa: PLC0415
        DEFAULT_LISTEN,
        DEFAULT_PCI_LIST,
        DEFAULT_SOCKET_DIRECTORY,
        DEFAULT_SOCKET_LIST,
        DaemonMode,
        Isolation,
        LogFormat,
        LogLevel,
        Memory,
        SimulatedNetwork,
    )
    from vdpa_agent.model.daemon import VhostMode  # noqa: PLC0415
    from vdpa_agent.model.health import ReadyWhen  # noqa: PLC0415
    from vdpa_agent.model.naming import SocketNaming  # noqa: PLC0415

    parser.set_defaults(tracing=any(parser.environment.get(name) for name in _COLLECTOR))
    option = parser.option
    option("--socket-list", kind=path, default=DEFAULT_SOCKET_LIST, metavar="PATH", help_text="the mapping file")
    option("--pci-list", kind=path, default=DEFAULT_PCI_LIST, metavar="PATH", help_text="the device list")
    option(
        "--resource-config",
        kind=path,
        default=None,
        metavar="PATH",
        help_text="pools of VFs that are found in sysfs, in the form of the SR-IOV network device plugin's config.json;"
        " they are served beside those of the device list",
    )
    option(
        "--kubelet-dir",
        kind=path,
        default=None,
        metavar="DIRECTORY",
        help_text="the kubelet's directory, normally /var/lib/kubelet: each pool of the resource config is a resource"
        " of the kubelet then, for pods to ask for; without it the kubelet gets to know nothing",
    )
    option(
        "--device-info-dir",
        kind=path,
        default=None,
        metavar="DIRECTORY",
        help_text="where Multus looks for the sockets of such VFs, normally /var/run/k8s.cni.cncf.io/devinfo/dp;"
        " without it no file is written",
    )
    option(
        "--listen", kind=listen_path, default=DEFAULT_LISTEN, metavar="SOCKET", help_text="the unix socket to answer on"
    )
    option(
        "--listen-mode",
        kind=permission_bits,
        default=Mode(0o660),
        metavar="OCTAL",
        help_text="permissions of that socket",
    )
    option("--listen-group", kind=group, default=None, metavar="GROUP", help_text="its group, a name or a number")
    _add_limits(parser)
    option(
        "--http-listen",
        kind=host_port,
        default=None,
        metavar="HOST:PORT",
        help_text="where to serve /metrics, /livez and /readyz by HTTP, such as 127.0.0.1:9917 or [::]:9917;"
        " without it nowhere",
    )
    option(
        "--hold-timeout",
        kind=seconds_or_none,
        default=8.0,
        metavar="SECONDS",
        help_text="how long a call for a listed VF that is not ready yet waits for it; 0: not at all",
    )
    option(
        "--ready-when",
        kind=ReadyWhen,
        default=ReadyWhen.RUNNING,
        metavar="running|all-devices",
        help_text="what readiness takes: that the agent answers and what it manages runs (running), or that every VF of"
        " the list is served too (all-devices)",
    )
    parser.flag(
        "--require-sockets",
        "answer with a socket of another process's mapping only while it listens, and be ready only if all of them do",
    )
    option(
        "--daemon",
        kind=DaemonMode,
        default=DaemonMode.AUTO,
        metavar="auto|none|vdpad|command",
        help_text="who owns the vhost-user sockets: vdpad where there is a device list (auto), always vdpad,"
        " another program (command), or another process (none)",
    )
    option(
        "--vdpad", kind=str, default="vdpad", metavar="PROGRAM", help_text="the daemon, a path or a name on the PATH"
    )
    option(
        "--daemon-command",
        kind=str,
        default="",
        metavar="COMMAND",
        help_text="another program that writes the mapping, in place of vdpad; it is started again when the list"
        " changes; {devices}, {socket_dir} and {socket_list} are substituted",
    )
    option(
        "--isolation",
        kind=Isolation,
        default=Isolation.SHARED,
        metavar="shared|device",
        help_text="whether one vdpad serves all VFs (shared), or each VF has its own, whose death is that VF's alone"
        " (device)",
    )
    parser.flag("--simulate", "make every listed address a software device, no hardware needed")
    option(
        "--simulate-network",
        kind=SimulatedNetwork,
        default=SimulatedNetwork.LOOPBACK,
        metavar="loopback|switch",
        help_text="what software devices do with packets: each gives back what it is sent (loopback), or those of one"
        " PCI bus, as of one PF, are ports of one switch (switch)",
    )
    parser.flag("--example-data", "serve 16 example VFs, no file and no daemon needed")
    parser.several(
        "--devargs",
        kind=device_arguments,
        metavar="ADDRESS=ARGUMENTS",
        help_text="DPDK device arguments of a VF, in place of those that its vendor calls for; may be repeated",
    )
    option("--sysfs", kind=path, default=Path("/sys"), metavar="DIRECTORY", help_text="where sysfs is mounted")
    option(
        "--socket-dir",
        kind=path,
        default=DEFAULT_SOCKET_DIRECTORY,
        metavar="DIRECTORY",
        help_text="where the vhost-user sockets are made",
    )
    option(
        "--socket-naming",
        kind=SocketNaming,
        default=SocketNaming.INDEX,
        metavar="index|pci",
        help_text="their names: vdpa-0, or vdpa-0000:82:00.2",
    )
    option("--socket-mode", kind=permission_bits, default=Mode(0o660), metavar="OCTAL", help_text="their permissions")
    option("--socket-owner", kind=str, default=None, metavar="USER", help_text="their owner, a name or a number")
    option("--socket-group", kind=str, default=None, metavar="GROUP", help_text="their group, a name or a number")
    option(
        "--vhost-mode",
        kind=VhostMode,
        default=VhostMode.SERVER,
        metavar="server|client",
        help_text="whether the daemon opens the sockets, or connects to those that front ends opened",
    )
    option(
        "--memory",
        kind=Memory,
        default=Memory.AUTO,
        metavar="auto|hugepages|none",
        help_text="what the daemon takes its memory from: hugepages where there are free ones (auto), always, or none",
    )
    option(
        "--drain-timeout",
        kind=seconds,
        default=30.0,
        metavar="SECONDS",
        help_text="how long a VF that left the list is kept for the front end that uses it, and how long a list that"
        " was emptied or lost more than half of its VFs must stay so before it counts",
    )
    option(
        "--stop-grace", kind=seconds, default=5.0, metavar="SECONDS", help_text="how long the daemon may take to end"
    )
    option(
        "--log-level",
        kind=LogLevel,
        default=LogLevel.INFO,
        metavar="debug|info|warning|error",
        help_text="the least level that is logged",
    )
    option(
        "--log-format",
        kind=LogFormat,
        default=LogFormat.AUTO,
        metavar="auto|text|json",
        help_text="text on a terminal, else JSON (auto), or always one of them",
    )


def _add_limits(parser: _Parser) -> None:
    """Who may call, and how much anybody may take of the agent."""
    from vdpa_agent.config import LimitsConfig  # noqa: PLC0415

    default = LimitsConfig()
    parser.several(
        "--allow-uid",
        kind=user,
        metavar="USER",
        help_text="a user who may call, a name or a number, beside root and the agent's own; may be repeated",
    )
    parser.several(
        "--allow-gid",
        kind=group,
        metavar="GROUP",
        help_text="a group whose members may call, a name or a number; may be repeated",
    )
    for name, value, help_text in (
        ("--max-connections", default.connections, "connections of everybody together, 64 of them for root alone"),
        ("--max-connections-per-uid", default.connections_per_uid, "connections of one user other than root"),
        ("--max-open-calls-per-uid", default.open_calls_per_uid, "calls of one user that wait for their answers"),
        (
            "--max-calls-per-second",
            default.calls_per_s,
            "calls of one user for long, twice as many at once; more have to wait",
        ),
    ):
        parser.option(name, kind=count, default=value, metavar="NUMBER", help_text=help_text)
