"""What each command does with its options; heavy imports wait until a command needs them."""

import argparse
import sys
from pathlib import Path

from vdpa_agent.config import (
    AgentConfig,
    DaemonConfig,
    DaemonMode,
    FilesConfig,
    LogConfig,
    ServeConfig,
    check_socket_path,
)
from vdpa_agent.errors import FileRefused, NoSuchDevice
from vdpa_agent.model.pci import PciAddress, parse_pci_address


def run(options: argparse.Namespace) -> int:
    """Run the agent: follow the lists, supervise the daemon, answer by gRPC, until SIGTERM or SIGINT."""
    config = AgentConfig(
        files=FilesConfig(socket_list=options.socket_list, pci_list=options.pci_list),
        daemon=DaemonConfig(
            mode=_daemon_mode(options),
            program=options.vdpad,
            command=options.daemon_command,
            simulate=options.simulate,
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
            hold_timeout_s=options.hold_timeout,
            example_data=options.example_data,
        ),
        log=LogConfig(level=options.log_level, format=options.log_format),
    )
    import asyncio  # noqa: PLC0415

    from vdpa_agent import agent  # noqa: PLC0415
    from vdpa_agent.logs import set_up_logs  # noqa: PLC0415

    set_up_logs(config.log)
    asyncio.run(agent.run(config))
    return 0


def _daemon_mode(options: argparse.Namespace) -> DaemonMode:
    """A command in place of vdpad is a mode of its own, which need not be named twice."""
    mode: DaemonMode = options.daemon
    return DaemonMode.COMMAND if options.daemon_command and mode is DaemonMode.AUTO else mode


def get(options: argparse.Namespace) -> int:
    """Ask the agent for the vhost-user sockets of VFs. Exits with 4 if one of them has none."""
    addresses = [parse_pci_address(text) for text in options.addresses]
    sockets = _ask(options, addresses)
    _print(options.output, sockets)
    missing = [address for address, socket in sockets if not socket]
    if missing:
        message = f"no live socket for {', '.join(missing)}; is it in the device list? see the agent's log"
        raise NoSuchDevice(message)
    return 0


def list_all(options: argparse.Namespace) -> int:
    """List the VFs of the mapping file with the sockets that the agent promises for them; empty: not served now."""
    addresses = _mapped(options.socket_list)
    _print(options.output, _ask(options, addresses))
    return 0


def _mapped(path: Path) -> list[PciAddress]:
    from vdpa_agent.files.formats import decode_mapping  # noqa: PLC0415

    try:
        return [address for address, _ in decode_mapping(path.read_bytes())]
    except FileNotFoundError:
        return []
    except OSError as error:
        message = f"{path}: {(error.strerror or '').lower()}; name the agent's mapping by --socket-list"
        raise FileRefused(message) from error
    except FileRefused as error:
        message = f"{path}: {error}"
        raise FileRefused(message) from error


def _ask(options: argparse.Namespace, addresses: list[PciAddress]) -> list[tuple[PciAddress, str]]:
    check_socket_path("--address", options.address)
    import asyncio  # noqa: PLC0415

    from vdpa_agent.cli.client import ask_sockets  # noqa: PLC0415

    return asyncio.run(ask_sockets(options.address, addresses, timeout_s=options.timeout))


def _print(output: str, sockets: list[tuple[PciAddress, str]]) -> None:
    if output == "json":
        import json  # noqa: PLC0415

        # The keys are those of the mapping file.
        entries = [{"pciAddress": address, "socketpath": socket} for address, socket in sockets]
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        return
    width = max((len(address) for address, _ in sockets), default=0)
    width = max(width, len("ADDRESS"))
    sys.stdout.write(f"{'ADDRESS':{width}}  SOCKET\n")
    for address, socket in sockets:
        sys.stdout.write(f"{address:{width}}  {socket or '-'}\n")
