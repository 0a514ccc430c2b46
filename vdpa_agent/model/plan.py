"""The plan for each device of a running daemon: what is known of it, and what is to be done next."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, NamedTuple

from vdpa_agent.model.backoff import Backoff
from vdpa_agent.model.daemon import SERVED, Device, DeviceFacts, DeviceState, VhostMode
from vdpa_agent.model.front_end import NEVER_REFUSED, NO_FRONT_END, NOTHING_REFUSED, FrontEnd
from vdpa_agent.model.pci import PciAddress

RETRY: Final = Backoff(first_s=1.0, cap_s=4.0)
"""When a device that the daemon refused to add or remove is asked for again: within 5 s of whatever fixes it."""


class Step(Enum):
    """What is to be done for a device."""

    NOTHING = auto()
    """All is as it should be, or an event will say that it is not."""
    ADD = auto()
    """The daemon is to be asked for it."""
    RENEW = auto()
    """The daemon has it and its socket is dead: it is to be removed and added again."""
    DRAIN = auto()
    """It left the list while a front end uses it: it is kept for a time."""
    REMOVE = auto()
    """The daemon is to give it up."""
    RESTORE = auto()
    """It left the list and came back before it was removed: it goes on as it was."""
    FORGET = auto()
    """It left the list, and the daemon does not have it."""


class Record(NamedTuple):
    """One device of a running daemon.

    Attributes:
        device: what is published of it.
        added: whether the daemon has it, or may have it.
        unsure: whether the daemon has not answered what it was asked of the device.
        refusals: how often in a row the daemon refused what it was asked for, or its socket was found dead.
        due_s: before this time, in seconds of the caller's clock, nothing is asked again.
        drained_s: when a front end has had time enough to leave it; None: nothing drains.
    """

    device: Device
    added: bool = False
    unsure: bool = False
    refusals: int = 0
    due_s: float = 0.0
    drained_s: float | None = None

    @property
    def in_use(self) -> bool:
        """Whether a front end is connected: one that is not configured may be so at any time."""
        return self.device.front_end.is_connected

    def moved(self, mode: VhostMode, socket: str) -> "Record":
        """Its socket is to be another one; as long as a front end uses the present one, that stays."""
        if (self.device.mode, self.device.socket) == (mode, socket) or (self.added and self.in_use):
            return self
        device = self.device._replace(mode=mode, socket=socket, state=DeviceState.WANTED, reason="")
        return self._replace(device=device, refusals=0, due_s=0.0, drained_s=None)

    def asked(self) -> "Record":
        """The daemon is being asked for it."""
        return self._replace(device=self.device._replace(state=DeviceState.STARTING, reason=""))

    def asking(self) -> "Record":
        """A request is under way: until it is answered, the daemon may have done it or not."""
        return self._replace(unsure=True)

    def late(self, reason: str) -> "Record":
        """The daemon takes long to answer; the reason of an earlier failure stays."""
        return self if self.refusals else self._replace(device=self.device._replace(reason=reason))

    def served(self, facts: DeviceFacts | None = None) -> "Record":
        """The daemon acknowledged it, and its socket can be used; without facts those of before hold."""
        state = DeviceState.CONNECTED if self.in_use else DeviceState.READY
        device = self.device._replace(state=state, reason="", facts=self.device.facts if facts is None else facts)
        return self._replace(device=device, added=True, unsure=False, refusals=0, due_s=0.0, drained_s=None)

    def refused(self, reason: str, now_s: float, spread: float) -> "Record":
        """What was asked was refused, or the socket died; it is asked again later.

        Args:
            reason: why.
            now_s: the time.
            spread: where in its jitter the pause is, -1 to 1.
        """
        refusals = self.refusals + 1
        state = self.device.state if self.device.state is DeviceState.REMOVING else DeviceState.FAILED
        return self._replace(
            device=self.device._replace(state=state, reason=reason),
            unsure=False,
            refusals=refusals,
            due_s=now_s + RETRY.delay_s(refusals, spread),
        )

    def unanswered(self, reason: str, now_s: float, spread: float) -> "Record":
        """The daemon did not answer, and may have done it all the same; arguments are those of `refused`."""
        return self.refused(reason, now_s, spread)._replace(added=True, unsure=True)

    def used(self, front_end: FrontEnd) -> "Record":
        """A front end came, left, or was configured."""
        state = self.device.state
        if state in SERVED:
            state = DeviceState.CONNECTED if front_end.is_connected else DeviceState.READY
        return self._replace(
            device=self.device._replace(state=state, front_end=front_end),
            drained_s=self.drained_s if front_end.is_connected else None,
        )

    def leaving(self, drained_s: float | None, reason: str) -> "Record":
        """It left the list; with a time, it is kept until then for the front end that uses it."""
        device = self.device._replace(state=DeviceState.REMOVING, reason=reason)
        return self._replace(device=device, drained_s=drained_s)

    def given_up(self) -> "Record":
        """The daemon does not have it any more."""
        return self._replace(
            device=self.device._replace(front_end=NO_FRONT_END, refusals=NOTHING_REFUSED, last_refusal=NEVER_REFUSED),
            added=False,
            unsure=False,
        )

    def lost(self, reason: str) -> "Record":
        """The daemon is gone, and with it all that it knew of the device."""
        address, socket, mode = self.device.address, self.device.socket, self.device.mode
        return Record(Device(address, socket, DeviceState.WANTED, reason, mode=mode))


class Mapped(NamedTuple):
    """What the mapping file should say.

    Attributes:
        expected: the devices that the daemon has, each with its socket.
        unsure: those that it may have or not: the file may say either.
    """

    expected: Mapping[PciAddress, str]
    unsure: frozenset[PciAddress] = frozenset()


def next_step(record: Record, *, wanted: bool, now_s: float) -> Step:
    """What is to be done now for a device.

    Args:
        record: what is known of it.
        wanted: whether it is in the list.
        now_s: the time, by the clock of the record's times.
    """
    return _wanted_step(record, now_s) if wanted else _unwanted_step(record, now_s)


def next_look_s(record: Record) -> float | None:
    """When a device needs another step without any event; None: never."""
    if record.in_use and record.device.state is DeviceState.FAILED:
        return None  # its front end's leaving is an event
    times = [time_s for time_s in (record.due_s or None, record.drained_s) if time_s is not None]
    return max(times, default=None)


def begun(record: Record, step: Step, *, now_s: float, drain_s: float) -> Record:
    """A device as a step of it begins.

    Args:
        record: what is known of it.
        step: what is to be done; with FORGET nothing is left to know.
        now_s: the time, by the clock of the record's times.
        drain_s: how long a front end may use a device that left the list, in seconds.
    """
    if step is Step.DRAIN:
        reason = f"it left the list, a front end may use it for {drain_s:g} s more"
        return record.leaving(now_s + drain_s, reason)
    if step is Step.REMOVE:
        return record.leaving(None, "it left the list")
    if step is Step.RESTORE:
        return record.served()
    if step in {Step.ADD, Step.RENEW} and not record.refusals:
        return record.asked()
    return record


def settled(record: Record, *, wanted: bool, now_s: float) -> bool:
    """Whether nothing is to be done for a device, now or later, unless something happens; arguments are as before."""
    return next_look_s(record) is None and next_step(record, wanted=wanted, now_s=now_s) is Step.NOTHING


def mapped(records: Mapping[PciAddress, Record]) -> Mapped:
    """What the mapping file should say of a daemon's devices."""
    has = {address: record.device.socket for address, record in records.items() if record.added and not record.unsure}
    return Mapped(has, frozenset(address for address, record in records.items() if record.unsure))


def _wanted_step(record: Record, now_s: float) -> Step:
    if record.device.state is DeviceState.REMOVING and not record.unsure:
        return Step.RESTORE if record.added else Step.ADD
    if record.device.state in SERVED or now_s < record.due_s:
        return Step.NOTHING
    if not record.added:
        return Step.ADD
    # A device whose socket died while a front end uses it is left in peace until that leaves.
    return Step.NOTHING if record.in_use else Step.RENEW


def _unwanted_step(record: Record, now_s: float) -> Step:
    if not record.added:
        return Step.FORGET
    if now_s < record.due_s:
        return Step.NOTHING
    if record.in_use and record.device.state is not DeviceState.REMOVING:
        return Step.DRAIN
    if record.drained_s is not None and now_s < record.drained_s:
        return Step.NOTHING
    return Step.REMOVE
