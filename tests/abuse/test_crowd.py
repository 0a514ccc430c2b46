"""A thousand clients that come at the same moment are all served."""

import asyncio
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from tests.abuse.wire import HEADERS, KNOWN, KNOWN_SOCKET, PATH, PREFACE, request
from tests.processes import PATIENCE_S, AgentProcess, eventually, running
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

CROWD: Final = 1_000
ROUNDS: Final = 5

CALL: Final = (
    PREFACE
    + SettingsFrame(0).serialize()
    + HeadersFrame(1, Encoder().encode(list(HEADERS)), flags=["END_HEADERS"]).serialize()
    + DataFrame(1, request(), flags=["END_STREAM"]).serialize()
)
DATA, HEADERS_TYPE, END_STREAM = 0, 1, 1


@pytest.fixture
def agent(run_dir: Path) -> Iterator[AgentProcess]:
    """An agent, in a process that may have a thousand connections to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 2 * CROWD, "raise the hard limit of open files: `ulimit -Hn`"
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * CROWD if hard == resource.RLIM_INFINITY else hard, hard))
    try:
        # One crowd is one user here, and may ask as often as many.
        with running(run_dir, "--example-data", "--max-calls-per-second=10000") as agent:
            yield agent
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not [line for line in agent.log.raw if "Traceback" in line or "exception" in line]
    assert not agent.log.named("peer_misbehaved")


async def _call_cold(listen: Path) -> float:
    """Connects, makes one call and closes; returns how long that took, in seconds."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_unix_connection(listen)
    writer.write(CALL)
    data, ended = b"", False
    while not ended:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == DATA:
            data += payload
        ended = head[3] == HEADERS_TYPE and bool(head[4] & END_STREAM)
    took_s = time.perf_counter() - began
    writer.close()
    await writer.wait_closed()
    assert data.endswith(KNOWN_SOCKET)
    return took_s


def test_a_crowd_of_cold_calls(agent: AgentProcess) -> None:
    async def crowd() -> list[float]:
        return await asyncio.gather(*(_call_cold(agent.listen) for _ in range(CROWD)))

    before = agent.descriptors()
    for number in range(ROUNDS):
        began = time.perf_counter()
        took_s = sorted(asyncio.run(crowd()))
        print(  # noqa: T201
            f"\n{CROWD} cold calls at once, round {number + 1}: {time.perf_counter() - began:.3f} s,"
            f" p50 {took_s[CROWD // 2]:.3f} s, p99 {took_s[CROWD * 99 // 100]:.3f} s, max {took_s[-1]:.3f} s",
            end="",
        )
    eventually("every connection is gone", lambda: agent.descriptors() == before)


def test_a_crowd_of_grpcio_channels(agent: AgentProcess) -> None:
    own = [("grpc.use_local_subchannel_pool", 1)]  # or they would share one connection
    channels = [grpc.insecure_channel(f"unix:{agent.listen}", options=own) for _ in range(CROWD)]
    try:
        asked = [
            channel.unary_unary(
                PATH,
                request_serializer=GetSocketpathRequest.SerializeToString,
                response_deserializer=GetSocketpathResponse.FromString,
            ).future(GetSocketpathRequest(pciAddress=KNOWN), timeout=PATIENCE_S)
            for channel in channels
        ]
        assert {answer.result().socketpath for answer in asked} == {KNOWN_SOCKET.decode()}
    finally:
        for channel in channels:
            channel.close()
