"""What the kubelet is offered: which devices are healthy, which are best together, and what a container gets."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from collections.abc import Mapping as ReadOnly
from typing import Any, Final, NamedTuple

from vdpa_agent.model.daemon import SERVED, DeviceState, VhostMode
from vdpa_agent.model.naming import DEVICE_SOCKET
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.pools import Pool, VfFacts, Vfs

FAILED_S: Final = 6.0
"""A device that the daemon refuses is unhealthy after so long: it is asked for again within 5 s."""

UNSERVED_S: Final = 30.0
"""Any other that is not served is so after this time: the daemon is started again long before, and nodes boot."""

MOUNT_ROOT: Final = "/run/vdpa"
"""Where the directory of a device is mounted in a container: its own address below this."""

_NOT_IN_NAMES: Final = re.compile(r"[^A-Z0-9_]", re.ASCII)


class Offered(NamedTuple):
    """One device as the kubelet is to know it.

    Attributes:
        address: its PCI address, which is its id.
        healthy: whether new pods may get it.
        numa_node: where it is; None: the kubelet need not know.
    """

    address: PciAddress
    healthy: bool
    numa_node: int | None = None


def is_healthy(state: DeviceState | None, unserved_s: float) -> bool:
    """Whether new pods may get a device.

    One that is not served is offered for a while all the same: a pod that gets it waits for it, while one that the
    kubelet finds no device for fails, and a restart of the daemon would be news for the scheduler twice.

    Args:
        state: its state; None: nothing is known of it yet.
        unserved_s: for how long it has not been served, in seconds.
    """
    if state in SERVED:
        return True
    if state is DeviceState.REMOVING:
        return False
    return unserved_s < (FAILED_S if state is DeviceState.FAILED else UNSERVED_S)


def unhealthy_after_s(state: DeviceState | None) -> float:
    """How long a device that is not served is still offered, in seconds."""
    return FAILED_S if state is DeviceState.FAILED else UNSERVED_S


def preferred(
    available: Collection[PciAddress], must: Collection[PciAddress], size: int, vfs: Vfs
) -> tuple[PciAddress, ...]:
    """The devices that are best given together: on one NUMA node if that has enough, and spread over the PFs.

    Args:
        available: those that may be given, among them those that must.
        must: those that are given in any case.
        size: how many are wanted.
        vfs: what is known of them.
    """
    chosen = list(dict.fromkeys(must))
    free = [address for address in dict.fromkeys(available) if address not in frozenset(chosen)]
    missing = size - len(chosen)
    node = _node_for(free, chosen, missing, vfs)
    near = [address for address in free if _facts(vfs, address).numa_node == node]
    far = [address for address in free if address not in frozenset(near)]
    for group in (near, far):
        chosen += _spread(group, chosen, missing, vfs)
        missing = size - len(chosen)
    return tuple(chosen)


def socket_in_container(address: PciAddress) -> str:
    """The path of a device's socket in the container that has it."""
    return f"{MOUNT_ROOT}/{address}/{DEVICE_SOCKET}"


def vhost_user_info(mode: VhostMode, address: PciAddress) -> dict[str, str]:
    """What a container is told of a socket, in the words of the Device Information Specification (3.1.5).

    The mode there is the container's end: its application connects as the client where the daemon opens the socket.

    Args:
        mode: which end opens the socket, from the daemon's point of view.
        address: the device.
    """
    end = VhostMode.CLIENT if mode is VhostMode.SERVER else VhostMode.SERVER
    return {"mode": end.value, "path": socket_in_container(address)}


def environment(pool: Pool, modes: ReadOnly[PciAddress, VhostMode]) -> dict[str, str]:
    """The environment variables of a container: those of the SR-IOV network device plugin, and short ones.

    Args:
        pool: the resource.
        modes: the devices of the container, each with its vhost mode.
    """
    resource = f"PCIDEVICE_{_variable(pool.resource)}"
    short = f"VDPA_{_variable(pool.resource.rpartition('/')[2])}"
    sockets = [socket_in_container(address) for address in modes]
    return {
        resource: ",".join(modes),
        f"{resource}_INFO": json.dumps({address: _info(pool, address, mode) for address, mode in modes.items()}),
        f"{short}_SOCKET": sockets[0],
        **{f"{short}_{number}_SOCKET": path for number, path in enumerate(sockets)},
    }


def _info(pool: Pool, address: PciAddress, mode: VhostMode) -> dict[str, Any]:
    extra = {**pool.info.get("*", {}), **pool.info.get(address, {})}
    return {
        **({"extraInfo": extra} if extra else {}),
        "generic": {"deviceID": address},
        "vhost-user": vhost_user_info(mode, address),
    }


def _variable(name: str) -> str:
    """A name as a part of an environment variable's."""
    return _NOT_IN_NAMES.sub("_", name.upper())


def _facts(vfs: Vfs, address: PciAddress) -> VfFacts:
    return vfs.get(address) or VfFacts(address)


def _node_for(free: Iterable[PciAddress], chosen: Iterable[PciAddress], missing: int, vfs: Vfs) -> int | None:
    """The NUMA node to take the missing devices from."""
    nodes = Counter(_facts(vfs, address).numa_node for address in free)
    present = Counter(_facts(vfs, address).numa_node for address in chosen)
    # Where there is one already, else the smallest that is enough, else the largest; the lowest of several.
    return min(
        nodes,
        key=lambda node: (
            -present[node],
            nodes[node] < missing,
            nodes[node] if nodes[node] >= missing else -nodes[node],
            -1 if node is None else node,
        ),
        default=None,
    )


def _spread(group: Iterable[PciAddress], chosen: Iterable[PciAddress], count: int, vfs: Vfs) -> list[PciAddress]:
    """Some of a group, each from the PF that has given the fewest, of several the one that has the most left."""
    given = Counter(_facts(vfs, address).pf for address in chosen)
    by_pf: dict[PciAddress | None, list[PciAddress]] = {}
    for address in sorted(group):
        by_pf.setdefault(_facts(vfs, address).pf, []).append(address)
    taken: list[PciAddress] = []
    while by_pf and len(taken) < count:
        pf = min(by_pf, key=lambda pf: (given[pf], -len(by_pf[pf])))
        given[pf] += 1
        taken.append(by_pf[pf].pop(0))
        if not by_pf[pf]:
            del by_pf[pf]
    return taken
