"""DaemonStatus: what is known of the daemon, with the one table of its states."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from vdpa_agent.model.front_end import NEVER_REFUSED, NO_FRONT_END, NOTHING_REFUSED, FrontEnd, LastRefusal, Refusals
from vdpa_agent.model.pci import PciAddress

Statistics = dict[int, dict[str, int]]
"""Per virtqueue the driver's counters, by its own names."""


class DaemonState(StrEnum):
    """The states of a supervised daemon."""

    IDLE = "idle"
    """No device is wanted, nothing runs."""
    STARTING = "starting"
    """The process was spawned and has not yet answered."""
    RUNNING = "running"
    """It answers its control channel."""
    BACKOFF = "backoff"
    """It ended; the next start waits."""
    STOPPING = "stopping"
    """It was asked to end."""
    STOPPED = "stopped"
    """It ended for good."""


class DaemonEvent(StrEnum):
    """What can happen to a supervised daemon."""

    START = "start"
    """It is being spawned: the first device is wanted, or the backoff is over."""
    ANSWERED = "answered"
    """It answered on its control channel for the first time."""
    ENDED = "ended"
    """The process is gone."""
    STOP = "stop"
    """The agent stops."""


TRANSITIONS: Final[MappingProxyType[tuple[DaemonState, DaemonEvent], DaemonState]] = MappingProxyType(
    {
        (DaemonState.IDLE, DaemonEvent.START): DaemonState.STARTING,
        (DaemonState.IDLE, DaemonEvent.STOP): DaemonState.STOPPED,
        (DaemonState.STARTING, DaemonEvent.ANSWERED): DaemonState.RUNNING,
        (DaemonState.STARTING, DaemonEvent.ENDED): DaemonState.BACKOFF,
        (DaemonState.STARTING, DaemonEvent.STOP): DaemonState.STOPPING,
        (DaemonState.RUNNING, DaemonEvent.ENDED): DaemonState.BACKOFF,
        (DaemonState.RUNNING, DaemonEvent.STOP): DaemonState.STOPPING,
        (DaemonState.BACKOFF, DaemonEvent.START): DaemonState.STARTING,
        (DaemonState.BACKOFF, DaemonEvent.STOP): DaemonState.STOPPED,
        (DaemonState.STOPPING, DaemonEvent.STOP): DaemonState.STOPPING,
        (DaemonState.STOPPING, DaemonEvent.ENDED): DaemonState.STOPPED,
        (DaemonState.STOPPED, DaemonEvent.STOP): DaemonState.STOPPED,
    }
)
"""Every event that can happen in a state, and the state after it; what is absent cannot happen."""


class VhostMode(StrEnum):
    """Which end of vhost-user opens the socket, from the daemon's point of view."""

    SERVER = "server"
    CLIENT = "client"


class Cause(StrEnum):
    """What ended a life of the daemon that nobody had ended on purpose."""

    EXIT = "exit"
    """It ended by itself."""
    SIGNAL = "signal"
    """A signal killed it that was not the agent's."""
    UNRESPONSIVE = "unresponsive"
    """It did not answer, or closed its control channel, and was killed for it."""
    NOT_STARTED = "not_started"
    """The machine lacked something to start it."""


class Stop(IntEnum):
    """How urgently the agent is to end."""

    NO = 0
    IN_ORDER = 1
    """The first SIGTERM or SIGINT: everything ends in its order, within its grace."""
    NOW = 2
    """The second one: nothing is waited for."""


class DeviceState(StrEnum):
    """The states of one wanted device."""

    WANTED = "wanted"
    """It is in the list; no running daemon has been asked for it yet."""
    STARTING = "starting"
    """The daemon was asked for it."""
    READY = "ready"
    """The daemon has started it, and its socket listens."""
    CONNECTED = "connected"
    """The same, and a front end is connected; whether it is configured, its `FrontEnd` says."""
    FAILED = "failed"
    """The daemon refused it, or its socket is dead; `reason` says why. It is tried again."""
    REMOVING = "removing"
    """It left the list; it goes as soon as no front end uses it, or the drain time-out is over."""


SERVED: Final = frozenset({DeviceState.READY, DeviceState.CONNECTED})
"""The states in which a device's socket may be promised to a client."""


class DeviceFacts(NamedTuple):
    """What the daemon told of a device that it serves.

    Attributes:
        driver: the name of its DPDK driver.
        queue_pairs: how many it has.
        features: the virtio feature bits that it offers.
        protocol_features: the vhost-user protocol feature bits that it offers.
        kind: `net` or `blk`.
        numa_node: its NUMA node, None where there is none or it is not known.
        file: device and inode of the socket's file, None where the daemon did not make it or did not say.
    """

    driver: str = ""
    queue_pairs: int = 0
    features: int = 0
    protocol_features: int = 0
    kind: str = ""
    numa_node: int | None = None
    file: tuple[int, int] | None = None


NOTHING_KNOWN: Final = DeviceFacts()
"""The facts of a device that is not served."""


class Device(NamedTuple):
    """One device as the supervisor knows it.

    Attributes:
        address: its PCI address.
        socket: the absolute path of its vhost-user socket.
        state: where it is in its life.
        reason: why it is not ready; empty if it is, and where nothing else is known than its state.
        facts: what the daemon told of it.
        front_end: what uses its socket, while the daemon has it.
        refusals: how many front ends were refused since the daemon has it.
        last_refusal: the last of them.
        mode: which end opens the socket.
        remark: what is to be known of it although it is ready.
    """

    address: PciAddress
    socket: str
    state: DeviceState
    reason: str = ""
    facts: DeviceFacts = NOTHING_KNOWN
    front_end: FrontEnd = NO_FRONT_END
    refusals: Refusals = NOTHING_REFUSED
    last_refusal: LastRefusal = NEVER_REFUSED
    mode: VhostMode = VhostMode.SERVER
    remark: str = ""


class DaemonStatus(NamedTuple):
    """One snapshot of the daemon.

    Attributes:
        state: the daemon's state.
        pid: the process, None where there is none.
        started_at_s: when the process was spawned, in seconds since the epoch; None where there is none.
        restarts: how often it was started again since the agent started.
        last_exit: how it ended last, empty where it never did.
        last_exit_code: its exit code then, 128 and the signal's number for one that killed it, as in a shell; None
            where it never ended.
        backoff_s: the pause before its next start, in seconds; 0 where there is none.
        crash_loop: it died so often in a short time that somebody should look.
        unhealthy: why the running daemon cannot be relied on, empty where it can.
    """

    state: DaemonState = DaemonState.IDLE
    pid: int | None = None
    started_at_s: float | None = None
    restarts: int = 0
    last_exit: str = ""
    last_exit_code: int | None = None
    backoff_s: float = 0.0
    crash_loop: bool = False
    unhealthy: str = ""


_BEST_FIRST: Final = (DaemonState.RUNNING, DaemonState.STARTING, DaemonState.BACKOFF)


def together(daemons: Mapping[PciAddress, DaemonStatus]) -> DaemonStatus:
    """What is true of the daemons of several devices together: they run as long as one of them runs and answers.

    Those that end because their device left are not counted: none of them says that the agent stops.

    Args:
        daemons: the daemons of the devices in the list.
    """
    several = daemons.values()
    best = min(several, key=_rank, default=DaemonStatus())
    ended = [address for address, daemon in daemons.items() if daemon.last_exit]
    worst = max(ended, key=lambda address: _rank(daemons[address]), default=None)
    starts = [daemon.started_at_s for daemon in several if daemon.started_at_s is not None]
    return DaemonStatus(
        state=best.state if best.state in _BEST_FIRST else DaemonState.IDLE,
        started_at_s=min(starts, default=None),
        restarts=sum(daemon.restarts for daemon in several),
        last_exit="" if worst is None else f"{worst}: {daemons[worst].last_exit}",
        last_exit_code=None if worst is None else daemons[worst].last_exit_code,
        backoff_s=max((daemon.backoff_s for daemon in several), default=0.0),
        crash_loop=any(daemon.crash_loop for daemon in several),
        unhealthy=best.unhealthy,
    )


def _rank(daemon: DaemonStatus) -> int:
    """How good it is, the best first."""
    if daemon.state is DaemonState.RUNNING and not daemon.unhealthy:
        return 0
    return 1 + (_BEST_FIRST.index(daemon.state) if daemon.state in _BEST_FIRST else len(_BEST_FIRST))
