"""Program: how a kind of daemon is started, accompanied and asked to end."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vdpa_agent.daemon.control import Control
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Device, Statistics
from vdpa_agent.model.pci import PciAddress


class Program(Protocol):
    """How a kind of daemon is started, accompanied and asked to end; Vdpad and Command are the two.

    Attributes:
        name: what it is called, for the log.
        option: the option that names it.
        remedy: what to do where it can never start.
        can_be_asked: whether there is a gentler way than SIGTERM to have it end.
        cpus: those that it is to run on; None: those of the agent.
    """

    name: str
    option: str
    remedy: str
    can_be_asked: bool

    @property
    def cpus(self) -> frozenset[int] | None:
        """The CPUs of the next start."""

    @property
    def devices(self) -> Latest[Mapping[PciAddress, Device]]:
        """The devices of the daemon, as it acknowledged them; the program is their only writer."""

    async def prepare(self) -> None:
        """Makes room for the next start.

        Raises:
            OSError: the directory of the sockets cannot be made.
            Stuck: its file system does not answer.
        """

    def argv(self, control_fd: int) -> list[str]:
        """The command line of the next start."""

    async def accompany(
        self, control: Control, *, running: Callable[[], None], unhealthy: Callable[[str], None]
    ) -> None:
        """Goes along with a spawned daemon; returns if it must be started again, raises DaemonError if it is lost."""

    async def ask_to_end(self, control: Control, timeout_s: float) -> None:
        """Asks it to end, in any way that is gentler than SIGTERM."""

    def notified(self, method: str, params: dict[str, Any]) -> None:
        """Takes a notification of the daemon."""

    def forget(self, reason: str) -> None:
        """Nothing of it may be promised any more."""

    async def tidy(self) -> None:
        """Takes away what it left, now that it has ended."""

    async def statistics(self, address: PciAddress) -> Statistics:
        """The counters of a device's virtqueues; nothing where there are none."""
