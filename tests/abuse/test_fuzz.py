"""Whatever comes over a connection, the agent finds nothing wrong with itself and serves the others."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from grpclib.reflection.service import ServerReflection
from hyperframe.frame import Frame
from hypothesis import HealthCheck, given, settings

from tests.abuse.frames import Do, Step, conversations
from tests.abuse.wire import KNOWN_SOCKET, Wire
from tests.processes import AgentProcess, eventually, running
from vdpa_agent.config import LimitsConfig
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonStatus, Statistics
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import example_mapping
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.calls import Services
from vdpa_agent.serve.devices import DeviceService
from vdpa_agent.serve.health import HealthService
from vdpa_agent.serve.peers import Peer, Peers
from vdpa_agent.serve.protocol import READ_BYTES, HttpConnection
from vdpa_agent.serve.vdpadpdk import VdpaDpdk
from vdpa_agent.serve.view import View

EXAMPLES: Final = settings().max_examples
"""100, or what --hypothesis-profile says."""

GROWS_MIB: Final = 16
LIMITS: Final = LimitsConfig(calls_per_s=1_000_000)
ME: Final = Peer(pid=os.getpid(), uid=0, gid=0, allowed=True)
FUZZED: Final = settings(deadline=None, suppress_health_check=list(HealthCheck))


class _Peers(Peers):
    """Keeps the defects that the log would tell of."""

    def __init__(self) -> None:
        super().__init__(LIMITS, asyncio.get_running_loop().time)
        self.defects: list[BaseException] = []

    def tell_defect(self, _peer: Peer, _call: str, error: BaseException) -> None:
        self.defects.append(error)


class _Transport(asyncio.Transport):
    """Keeps what is written; while its peer does not read, only abort() ends it.

    Attributes:
        written: all of it.
        blocked: whether its peer does not read.
    """

    def __init__(self, protocol: HttpConnection) -> None:
        super().__init__()
        self.written = b""
        self.blocked = False
        self._protocol = protocol
        self._closing = False
        self._lost = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass  # it never pauses by itself

    def write(self, data: Any) -> None:
        assert not self._closing
        self.written += data

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
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def get_write_buffer_size(self) -> int:
        return len(self.written)


class _Served:
    """The services with their example data, without a socket."""

    def __init__(self) -> None:
        view = View(Latest(Loaded()), Latest(Loaded(example_mapping())), Latest(DaemonStatus(managed=False)))

        async def no_statistics(_address: PciAddress) -> Statistics:
            return {}

        services: list[Any] = [
            VdpaDpdk(Answers(view), 0.0),
            DeviceService(view, no_statistics, {}),
            HealthService(view),
        ]
        self.services = Services(ServerReflection.extend(services))
        self.room = bytearray(READ_BYTES)
        self.peers = _Peers()
        self.complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.complaints.append(context))

    async def hear(self, steps: list[Step]) -> None:
        """One connection that gets all these bytes."""
        account = self.peers.enter(ME)
        assert account is not None
        connection = HttpConnection(self.services, self.peers, ME, account, self.room)
        transport = _Transport(connection)
        connection.connection_made(transport)
        try:
            for step in steps:
                if transport.is_closing():
                    break
                if isinstance(step, bytes):
                    for begin in range(0, len(step), READ_BYTES):
                        piece = step[begin : begin + READ_BYTES]
                        connection.get_buffer(-1)[: len(piece)] = piece
                        connection.buffer_updated(len(piece))
                elif step is Do.BLOCK:
                    transport.blocked = True
                    connection.pause_writing()
                elif step is Do.UNBLOCK:
                    transport.blocked = False
                    connection.resume_writing()
                else:
                    await _let_work()
        finally:
            if not transport.is_closing():
                transport.abort()
            await _let_work()
        assert connection.gone.done()  # also one that the agent ended and whose peer does not read
        assert self.peers.defects == []
        assert self.complaints == []
        assert connection.running == []
        assert (account.connections, account.open_calls, connection._calls.busy) == (0, 0, 0)
        _check_frames(transport.written)


async def _let_work() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


def _check_frames(data: bytes) -> None:
    """What the agent said is HTTP/2."""
    rest = memoryview(data)
    while rest:
        frame, length = Frame.parse_frame_header(rest[:9], strict=True)
        frame.parse_body(rest[9 : 9 + length])
        assert len(rest) >= 9 + length
        rest = rest[9 + length :]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def served(runner: asyncio.Runner) -> _Served:
    async def serve() -> _Served:
        return _Served()

    return runner.run(serve())


@settings(FUZZED, max_examples=15 * EXAMPLES)
@given(steps=conversations())
def test_a_connection(runner: asyncio.Runner, served: _Served, steps: list[Step]) -> None:
    runner.run(served.hear(steps))


class _Fuzzed:
    """A running agent, and a neighbour that asks it."""

    def __init__(self, agent: AgentProcess) -> None:
        self.agent = agent
        self.neighbour = Wire(str(agent.listen))
        self._streams = iter(range(1, 2**31, 2))

    def check(self) -> None:
        """The neighbour is served."""
        answer = self.neighbour.ask(next(self._streams))
        assert (answer.headers.get("grpc-status"), answer.data.endswith(KNOWN_SOCKET)) == ("0", True)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[_Fuzzed]:
    """An agent that, after all that was sent to it, has no connection left, little memory and no defect in its log."""
    with tempfile.TemporaryDirectory(prefix="va-") as directory:
        with running(Path(directory), "--example-data", "--max-calls-per-second=1000000") as agent:
            fuzzed = _Fuzzed(agent)
            with closing(fuzzed.neighbour):
                fuzzed.check()
                descriptors, rss_kib = agent.descriptors(), agent.rss_kib()
                yield fuzzed
                eventually("every connection is gone", lambda: agent.descriptors() == descriptors)
                assert agent.rss_kib() - rss_kib <= GROWS_MIB * 1024
        assert not [line for line in agent.log.raw if "Traceback" in line or "exception" in line]
        assert not agent.log.named("call_failed")


def _send(listen: Path, steps: list[Step]) -> None:
    reading = True
    with closing(Wire(str(listen), greet=False)) as wire:
        for step in steps:
            if isinstance(step, bytes):
                wire.send(step, reading=reading)
            elif step is not Do.WAIT:
                reading = step is Do.UNBLOCK
            elif reading:
                wire.read(0.001)


@settings(FUZZED, max_examples=3 * EXAMPLES)
@given(steps=conversations())
def test_an_agent(fuzzed: _Fuzzed, steps: list[Step]) -> None:
    _send(fuzzed.agent.listen, steps)
    fuzzed.check()
