"""The services with their example data, and connections to them without an event loop between."""

import asyncio
import os
import socket
from collections.abc import Mapping as ReadOnly
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final

from vdpa_agent.config import LimitsConfig
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonStatus, Device, Statistics
from vdpa_agent.model.health import Role, Standing
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping, example_mapping
from vdpa_agent.model.owner import NO_OWNERS
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.node.guarded import Closers, GuardedSocket
from vdpa_agent.rpc.connection import Connection
from vdpa_agent.rpc.limits import Patience
from vdpa_agent.rpc.peers import Peer, Peers
from vdpa_agent.rpc.room import READ_BYTES, Room
from vdpa_agent.rpc.services import Services
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.devices import DeviceService
from vdpa_agent.serve.health import HealthService
from vdpa_agent.serve.reflection import Reflection
from vdpa_agent.serve.vdpadpdk import VdpaDpdk
from vdpa_agent.serve.view import Snapshots, View

NEVER_STARTED: Final = DaemonStatus()
NOTHING: Final[Loaded[Any]] = Loaded()
LIMITS: Final = LimitsConfig(calls_per_s=1_000_000)
ME: Final = Peer(pid=os.getpid(), uid=0, gid=0, allowed=True)


def snapshots(
    wanted: Loaded[DeviceList] = NOTHING,
    mapping: Loaded[Mapping] = NOTHING,
    daemon: DaemonStatus = NEVER_STARTED,
    devices: ReadOnly[PciAddress, Device] = MappingProxyType({}),
    role: Role = Role.MANAGING,
) -> Snapshots:
    """Snapshots for a view, each to be set by the test."""
    return Snapshots(
        role=Latest(role),
        wanted=Latest(wanted),
        pools=Latest(Loaded()),
        mapping=Latest(mapping),
        daemon=Latest(daemon),
        daemons=Latest(MappingProxyType({})),
        devices=Latest(devices),
        standing=Latest(Standing()),
        owners=Latest(NO_OWNERS),
        kubelet_lost=Latest(""),
        socket_dir=Latest(""),
    )


class KeptPeers(Peers):
    """Keeps the defects that the log would tell of."""

    def __init__(self) -> None:
        super().__init__(LIMITS, asyncio.get_running_loop().time)
        self.defects: list[BaseException] = []

    def tell_defect(self, _peer: Peer, _call: str, error: BaseException) -> None:
        self.defects.append(error)


def example_services() -> list[Any]:
    """All services but reflection, with the example data."""
    view = View(snapshots(mapping=Loaded(example_mapping()), role=Role.SERVING))

    async def no_statistics(_address: PciAddress) -> Statistics:
        return {}

    return [VdpaDpdk(Answers(view), 0.0), DeviceService(view, no_statistics, {}), HealthService(view)]


def all_services() -> list[Any]:
    """The same, and what describes them."""
    services = example_services()
    return [*services, Reflection(services)]


class Counted(GuardedSocket):
    """Counts what is written.

    Attributes:
        writes: how often something was.
    """

    def __init__(self, connected: socket.socket, closers: Closers) -> None:
        super().__init__(connected, closers)
        self.writes = 0
        send = self.send

        def counted(data: Any, *arguments: Any) -> int:
            self.writes += 1
            return send(data, *arguments)

        self.send = counted


class Served:
    """The services with their example data, on sockets that nobody but the test reads from.

    Attributes:
        gone: the connections that have ended.
    """

    def __init__(self) -> None:
        self.services = Services(all_services())
        self.room = Room()
        self.peers = KeptPeers()
        self.closers = Closers()
        self.gone: list[Connection] = []
        self._opened: list[tuple[Connection, socket.socket]] = []
        self.complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.complaints.append(context))

    def connect(self, room_bytes: int = 0) -> tuple[Connection, socket.socket, Counted]:
        """A new connection, the other end of its socket, and its own; `room_bytes`: what the kernel keeps, if not all.

        The event loop sees nothing of it: `receive` has it read.
        """
        account = self.peers.account_of(ME)
        assert self.peers.enter(ME, account)
        ours, theirs = socket.socketpair()
        theirs.settimeout(0)
        if room_bytes:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room_bytes)
        connected = Counted(ours, self.closers)
        connected.ended = lambda: self.peers.leave(account)
        connection = Connection(
            connected,
            self.services,
            self.peers,
            ME,
            account,
            room=self.room,
            patience=Patience(),
            gone=self.gone.append,
        )
        self._opened.append((connection, theirs))
        connection.start()
        asyncio.get_running_loop().remove_reader(connected)
        return connection, theirs, connected

    def close(self) -> None:
        """Ends what is left."""
        for connection, theirs in self._opened:
            connection.abort()
            theirs.close()
        self._opened.clear()


def receive(connection: Connection, theirs: socket.socket, data: bytes) -> None:
    """Has a connection read some bytes, as much at once as it would; none once it is closed, or where it reads none."""
    for begin in range(0, len(data), READ_BYTES):
        if connection._over or not connection._reads:
            return
        theirs.send(data[begin : begin + READ_BYTES])
        connection._take_what_came()


def heard(theirs: socket.socket) -> bytes:
    """All that a connection has sent and nobody has read."""
    came = b""
    with suppress(BlockingIOError):
        while piece := theirs.recv(1_000_000):
            came += piece
    return came
