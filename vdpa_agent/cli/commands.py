"""What each command does with its options; heavy imports wait until a command needs them."""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vdpa_agent.cli.output import complain, flush, print_json, print_line, print_script, print_table
from vdpa_agent.errors import NoSuchDevice, NotReady
from vdpa_agent.model.pci import PciAddress, parse_pci_address

if TYPE_CHECKING:
    from vdpa_agent.cli.client import Known
    from vdpa_agent.config import DaemonMode, LimitsConfig
    from vdpa_agent.serve.pb import device_service_pb2 as pb


def run(options: argparse.Namespace) -> int:
    """Run the agent: follow the lists, supervise the daemon, answer by gRPC, until SIGTERM or SIGINT."""
    from vdpa_agent.config import (  # noqa: PLC0415
        AgentConfig,
        DaemonConfig,
        FilesConfig,
        KubeletConfig,
        LimitsConfig,
        LogConfig,
        ServeConfig,
    )
    from vdpa_agent.node.process import has_terminal  # noqa: PLC0415

    config = AgentConfig(
        files=FilesConfig(
            socket_list=options.socket_list, pci_list=options.pci_list, resource_config=options.resource_config
        ),
        daemon=DaemonConfig(
            mode=_daemon_mode(options),
            program=options.vdpad,
            command=options.daemon_command,
            isolation=options.isolation,
            simulate=options.simulate,
            simulate_network=options.simulate_network,
            devargs=dict(options.devargs),
            sysfs=options.sysfs,
            socket_dir=options.socket_dir,
            socket_naming=options.socket_naming,
            socket_mode=options.socket_mode,
            socket_owner=options.socket_owner,
            socket_group=options.socket_group,
            vhost_mode=options.vhost_mode,
            memory=options.memory,
            log_level=options.log_level,
            stop_grace_s=options.stop_grace,
            drain_timeout_s=options.drain_timeout,
        ),
        serve=ServeConfig(
            listen=options.listen,
            listen_mode=options.listen_mode,
            listen_group=options.listen_group,
            limits=LimitsConfig(
                allow_uids=frozenset(options.allow_uid),
                allow_gids=frozenset(options.allow_gid),
                connections=options.max_connections,
                connections_per_uid=options.max_connections_per_uid,
                open_calls_per_uid=options.max_open_calls_per_uid,
                calls_per_s=options.max_calls_per_second,
            ),
            hold_timeout_s=options.hold_timeout,
            ready_when=options.ready_when,
            require_sockets=options.require_sockets,
            example_data=options.example_data,
            http_listen=options.http_listen,
            tracing=options.tracing,
        ),
        kubelet=KubeletConfig(options.kubelet_dir, options.device_info_dir),
        log=LogConfig(level=options.log_level, format=options.log_format),
    )
    # Process 1 is deaf to signals that it does not handle, and the agent is not there yet to do so.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    # Whatever started the agent may have them blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        terminal = has_terminal()
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(0) if terminal else None)
    gc.disable()  # until all is loaded: what is imported stays
    with _without_tls():
        import asyncio  # noqa: PLC0415

        from vdpa_agent import agent  # noqa: PLC0415

        if options.kubelet_dir is not None:  # else nobody needs a client
            import_module("vdpa_agent.kubelet.plugins")
        from vdpa_agent.logs import set_up_logs  # noqa: PLC0415
        from vdpa_agent.node.system import refuse_lacks  # noqa: PLC0415

    refuse_lacks()
    with set_up_logs(config.log) as logs:
        warn_of_user_namespace(config.serve.limits)
        # Not asyncio.run(), which complains of a coroutine that was never awaited where no loop can be had.
        with asyncio.Runner() as runner:
            runner.run(agent.run(config, logs))
    return 0


def warn_of_user_namespace(limits: "LimitsConfig", proc: Path = Path("/proc")) -> None:
    """Logs whom the agent will take for a stranger: root of the node, where it has another number in here."""
    import structlog  # noqa: PLC0415

    from vdpa_agent.node.process import uid_of_root  # noqa: PLC0415

    try:
        uid = uid_of_root(proc)
    except OSError:
        return
    if uid not in {0, os.geteuid(), *limits.allow_uids}:
        log = structlog.get_logger(__name__)
        remedy = f"give --allow-uid {uid}, or run the agent without a user namespace of its own"
        log.warning("root_is_a_stranger", uid=uid, remedy=remedy)


def _daemon_mode(options: argparse.Namespace) -> "DaemonMode":
    """A command in place of vdpad is a mode of its own, which need not be named twice."""
    from vdpa_agent.config import DaemonMode  # noqa: PLC0415

    mode: DaemonMode = options.daemon
    return DaemonMode.COMMAND if options.daemon_command and mode is DaemonMode.AUTO else mode


def get(options: argparse.Namespace) -> int:
    """Ask the agent for the vhost-user sockets of VFs. Exits with 4 if one of them has none."""
    addresses = [parse_pci_address(text) for text in options.addresses]
    sockets = _run(options, lambda client, where: client.ask_sockets(where, addresses, timeout_s=options.timeout))
    missing = [address for address, socket in sockets if not socket]
    if options.output == "table":
        print_table(("ADDRESS", "SOCKET"), sockets)
        known = _known(options, missing) if missing else None
    else:
        known = _known(options, addresses)
        _print_devices(options.output, _devices(sockets, known))
    if missing:
        reasons = "; ".join(f"no live socket for {address}{_why_not(address, known)}" for address in missing)
        message = f"{reasons}; see vdpa-agent status"
        raise NoSuchDevice(message)
    return 0


def list_all(options: argparse.Namespace) -> int:
    """List the VFs of the agent with their sockets and states."""
    devices = _run(options, lambda client, where: client.ask_devices(where, timeout_s=options.timeout))
    _print_devices(options.output, devices)
    if not devices:
        complain(f"vdpa-agent: no devices: {_why_none(options)}; see vdpa-agent doctor")
    return 0


def watch(options: argparse.Namespace) -> int:
    """Show the VFs of the agent, then each change as it happens, until interrupted."""
    from vdpa_agent.cli.client import as_dict  # noqa: PLC0415

    def show(response: "pb.WatchDevicesResponse") -> None:
        if options.output == "json":
            print_json(as_dict(response), indent=None)
            return
        for device in response.devices:
            print_line("  ".join(_columns(device)).rstrip())
        for address in response.removed_pci_addresses:
            print_line(f"{address}  gone")
        flush()

    _run(options, lambda client, where: client.watch_devices(where, show, timeout_s=options.timeout))
    return 0


def status(options: argparse.Namespace) -> int:
    """Show what the agent does, how its daemon fares, and why it is not ready."""
    told = _run(options, lambda client, where: client.ask_status(where, timeout_s=options.timeout))
    from vdpa_agent.cli.client import as_dict, daemon_words, word  # noqa: PLC0415

    if options.output == "json":
        print_json(as_dict(told))
        return 0
    daemon = told.daemon
    rows = [
        ("version", told.version),
        ("uptime", f"{told.uptime.ToTimedelta().total_seconds():.0f} s"),
        ("role", word("Role", told.role)),
        ("ready", "yes" if told.ready else "no"),
        *(("reason", reason) for reason in told.not_ready_reasons),
        *(("degraded", reason) for reason in told.degraded_reasons),
        *((("waiting for", told.waiting_for),) if told.waiting_for else ()),
        ("daemon", daemon_words(told)),
        ("restarts", f"{daemon.restarts}{', in a crash loop' if daemon.crash_loop else ''}"),
        *((("last exit", daemon.last_exit),) if daemon.last_exit else ()),
        *((("unhealthy", daemon.unhealthy),) if daemon.unhealthy else ()),
        *_front_ends(told),
        *_problems(told),
        *_pools(told),
    ]
    if options.output == "wide":
        rows += [(f"--{name}", value) for name, value in sorted(told.settings.items())]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print_line(f"{name:{width}}  {value}".rstrip())
    return 0


def _front_ends(told: "pb.GetStatusResponse") -> Iterator[tuple[str, str]]:
    """What uses the devices, and which front end was refused last."""
    if not told.HasField("front_ends"):
        return
    all_of_them = told.front_ends
    counts = f"{all_of_them.connected} connected, {all_of_them.configured} configured, {all_of_them.refused} refused"
    yield "front ends", counts
    if all_of_them.last_refusal:
        ago_s = all_of_them.last_refusal_age.ToTimedelta().total_seconds()
        last = f"{all_of_them.last_refused_pci_address}: {all_of_them.last_refusal}, {ago_s:.0f} s ago"
        yield "last refused", last


def _problems(told: "pb.GetStatusResponse") -> Iterator[tuple[str, str]]:
    """What is wrong with the lists that count, each with what to do about it."""
    from vdpa_agent.cli.client import word  # noqa: PLC0415
    from vdpa_agent.model.loaded import ABSENT  # noqa: PLC0415

    role = word("Role", told.role)
    for name, option, problem, other_role, absent in (
        ("resource config", "resource-config", told.resource_config_problem, "", "write one to {}"),
        ("device list", "pci-list", told.device_list_problem, "serving", "write one PCI address a line to {}"),
        ("mapping", "socket-list", told.mapping_problem, "managing", "start the daemon that writes {}"),
    ):
        if not problem:
            continue
        yield name, problem
        # Where the other list decides, this one need not be there.
        if problem != ABSENT or role != other_role:
            path = told.settings.get(option) or f"the file of --{option}"
            remedy = absent.format(path) if problem == ABSENT else f"change {path} as the reason says"
            if name == "mapping" and role == "managing":
                remedy = (
                    "none needed, the agent writes it again; what keeps it from that is logged as mapping_not_written"
                )
            yield "", f"fix: {remedy}"


def _pools(told: "pb.GetStatusResponse") -> Iterator[tuple[str, str]]:
    """The pools with what each selector matched, and the VFs that are in none."""
    from vdpa_agent.cli.client import word  # noqa: PLC0415

    for pool in told.pools:
        yield "pool", f"{pool.resource}: {len(pool.pci_addresses)} VFs, vhost mode {word('VhostMode', pool.vhost_mode)}"
        yield from (("", f"{selector.vfs} by {selector.selector}") for selector in pool.selectors)
    for vf in told.contested_vfs:
        yield "contested", f"{vf.pci_address} is in {vf.resource}, and {vf.other_resource} asks for it too"
    for outside in told.vfs_outside_pools:
        yield "in no pool", f"{_first_of(outside.pci_addresses)}: {outside.reason}"


def _first_of(addresses: Sequence[str]) -> str:
    """Some addresses of many."""
    more = f" and {len(addresses) - _SHOWN_ADDRESSES} more" if len(addresses) > _SHOWN_ADDRESSES else ""
    return ", ".join(addresses[:_SHOWN_ADDRESSES]) + more


def health(options: argparse.Namespace) -> int:
    """Ask whether the agent, or one of its services, serves. Exits with 5 if it does not."""
    word = _run(
        options,
        lambda client, where: client.ask_health(where, options.service, wait_s=options.wait, timeout_s=options.timeout),
    )
    if options.output == "json":
        print_json({"service": options.service, "status": word})
    else:
        print_line(word)
    if word != "SERVING":
        message = f"{options.service or 'the agent'} is not ready; see vdpa-agent status"
        raise NotReady(message)
    return 0


def top(options: argparse.Namespace) -> int:
    """Show the VFs with their front ends and packet rates, as they change, until q or Ctrl-C."""
    _check_address(options)
    with _without_tls():
        from vdpa_agent.cli.top import top as show  # noqa: PLC0415

    return show(options)


def doctor(options: argparse.Namespace) -> int:
    """Show what is right and wrong on this node, and what fixes it. Exits with 1 unless a VF could be served."""
    _check_address(options)
    with _without_tls():
        from vdpa_agent.cli.doctor import doctor as diagnose  # noqa: PLC0415

    return diagnose(options)


def completion(options: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    import shtab  # noqa: PLC0415

    print_script(shtab.complete(options.parser, shell=options.shell))
    return 0


_SHOWN_ADDRESSES: Final = 4

T = TypeVar("T")


def _run(options: argparse.Namespace, call: Callable[[Any, Path], Coroutine[Any, Any, T]]) -> T:
    """Runs one call of the client module, which is imported only here: it is what costs time."""
    _check_address(options)
    with _without_tls():
        import asyncio  # noqa: PLC0415

        from vdpa_agent.cli import client  # noqa: PLC0415

    with asyncio.Runner() as runner:
        return runner.run(call(client, options.address))


@contextmanager
def _without_tls() -> Iterator[None]:
    """Keeps asyncio and grpclib, while they are imported, from importing ssl: 9 ms, and 4 MiB for as long as it runs.

    Both do without it where Python has none, and nothing that they serve here is encrypted.
    """
    if "ssl" in sys.modules:
        yield
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # so Python itself marks what is not to be imported
    try:
        yield
    finally:
        del sys.modules["ssl"]


def _check_address(options: argparse.Namespace) -> None:
    from vdpa_agent.config import check_socket_path  # noqa: PLC0415

    check_socket_path("--address", options.address)


def _known(options: argparse.Namespace, addresses: Sequence[PciAddress]) -> "Known | None":
    known: Known | None = _run(
        options, lambda client, where: client.ask_known(where, addresses, timeout_s=options.timeout)
    )
    return known


def _devices(sockets: Sequence[tuple[PciAddress, str]], known: "Known | None") -> "list[pb.Device]":
    """All that is known of devices; of one that is on no list its address and socket alone."""
    from vdpa_agent.serve.pb import device_service_pb2  # noqa: PLC0415

    devices = known.devices if known else {}
    reason = "not a device of this node" if known else ""
    return [
        devices.get(address)
        or device_service_pb2.Device(pci_address=address, socket_path=socket, reason="" if socket else reason)
        for address, socket in sockets
    ]


def _why_not(address: PciAddress, known: "Known | None") -> str:
    """Why a device has no socket, as far as the agent says; empty if it does not."""
    if known is None:
        return ""
    from vdpa_agent.cli.client import word  # noqa: PLC0415

    device, status = known.devices.get(address), known.status
    if device is not None:
        return f": it is {word('DeviceState', device.state)}{': ' + device.reason if device.reason else ''}"
    files = {"device list": status.device_list_problem, "mapping": status.mapping_problem}
    problems = ", ".join(f"{name}: {problem}" for name, problem in files.items() if problem)
    match word("Role", status.role):
        case "waiting":
            return f": no list was read yet: {problems or 'nothing is known of one'}"
        case "serving":
            name = "mapping"
        case _:
            name = "device list"
    present = f", whose present content does not count: {files[name]}" if files[name] else ""
    return f": it is not in the {name}{present}"


def _why_none(options: argparse.Namespace) -> str:
    """Why the agent has no device at all."""
    from vdpa_agent.cli.client import word  # noqa: PLC0415

    told = _run(options, lambda client, where: client.ask_status(where, timeout_s=options.timeout))
    empty = "the mapping is empty" if word("Role", told.role) == "serving" else "the device list names none"
    waiting = f"the agent waits for {told.waiting_for}" if told.waiting_for else empty
    return "; ".join(told.not_ready_reasons) or waiting


def _print_devices(output: str, devices: "Sequence[pb.Device]") -> None:
    if output == "json":
        from vdpa_agent.cli.client import as_dict  # noqa: PLC0415

        print_json([as_dict(device) for device in devices])
    elif output == "wide":
        print_table((*_HEAD, *_WIDE_HEAD), [(*_columns(device), *_wide_columns(device)) for device in devices])
    else:
        print_table(_HEAD, [_columns(device) for device in devices])


_HEAD: Final = ("ADDRESS", "STATE", "SOCKET", "FRONT END")
_WIDE_HEAD: Final = ("DRIVER", "QUEUE PAIRS", "NUMA", "POD", "REASON", "REMARK")


def _columns(device: "pb.Device") -> tuple[str, str, str, str]:
    from vdpa_agent.cli.client import front_end_word, word  # noqa: PLC0415

    return device.pci_address, word("DeviceState", device.state), device.socket_path, front_end_word(device)


def _wide_columns(device: "pb.Device") -> tuple[str, ...]:
    from vdpa_agent.cli.client import owner_words, queue_pairs  # noqa: PLC0415

    numa = str(device.numa_node) if device.HasField("numa_node") else ""
    return device.driver, queue_pairs(device), numa, owner_words(device), device.reason, device.remark
