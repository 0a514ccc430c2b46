"""Whatever comes over a connection, the agent finds nothing wrong with itself and serves the others."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from hyperframe.frame import Frame
from hypothesis import HealthCheck, given, settings

from tests.abuse.frames import Do, Step, conversations
from tests.abuse.wire import KNOWN_SOCKET, Wire
from tests.processes import AgentProcess, eventually, running
from tests.served import Served, heard, receive

EXAMPLES: Final = settings().max_examples
"""100, or what --hypothesis-profile says."""

GROWS_MIB: Final = 16
FUZZED: Final = settings(deadline=None, suppress_health_check=list(HealthCheck))


async def hear(served: Served, steps: list[Step]) -> None:
    """One connection that gets all these bytes."""
    served.peers.defects.clear()
    served.complaints.clear()
    served.gone.clear()
    connection, theirs, _ = served.connect(room_bytes=4_096)
    came = b""
    blocked = False
    for step in steps:
        if served.gone:
            break
        if isinstance(step, bytes):
            receive(connection, theirs, step)
        elif step is Do.WAIT:
            await _let_work()
        else:
            blocked = step is Do.BLOCK
        if not blocked:
            came += heard(theirs)
            if connection._is_blocked():
                connection._go_on()
    came += heard(theirs)
    theirs.close()  # the peer goes, which ends what still waits for it to read
    connection.abort()
    await _let_work()
    account = connection._account
    assert served.gone == [connection]  # also one that the agent ended and whose peer does not read
    assert served.peers.defects == []
    assert served.complaints == []
    assert connection.running == []
    assert (account.connections, account.open_calls, account.watches, connection._calls.busy) == (0, 0, 0, 0)
    _check_frames(came)
    served.close()


async def _let_work() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


def _check_frames(data: bytes) -> None:
    """What the agent said is HTTP/2."""
    rest = memoryview(data)
    while rest:
        frame, length = Frame.parse_frame_header(rest[:9], strict=True)
        frame.parse_body(rest[9 : 9 + length])
        if len(rest) < 9 + length:
            break  # the rest was not read
        rest = rest[9 + length :]


@settings(FUZZED, max_examples=15 * EXAMPLES)
@given(steps=conversations())
def test_a_connection(runner: asyncio.Runner, served: Served, steps: list[Step]) -> None:
    runner.run(hear(served, steps))


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
