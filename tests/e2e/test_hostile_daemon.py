"""A daemon that answers nonsense: the agent goes on, and so does everything that it serves."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import ROOT, WITH_HTTP, AgentProcess, running, write_list
from vdpa_agent.serve.pb.device_service_pb2 import (
    GetDeviceRequest,
    GetDeviceResponse,
    GetStatusRequest,
    GetStatusResponse,
    ListDevicesRequest,
    ListDevicesResponse,
)

FAKE: Final = ROOT / "tests" / "daemon" / "fake_vdpad.py"
DEVICE: Final = "0000:82:00.2"

LOST: Final = {
    "infinite code": ("version", '{"id":@id,"error":{"code":1e999,"message":"x"}}'),
    "no code": ("device.add", '{"id":@id,"error":{"code":NaN,"message":"x"}}'),
    "a list as id": ("version", '{"id":[],"result":1}'),
    "an object as id": ("device.add", '{"id":{},"result":1}'),
    "a long number": ("version", '{"id":' + "9" * 10_000 + "}"),
    "nesting": ("version", '{"id":@id,"result":' + "[" * 30_000 + "]" * 30_000 + "}"),
    "zero bytes": ("device.add", "\0\0"),
    "nothing": ("version", "{}"),
    "no version": ("version", '{"id":@id,"result":[]}'),
}
"""After such a line the daemon is lost, and started again."""

ODD: Final = {
    "reason with a surrogate": ("device.add", r'{"id":@id,"error":{"code":1,"message":"\ud800bad"}}'),
    "reason with escapes": ("device.add", r'{"id":@id,"error":{"code":1,"message":"\u001b[2J\n{}\u0000\u202e"}}'),
    "long reason": ("device.add", '{"id":@id,"error":{"code":1,"message":"' + "A" * 100_000 + '"}}'),
    "odd names": ("device.add", r'{"id":@id,"result":{"socket_file":"@file","driver":"\ud800\u0007","type":"\udfff"}}'),
    "odd numbers": (
        "device.add",
        '{"id":@id,"result":{"socket_file":"@file","queue_pairs":1180591620717411303424,"features":-1,"protocol_features":1e999,"numa_node":true}}',
    ),
    "infinite statistics": ("device.stats", '{"id":@id,"result":{"queues":[{"queue":1e999,"stats":{"a":-1e999}}]}}'),
    "odd statistics": (
        "device.stats",
        r'{"id":@id,"result":{"queues":[{"queue":0,"stats":{"\ud800":1,"b":-1,"c":NaN}}]}}',
    ),
    "a far queue": ("device.stats", '{"id":@id,"result":{"queues":[{"queue":99999999999999,"stats":{"a":1}}]}}'),
    "odd version": ("version", r'{"id":@id,"result":{"version":"\ud800\u001b[31m","protocol":2}}'),
}
"""Such an answer is taken as far as it makes sense."""


def _answers(method: str, line: str) -> dict[str, str]:
    return {"FAKE_ANSWERS": json.dumps({method: line})}


@pytest.mark.parametrize(("method", "line"), LOST.values(), ids=LOST.keys())
def test_a_channel_without_sense_is_lost_with_its_reason_and_the_daemon_started_again(
    run_dir: Path, method: str, line: str
) -> None:
    write_list(run_dir / "pciList.dat", [DEVICE])
    options = ("--simulate", f"--vdpad={FAKE}", WITH_HTTP)
    with running(run_dir, *options, environment=_answers(method, line)) as agent:
        ended = agent.wait_logged("daemon_ended")
        assert "vdpad" in ended["reason"]
        assert ended["reason"].isprintable()
        agent.wait_logged("daemon_started", count=2)
        _assert_all_is_served(agent)


@pytest.mark.parametrize(("method", "line"), ODD.values(), ids=ODD.keys())
def test_an_odd_answer_is_taken_as_far_as_it_makes_sense(run_dir: Path, method: str, line: str) -> None:
    write_list(run_dir / "pciList.dat", [DEVICE])
    options = ("--simulate", f"--vdpad={FAKE}", WITH_HTTP)
    with running(run_dir, *options, environment=_answers(method, line)) as agent:
        event = "device_failed" if '"error"' in line else "device_ready"
        agent.wait_logged(event)
        _assert_all_is_served(agent)
        assert all(len(event.get("reason", "")) <= 640 for event in agent.log.events)
        assert not agent.log.named("daemon_ended")


def test_a_flood_of_notifications_leaves_the_agent_to_its_callers(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", [DEVICE])
    options = ("--simulate", f"--vdpad={FAKE}", WITH_HTTP)
    with running(run_dir, *options, environment={"FAKE_VDPAD": "flood"}) as agent:
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))
        # On a loaded machine the daemon may for a while be too busy with its flood to answer.
        assert {agent.ask(DEVICE) for _ in range(500)} - {""}
        _assert_all_is_served(agent)
        assert not agent.log.named("daemon_ended")


def _assert_all_is_served(agent: AgentProcess) -> None:
    assert agent.get("/livez")[0] == 200
    status, text = agent.get("/metrics")
    assert (status, "vdpa_agent_ready" in text) == (200, True)
    listed = _call(agent, "ListDevices", ListDevicesRequest(), ListDevicesResponse)
    assert [device.pci_address for device in listed.devices] == [DEVICE]
    got = _call(agent, "GetDevice", GetDeviceRequest(pci_address=DEVICE), GetDeviceResponse)
    assert got.device.pci_address == DEVICE
    _call(agent, "GetStatus", GetStatusRequest(), GetStatusResponse)


def _call(agent: AgentProcess, method: str, request: Any, response: Any) -> Any:
    call = agent.channel.unary_unary(
        f"/vdpa_agent.v1.DeviceService/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    return call(request, timeout=20)
