"""Node: all that is known of a node, before anything is judged."""

from enum import Enum
from typing import Final, NamedTuple

from vdpa_agent.model.daemon import DeviceState
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.preflight import HugepageFacts, NumaFacts, PciFacts

VFIO_CONTAINER: Final = "/dev/vfio/vfio"
"""What VFIO groups are put into to be used (the kernel's Documentation/driver-api/vfio.rst)."""


class Presence(Enum):
    """Whether there is an agent at a socket."""

    ANSWERS = "answers"
    REFUSES = "refuses"
    """It is there, and not for this user."""
    FAILS = "fails"
    """It is there, and does not answer as it should."""
    ABSENT = "absent"


class AgentFacts(NamedTuple):
    """What a running agent told.

    Attributes:
        version: its version.
        reasons: why it is not ready, in its own words.
        degraded: why single devices are not served although it is ready.
        waiting_for: what it waits for, empty if for nothing.
        daemon_pid: its daemon's process, or that of one of its daemons; None: none runs.
        daemons: how many daemons there are where each device has its own, else 0.
    """

    version: str
    reasons: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    waiting_for: str = ""
    daemon_pid: int | None = None
    daemons: int = 0


class ProgramFacts(NamedTuple):
    """The daemon's program.

    Attributes:
        name: what was found, or looked for.
        version: what it says of itself.
        problem: why it cannot be run; empty if it can.
    """

    name: str
    version: str = ""
    problem: str = ""


class LibraryFacts(NamedTuple):
    """A shared library that the agent needs.

    Attributes:
        name: what was found, or looked for.
        problem: why it cannot be used; empty if it can.
        remedy: how to get it.
    """

    name: str = ""
    problem: str = ""
    remedy: str = ""


class DirectoryFacts(NamedTuple):
    """A directory that the agent and its daemon write to.

    Attributes:
        path: the directory.
        ancestor: the nearest one above it that there is; the same as `path` if there is that.
        mode: the permission bits of the ancestor.
        owner: the owner and group of the ancestor, as `root:root`.
        writable: whether this user may write to the ancestor.
    """

    path: str
    ancestor: str
    mode: int
    owner: str
    writable: bool


class SocketFacts(NamedTuple):
    """The socket file of a device, and what it should be.

    Attributes:
        path: the file.
        dead: why nobody can connect to it; empty if somebody listens.
        mode: its permission bits; None: there is no such file.
        owner: its owner and group, as `root:root`.
        wanted_mode: what its permission bits should be; None: whatever they are.
        wanted_owner: what its owner and group should be.
    """

    path: str
    dead: str = ""
    mode: int | None = None
    owner: str = ""
    wanted_mode: int | None = None
    wanted_owner: str = ""


class VfioFacts(NamedTuple):
    """A file below /dev/vfio that the daemon must open to read and write.

    Attributes:
        path: the file, as the daemon sees it.
        user: the user that the daemon is.
        usable: whether that user may.
        mode: its permission bits; None: there is no such file.
        owner: its owner and group, as `root:root`.
    """

    path: str
    user: str
    usable: bool = False
    mode: int | None = None
    owner: str = ""


class DeviceFacts(NamedTuple):
    """One device of the node.

    Attributes:
        address: its address.
        pci: what sysfs says of it; None where that does not matter.
        vfio: what the daemon must open for it: VFIO's container, then its group; empty where that is not known.
        socket: its socket; None where there is none.
        state: what a running agent says of it; None: no agent runs.
        reason: why it is in that state, in the agent's words.
    """

    address: PciAddress
    pci: PciFacts | None = None
    vfio: tuple[VfioFacts, ...] = ()
    socket: SocketFacts | None = None
    state: DeviceState | None = None
    reason: str = ""


class LimitFacts(NamedTuple):
    """What a process may take.

    Attributes:
        pid: the process; None: the one that looks, whose limits an agent started beside it would inherit.
        open_files: how many descriptors it may have open; None: as many as it likes.
        locked_bytes: how much memory it may lock, in bytes; None: as much as it likes.
    """

    pid: int | None
    open_files: int | None
    locked_bytes: int | None


class PoolFacts(NamedTuple):
    """A pool of VFs.

    Attributes:
        resource: the resource of the kubelet.
        devices: how many VFs it has, simulated ones too.
        selectors: what it asks for, each with how many VFs it has by that.
    """

    resource: str
    devices: int
    selectors: tuple[tuple[str, int], ...] = ()


class PoolsFacts(NamedTuple):
    """The pools of the resource config.

    Attributes:
        path: the resource config.
        problem: what is wrong with it, or with sysfs.
        is_loaded: whether it counts, or an earlier content of it.
        pools: the pools.
        contested: VFs that two of them claim, each with who has it and who would.
        outside: the VFs that belong to none, by the reason.
    """

    path: str
    problem: str = ""
    is_loaded: bool = True
    pools: tuple[PoolFacts, ...] = ()
    contested: tuple[tuple[str, str, str], ...] = ()
    outside: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Lack(NamedTuple):
    """Something that a system needs for this, and does not have.

    Attributes:
        problem: what is not there.
        remedy: how to get it.
    """

    problem: str
    remedy: str


class Node(NamedTuple):
    """All that is known of a node.

    Attributes:
        presence: whether there is an agent.
        agent: what it told; None unless it answers.
        silence: why it does not answer.
        socket: the agent's socket.
        role: who owns the vhost-user sockets.
        pci_list: the path of the device list.
        socket_list: the path of the mapping.
        wanted: the device list.
        mapping: the mapping.
        pools: the pools of VFs; None: there is no resource config.
        pooled: the VFs of all pools.
        program: the daemon's program; None where somebody else's daemon runs.
        directories: where the agent and its daemon write.
        devices: the devices that are judged.
        hardware: whether they are to be real devices that vdpad drives.
        vfio: whether the kernel has the driver vfio-pci.
        numa: what there is on which NUMA node.
        memory: what the daemon takes its memory from: auto, hugepages or none.
        hugepages: of each size, what there is.
        limits: of the daemon.
        enforcing: whether SELinux forbids what its policy does not allow.
        label: the SELinux label of the directory of the vhost-user sockets; empty where there is none.
        socket_dir: that directory.
        user: the user who looks.
        http2: what HTTP/2 is spoken with.
        lacks: what the system lacks.
    """

    presence: Presence
    agent: AgentFacts | None
    silence: str
    socket: str
    role: Role
    pci_list: str
    socket_list: str
    wanted: Loaded[DeviceList]
    mapping: Loaded[Mapping]
    pools: PoolsFacts | None
    pooled: frozenset[PciAddress]
    program: ProgramFacts | None
    directories: tuple[DirectoryFacts, ...]
    devices: tuple[DeviceFacts, ...]
    hardware: bool
    vfio: bool
    numa: NumaFacts
    memory: str
    hugepages: tuple[HugepageFacts, ...]
    limits: LimitFacts
    enforcing: bool
    label: str
    socket_dir: str
    user: str
    http2: LibraryFacts = LibraryFacts()
    lacks: tuple[Lack, ...] = ()
