"""Answers: what vdpad says of itself and of a device, read with suspicion."""

import re
from itertools import islice
from typing import Any, Final, NamedTuple

from vdpa_agent.daemon.messages import whole_number
from vdpa_agent.errors import DaemonLost, DaemonUnusable
from vdpa_agent.model.daemon import DeviceFacts, Statistics, VhostMode
from vdpa_agent.model.front_end import CONNECTED, NO_FRONT_END, FrontEnd, Refusals, configured
from vdpa_agent.model.pci import shown
from vdpa_agent.model.text import printable

PROTOCOL: Final = 2
"""The version of the control protocol that this agent speaks: PROTOCOL of native/vdpad/methods.c."""

_NAME_CHARACTERS: Final = 64
"""The longest name, of a driver, a version or a statistic, that is kept."""

_NUMA_NODES: Final = 1024
"""No machine has more: MAX_NUMNODES of Linux."""

_COUNTERS: Final = 4096
"""The most that are kept of one device: 16 of each of the 256 virtqueues of DPDK's VHOST_MAX_VRING."""

_REASONS: Final = 64
"""The most reasons for refusals that are kept of one device; REFUSAL_COUNT of native/vdpad/vhost_user.h is less."""

_FILE: Final = re.compile(r"([0-9]{1,20}):([0-9]{1,20})", re.ASCII)
"""Device and inode, as C's `%llu` writes them."""


class Version(NamedTuple):
    """What vdpad says of itself.

    Attributes:
        version: its version, printable.
        protocol: the version of the control protocol that it speaks.
        vhost_mode: which end opens the sockets by default, printable; empty where it does not say.
    """

    version: str
    protocol: int
    vhost_mode: str = ""


class Told(NamedTuple):
    """What vdpad says of the front ends of one device.

    Attributes:
        front_end: what uses it.
        refusals: how many were refused, by reason.
    """

    front_end: FrontEnd
    refusals: Refusals


def parse_version(result: object) -> Version:
    """Reads the answer to `version`; a plain text is that of an early vdpad, which spoke protocol 1.

    Raises:
        DaemonUnusable: it speaks another protocol.
        DaemonLost: it says neither.
    """
    told: dict[str, Any] = result if isinstance(result, dict) else {"version": result, "protocol": 1}
    version, protocol = told.get("version"), told.get("protocol")
    if not isinstance(version, str) or type(protocol) is not int:
        message = "vdpad answered version without a version and a protocol number"
        raise DaemonLost(message)
    shown = printable(version, _NAME_CHARACTERS)
    if protocol != PROTOCOL:
        spoken = printable(str(protocol), _NAME_CHARACTERS)
        message = (
            f"vdpad {shown} speaks control protocol {spoken}, this agent speaks {PROTOCOL};"
            " install the vdpad that came with this agent, or correct --vdpad"
        )
        raise DaemonUnusable(message)
    return Version(shown, protocol, _name(told.get("vhost_mode")))


def parse_facts(result: object) -> DeviceFacts:
    """Reads the answer to `device.add`; what is absent or odd in it is not known."""
    answer: dict[str, Any] = result if isinstance(result, dict) else {}
    numa_node = whole_number(answer.get("numa_node"), bits=32)
    return DeviceFacts(
        driver=_name(answer.get("driver")),
        queue_pairs=whole_number(answer.get("queue_pairs"), bits=32) or 0,
        features=whole_number(answer.get("features"), bits=64) or 0,
        protocol_features=whole_number(answer.get("protocol_features"), bits=64) or 0,
        kind=_name(answer.get("type")),
        numa_node=numa_node if numa_node is not None and numa_node < _NUMA_NODES else None,
        file=_file(answer.get("socket_file")),
    )


def misread(result: object, mode: VhostMode, socket: str) -> str:
    """How the answer to `device.add` differs from what was asked for; empty where it does not."""
    answer: dict[str, Any] = result if isinstance(result, dict) else {}
    given, of_mode = answer.get("socket", socket), answer.get("mode", mode)
    if (given, of_mode) == (socket, mode):
        return ""
    return f"the daemon serves {shown(str(given))} as {shown(str(of_mode))} instead of {socket} as {mode}"


def parse_front_end(method: str, params: dict[str, Any]) -> FrontEnd | None:
    """Reads a notification about a front end; None for any other."""
    match method:
        case "device.connected":
            return CONNECTED
        case "device.configured":
            return configured(whole_number(params.get("queue_pairs"), bits=16) or 0)
        case "device.disconnected":
            return NO_FRONT_END
    return None


def parse_front_ends(result: object) -> dict[str, Told]:
    """Reads the answer to `device.list`: the front ends of each device by its address; an odd entry is left out."""
    answer: dict[str, Any] = result if isinstance(result, dict) else {}
    devices = answer.get("devices")
    told = {}
    for entry in devices if isinstance(devices, list) else ():
        device: dict[str, Any] = entry if isinstance(entry, dict) else {}
        address, front_end = device.get("device"), _front_end(device)
        if isinstance(address, str) and front_end is not None:
            told[address] = Told(front_end, _refusals(device.get("refusals")))
    return told


def parse_statistics(result: object) -> Statistics:
    """Reads the answer to `device.stats`; what is odd in it is left out, as is what comes after 4,096 counters."""
    answer: dict[str, Any] = result if isinstance(result, dict) else {}
    queues = answer.get("queues")
    statistics: Statistics = {}
    room = _COUNTERS
    for entry in queues if isinstance(queues, list) else ():
        if room <= 0:
            break
        queue: dict[str, Any] = entry if isinstance(entry, dict) else {}
        number, counters = whole_number(queue.get("queue"), bits=16), queue.get("stats")
        if number is None or not isinstance(counters, dict):
            continue
        kept = statistics.setdefault(number, {})
        for name, value in counters.items():
            if room > 0 and whole_number(value, bits=64) is not None:
                kept[_name(name)] = value
                room -= 1
    return statistics


def _front_end(device: dict[str, Any]) -> FrontEnd | None:
    """What uses a device; None where vdpad does not say."""
    if device.get("configured") is True:
        return configured(whole_number(device.get("queue_pairs_in_use"), bits=16) or 0)
    match device.get("connected"):
        case True:
            return CONNECTED
        case False:
            return NO_FRONT_END
    return None


def _refusals(value: object) -> Refusals:
    counts: dict[str, Any] = value if isinstance(value, dict) else {}
    kept = ((_name(reason), count) for reason, count in counts.items() if whole_number(count, bits=63))
    return dict(islice(kept, _REASONS))


def _file(value: object) -> tuple[int, int] | None:
    """Reads `device:inode` of a file."""
    match = _FILE.fullmatch(value) if isinstance(value, str) else None
    return (int(match[1]), int(match[2])) if match else None


def _name(value: object) -> str:
    return printable(value, _NAME_CHARACTERS) if isinstance(value, str) else ""
