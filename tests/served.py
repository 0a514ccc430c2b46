"""The services with their example data, and connections to them without a socket."""

import asyncio
import os
from collections.abc import Mapping as ReadOnly
from types import MappingProxyType
from typing import Any, Final

from grpclib.reflection.service import ServerReflection

from vdpa_agent.config import LimitsConfig
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonStatus, Device, Statistics
from vdpa_agent.model.health import Role, Standing
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping, example_mapping
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.rpc.calls import Services
from vdpa_agent.rpc.connection import READ_BYTES, HttpConnection
from vdpa_agent.rpc.peers import Peer, Peers
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.devices import DeviceService
from vdpa_agent.serve.health import HealthService
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
    )


class KeptPeers(Peers):
    """Keeps the defects that the log would tell of."""

    def __init__(self) -> None:
        super().__init__(LIMITS, asyncio.get_running_loop().time)
        self.defects: list[BaseException] = []

    def tell_defect(self, _peer: Peer, _call: str, error: BaseException) -> None:
        self.defects.append(error)


class KeptTransport(asyncio.Transport):
    """Keeps what is written; while its peer does not read, only abort() ends it.

    Attributes:
        written: all of it.
        writes: how often something was.
        blocked: whether its peer does not read.
    """

    def __init__(self, protocol: HttpConnection) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.blocked = False
        self._protocol = protocol
        self._closing = False
        self._lost = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass  # it never pauses by itself

    def write(self, data: Any) -> None:
        assert not self._closing
        self.written += data
        self.writes += 1

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        if not self.blocked:
            self.abort()

    def abort(self) -> None:
        self._closing = True
        if not self._lost:
            self._lost = True
            asyncio.get_running_loop().call_soon(self._lose)

    def _lose(self) -> None:
        self._protocol.connection_lost(None)
        self._protocol._peers.leave(self._protocol._account)  # as the socket does

    def get_write_buffer_size(self) -> int:
        return len(self.written)


def example_services() -> list[Any]:
    """All services but reflection, with the example data."""
    view = View(snapshots(mapping=Loaded(example_mapping()), role=Role.SERVING))

    async def no_statistics(_address: PciAddress) -> Statistics:
        return {}

    return [VdpaDpdk(Answers(view), 0.0), DeviceService(view, no_statistics, {}), HealthService(view)]


class Served:
    """The services with their example data, without a socket."""

    def __init__(self) -> None:
        self.services = Services(ServerReflection.extend(example_services()))
        self.room = bytearray(READ_BYTES)
        self.peers = KeptPeers()
        self.complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.complaints.append(context))

    def connect(self) -> tuple[HttpConnection, KeptTransport]:
        """A new connection."""
        account = self.peers.account_of(ME)
        assert self.peers.enter(ME, account)
        connection = HttpConnection(self.services, self.peers, ME, account, self.room)
        transport = KeptTransport(connection)
        connection.connection_made(transport)
        return connection, transport


def receive(connection: HttpConnection, data: bytes) -> None:
    """Has a connection read some bytes, as much at once as it would; none once it is closed, as asyncio's."""
    for begin in range(0, len(data), READ_BYTES):
        if connection._transport.is_closing():
            return
        piece = data[begin : begin + READ_BYTES]
        connection.get_buffer(-1)[: len(piece)] = piece
        connection.buffer_updated(len(piece))
