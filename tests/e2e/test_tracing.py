"""Tracing by real agents, to a collector that takes what the OpenTelemetry protocol sends by HTTP."""

import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.processes import PATIENCE_S, ROOT, eventually, running
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Gathers what is exported to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                for exported in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append(_attributes(exported.resource))
                    collector.spans += [span for scope in exported.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def wait(self, name: str) -> Span:
        """Waits for a span of a name."""
        return eventually(name, lambda: next((span for span in self.spans if span.name == name), None))


def _attributes(of: Any) -> dict[str, str]:
    return {item.key: item.value.string_value or str(item.value.int_value) for item in of.attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    gathers = Collector()
    serving = threading.Thread(target=gathers.server.serve_forever)
    serving.start()
    try:
        yield gathers
    finally:
        gathers.server.shutdown()
        serving.join()
        gathers.server.server_close()


def _environment(port: int, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", **more}


def test_a_call_is_a_span_of_its_callers_trace(run_dir: Path) -> None:
    with collector() as gathers:
        environment = _environment(gathers.server.server_port, OTEL_BSP_SCHEDULE_DELAY="50")
        with running(run_dir, environment=environment) as agent:
            before = time.time_ns()
            call: Any = agent.channel.unary_unary("/vdpadpdk.VdpaDpdk/GetSocketpath")
            request = GetSocketpathRequest(pciAddress="0000:82:00.2").SerializeToString()
            call(request, timeout=PATIENCE_S, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
            span = gathers.wait("vdpadpdk.VdpaDpdk/GetSocketpath")
            assert (span.trace_id.hex(), span.parent_span_id.hex(), span.kind) == (TRACE, PARENT, Span.SPAN_KIND_SERVER)
            assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
            assert _attributes(span) == {
                "rpc.system": "grpc",
                "rpc.service": "vdpadpdk.VdpaDpdk",
                "rpc.method": "GetSocketpath",
                "rpc.grpc.status_code": "0",
            }
            assert gathers.resources[0]["service.name"] == "vdpa-agent"
            status: Any = agent.channel.unary_unary("/vdpa_agent.v1.DeviceService/GetStatus")
            status(b"", timeout=PATIENCE_S)
            orphan = gathers.wait("vdpa_agent.v1.DeviceService/GetStatus")
            assert orphan.parent_span_id == b""
            assert orphan.trace_id.hex() != TRACE


def test_faults_are_the_servers_and_unsampled_traces_are_left_alone(run_dir: Path) -> None:
    with collector() as gathers:
        environment = _environment(gathers.server.server_port, OTEL_BSP_SCHEDULE_DELAY="50", OTEL_SERVICE_NAME="mine")
        with running(run_dir, environment=environment) as agent:
            ask: Any = agent.channel.unary_unary("/vdpadpdk.VdpaDpdk/GetSocketpath")
            ask(b"", timeout=PATIENCE_S, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),))
            ask(b"", timeout=PATIENCE_S, metadata=(("traceparent", "nonsense"), ("tracestate", "=,,=")))
            device: Any = agent.channel.unary_unary("/vdpa_agent.v1.DeviceService/GetDevice")
            with pytest.raises(grpc.RpcError):
                device(b"\xff", timeout=PATIENCE_S)  # no protobuf
            with pytest.raises(grpc.RpcError):
                device(b"", timeout=PATIENCE_S)  # no address
            gathers.wait("vdpa_agent.v1.DeviceService/GetDevice")
        faults = [
            (_attributes(span)["rpc.grpc.status_code"], span.status.code)
            for span in gathers.spans
            if span.name == "vdpa_agent.v1.DeviceService/GetDevice"
        ]
        assert faults == [("13", Status.STATUS_CODE_ERROR), ("3", Status.STATUS_CODE_UNSET)]
        asked = [span for span in gathers.spans if span.name == "vdpadpdk.VdpaDpdk/GetSocketpath"]
        assert [span.trace_id.hex() != TRACE for span in asked] == [True]
        assert {resource["service.name"] for resource in gathers.resources} == {"mine"}


def test_the_last_spans_are_sent_at_the_end(run_dir: Path) -> None:
    with collector() as gathers:
        environment = _environment(gathers.server.server_port, OTEL_BSP_SCHEDULE_DELAY="600000")
        with running(run_dir, environment=environment) as agent:
            agent.ask("nonsense")
        assert [span.name for span in gathers.spans] == ["vdpadpdk.VdpaDpdk/GetSocketpath"]


def test_a_collector_that_says_nothing_holds_nobody_up(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = _environment(
            silent.getsockname()[1], OTEL_BSP_SCHEDULE_DELAY="50", OTEL_EXPORTER_OTLP_TIMEOUT="3600"
        )
        with running(run_dir, environment=environment) as agent:
            for _ in range(100):
                assert agent.ask("nonsense") == ""
            assert agent.stop() == 0


def test_without_the_extra_the_agent_says_so_and_goes_on(run_dir: Path) -> None:
    (run_dir / "opentelemetry.py").write_text("raise ImportError('No module named opentelemetry')\n")
    environment = {**_environment(1), "PYTHONPATH": str(run_dir)}
    with running(run_dir, environment=environment) as agent:
        assert agent.ask("nonsense") == ""
        told = agent.wait_logged("tracing_not_possible")
        assert told["reason"] == "no module named opentelemetry"
        # It holds in the image too, which has no pip; the packages are those of the extra.
        packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["tracing"]
        assert [package for package in packages if package.partition(">")[0] not in told["remedy"]] == []
        assert "pip install" not in told["remedy"]
