"""The API for new clients and the health service, against a real agent and a real daemon."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.e2e.conftest import FOUR
from tests.processes import AgentProcess, eventually, front_end, mapping_text, running, write_atomically
from vdpa_agent.serve.pb import device_service_pb2 as pb


def _unary(agent: AgentProcess, method: str, request: Any, reply: Any) -> Any:
    call = agent.channel.unary_unary(
        method, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
    )
    return call(request, timeout=10)


def _device(agent: AgentProcess, address: str) -> pb.Device:
    reply = _unary(
        agent, "/vdpa_agent.v1.DeviceService/GetDevice", pb.GetDeviceRequest(pci_address=address), pb.GetDeviceResponse
    )
    device: pb.Device = reply.device
    return device


def _status(agent: AgentProcess) -> pb.GetStatusResponse:
    reply: pb.GetStatusResponse = _unary(
        agent, "/vdpa_agent.v1.DeviceService/GetStatus", pb.GetStatusRequest(), pb.GetStatusResponse
    )
    return reply


class _Stream(threading.Thread):
    """Gathers the responses of a server's stream."""

    def __init__(self, agent: AgentProcess, method: str, request: Any, reply: Any) -> None:
        super().__init__(daemon=True)
        open_stream = agent.channel.unary_stream(
            method, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        self._call: Iterator[Any] = open_stream(request)
        self.responses: list[Any] = []
        self.error: grpc.StatusCode | None = None
        self.start()

    def run(self) -> None:
        try:
            for response in self._call:
                self.responses.append(response)
        except grpc.RpcError as error:
            self.error = error.code()

    def wait(self, what: str, condition: Callable[[list[Any]], object]) -> None:
        eventually(what, lambda: condition(list(self.responses)))


def test_a_device_carries_all_that_is_known(four: AgentProcess) -> None:
    with front_end(four.ask(FOUR[1]), "--packets=1000") as front:
        assert front.result()["exit_code"] == 0
    device = _device(four, "82:00.3")
    assert device.pci_address == FOUR[1]
    assert device.socket_path == four.ask(FOUR[1])
    assert device.state == pb.DEVICE_STATE_READY
    assert (device.driver, device.queue_pairs, device.type) == ("vdpa_sim", 4, "net")
    assert device.vhost_mode == pb.VHOST_MODE_SERVER
    assert device.features & 1 << 32  # VIRTIO_F_VERSION_1
    assert {queue.queue: queue.counters["packets"] for queue in device.statistics}[1] == 1000
    with front_end(four.ask(FOUR[1]), "--rate=1000") as front:
        front.wait_passing()
        device = _device(four, FOUR[1])
        assert device.state == pb.DEVICE_STATE_CONNECTED
        assert device.front_end_connected


def test_all_devices_in_order(four: AgentProcess) -> None:
    reply = _unary(
        four,
        "/vdpa_agent.v1.DeviceService/ListDevices",
        pb.ListDevicesRequest(include_statistics=True),
        pb.ListDevicesResponse,
    )
    assert [device.pci_address for device in reply.devices] == list(FOUR)
    assert all(device.statistics for device in reply.devices)


def test_a_foreign_mapping_tells_which_sockets_are_dead(run_dir: Any) -> None:
    with running(run_dir) as agent:
        write_atomically(agent.socket_list, mapping_text({FOUR[0]: "/v/a", FOUR[1]: str(agent.listen)}))
        agent.wait_answer(FOUR[0], "/v/a")
        dead, alive = _device(agent, FOUR[0]), _device(agent, FOUR[1])
        assert (dead.state, dead.socket_path) == (pb.DEVICE_STATE_READY, "/v/a")  # the file is the truth
        assert (alive.state, alive.reason, alive.remark) == (pb.DEVICE_STATE_READY, "", "")
        eventually("the doubt", lambda: _device(agent, FOUR[0]).remark == "the socket file /v/a is gone")
        assert _device(agent, FOUR[0]).reason == ""  # a remark is no reason
        assert not _status(agent).HasField("front_ends")  # nobody knows
        assert _status(agent).ready


@pytest.mark.parametrize(
    ("address", "code", "reason"),
    [
        ("ens1", grpc.StatusCode.INVALID_ARGUMENT, "BAD_PCI_ADDRESS"),
        ("0000:99:00.0", grpc.StatusCode.NOT_FOUND, "NO_SUCH_DEVICE"),
    ],
)
def test_errors_carry_their_reason(four: AgentProcess, address: str, code: grpc.StatusCode, reason: str) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        _device(four, address)
    assert refusal.value.code() is code
    details = {item.key: item.value for item in refusal.value.trailing_metadata()}["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "vdpa-agent")


def test_before_any_list_nobody_can_say(run_dir: Any) -> None:
    with running(run_dir) as agent:
        with pytest.raises(grpc.RpcError) as refusal:
            _device(agent, FOUR[0])
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_watcher_sees_the_whole_state_then_changes_in_order(four: AgentProcess) -> None:
    stream = _Stream(
        four, "/vdpa_agent.v1.DeviceService/WatchDevices", pb.WatchDevicesRequest(), pb.WatchDevicesResponse
    )
    stream.wait("the state", lambda seen: len(seen) == 1)
    assert stream.responses[0].initial
    assert [device.pci_address for device in stream.responses[0].devices] == list(FOUR)
    write_atomically(four.pci_list, "".join(f"{address}\n" for address in FOUR[1:]))
    stream.wait("the removal", lambda seen: any(FOUR[0] in response.removed_pci_addresses for response in seen))
    os.kill(four.daemon_pid(), signal.SIGKILL)
    stream.wait("the loss", lambda seen: any(d.state == pb.DEVICE_STATE_WANTED for r in seen for d in r.devices))
    stream.wait("the return", lambda seen: sum(d.state == pb.DEVICE_STATE_READY for r in seen for d in r.devices) >= 7)
    assert not any(response.initial for response in stream.responses[1:])
    four.stop()
    stream.join(10)
    assert stream.error in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_status_says_why_it_is_not_ready(four: AgentProcess) -> None:
    status = _status(four)
    assert (status.ready, status.live, list(status.not_ready_reasons)) == (True, True, [])
    assert status.role == pb.ROLE_MANAGING
    assert status.daemon.pid == four.daemon_pid()
    assert status.settings["socket-dir"] == str(four.directory / "vhost")
    os.kill(four.daemon_pid(), signal.SIGKILL)
    four.wait_logged("daemon_restart_waits")
    status = _status(four)
    assert (status.ready, status.live) == (False, True)
    assert list(status.not_ready_reasons) == ["the daemon is in state backoff: killed by SIGKILL"]


def _check(agent: AgentProcess, service: str) -> str:
    reply = _unary(agent, "/grpc.health.v1.Health/Check", HealthCheckRequest(service=service), HealthCheckResponse)
    return str(HealthCheckResponse.ServingStatus.Name(reply.status))


def test_health(four: AgentProcess) -> None:
    for service in ("", "vdpadpdk.VdpaDpdk", "vdpa_agent.v1.DeviceService"):
        assert _check(four, service) == "SERVING"
    with pytest.raises(grpc.RpcError) as refusal:
        _check(four, "nobody")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    request = HealthCheckRequest(service="vdpadpdk.VdpaDpdk")
    watch = _Stream(four, "/grpc.health.v1.Health/Watch", request, HealthCheckResponse)
    unknown = _Stream(four, "/grpc.health.v1.Health/Watch", HealthCheckRequest(service="x"), HealthCheckResponse)
    watch.wait("the first status", bool)
    unknown.wait("the first status", bool)
    os.kill(four.daemon_pid(), signal.SIGKILL)
    watch.wait("all statuses", lambda seen: len(seen) == 3)
    assert [response.status for response in watch.responses] == [
        HealthCheckResponse.SERVING,
        HealthCheckResponse.NOT_SERVING,
        HealthCheckResponse.SERVING,
    ]
    assert [response.status for response in unknown.responses] == [HealthCheckResponse.SERVICE_UNKNOWN]


def test_sockets_decide_readiness_only_where_that_is_asked_for(run_dir: Any) -> None:
    with running(run_dir, "--require-sockets", "--hold-timeout=0.1") as agent:
        write_atomically(agent.socket_list, mapping_text({FOUR[0]: "/v/a", FOUR[1]: str(agent.listen)}))
        agent.wait_answer(FOUR[1], str(agent.listen))
        eventually("the dead socket", lambda: agent.ask(FOUR[0]) == "")
        status = _status(agent)
        reasons = [f"{FOUR[0]} is failed: the socket file /v/a is gone"]
        assert (status.ready, list(status.not_ready_reasons)) == (False, reasons)
        assert _device(agent, FOUR[0]).socket_path == ""
        assert _check(agent, "") == "NOT_SERVING"


def test_a_required_socket_is_alive_behind_a_link_and_in_another_network_namespace(run_dir: Path) -> None:
    real = run_dir / "real"
    real.mkdir()
    (run_dir / "link").symlink_to("real")
    code = f"import socket; s = socket.socket(1); s.bind({str(real / 's')!r}); s.listen(); input()"
    with (
        subprocess.Popen(["unshare", "-rn", sys.executable, "-c", code], stdin=subprocess.PIPE) as other,
        running(run_dir, "--require-sockets", "--hold-timeout=0") as agent,
    ):
        try:
            eventually("the other's socket", (real / "s").exists)
            path = f"{run_dir}/link/s"
            write_atomically(agent.socket_list, mapping_text({FOUR[0]: path}))
            agent.wait_answer(FOUR[0], path)
            assert _status(agent).ready
        finally:
            other.communicate(b"\n")
        eventually("the end of its socket", lambda: agent.ask(FOUR[0]) == "")
        assert list(_status(agent).not_ready_reasons) == [f"{FOUR[0]} is failed: nobody listens on {path}"]
