"""The clients in use get the right answers from a real agent: grpcurl, Go new and old, grpcio, grpc-js, the CLI."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from tests.interop.tap import Tap
from tests.processes import PATIENCE_S, ROOT, AgentProcess, built, eventually, running
from vdpa_agent.serve.pb import vdpadpdk_pb2
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

METHOD: Final = "vdpadpdk.VdpaDpdk/GetSocketpath"
KNOWN: Final = "0000:82:00.5"
KNOWN_SOCKET: Final = "/var/run/vdpa/vhost/vdpa-3"
UNKNOWN: Final = "0000:81:00.5"
FIELD_SOCKET: Final = "/var/run/vdpa/vdpa.sock"
GOOGLE_PROTOS: Final = Path(error_details_pb2.__file__).parent.parent.parent
GO_CLIENTS: Final = ("get-socketpath", "get-socketpath-old")

# The frozen contract, byte for byte. They are written out so that no change of the proto file can change them too.
REQUEST: Final = bytes.fromhex("0a 0c 30 30 30 30 3a 38 32 3a 30 30 2e 35")
ANSWER: Final = bytes.fromhex("0a 1a 2f 76 61 72 2f 72 75 6e 2f 76 64 70 61 2f 76 68 6f 73 74 2f 76 64 70 61 2d 33")
FROZEN: Final = """
name: "vdpadpdk.proto"
package: "vdpadpdk"
syntax: "proto3"
message_type {
  name: "GetSocketpathRequest"
  field { name: "pciAddress" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
}
message_type {
  name: "GetSocketpathResponse"
  field { name: "socketpath" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
}
service {
  name: "VdpaDpdk"
  method {
    name: "GetSocketpath"
    input_type: ".vdpadpdk.GetSocketpathRequest"
    output_type: ".vdpadpdk.GetSocketpathResponse"
    options {}
  }
}
"""


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def output(*argv: str | Path) -> str:
    ended = run(*argv)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def tool(name: str) -> Path:
    return built(f"go/bin/{name}", "test")


def grpcurl(listen: Path, *arguments: str, options: tuple[str, ...] = ()) -> str:
    return output(tool("grpcurl"), "-plaintext", "-unix", *options, str(listen), *arguments)


def grpcurl_get(listen: Path, address: str, *options: str) -> dict[str, str]:
    asked = ("-d", json.dumps({"pciAddress": address}), *options)
    answer: dict[str, str] = json.loads(grpcurl(listen, METHOD, options=asked))
    return answer


def asked(agent: AgentProcess) -> list[tuple[str, str]]:
    """Every request so far as the log tells it. A last question marks the end: its line comes after all others."""
    mark = "the end"

    def marked() -> bool:
        agent.ask(mark)  # again: of many requests at once, not all have a line
        return bool(agent.log.named("socket_asked", device=mark))

    eventually("a line", marked)
    lines = [(line["device"], line["socket"]) for line in agent.log.named("socket_asked")]
    return [line for line in lines if line[0] != mark]


class TestGrpcurl:
    def test_lists_the_service(self, agent: AgentProcess) -> None:
        assert "vdpadpdk.VdpaDpdk" in grpcurl(agent.listen, "list").splitlines()

    def test_describes_the_service(self, agent: AgentProcess) -> None:
        described = grpcurl(agent.listen, "describe", "vdpadpdk.VdpaDpdk")
        assert "service VdpaDpdk {" in described
        assert (
            "rpc GetSocketpath ( .vdpadpdk.GetSocketpathRequest ) returns ( .vdpadpdk.GetSocketpathResponse );"
            in described
        )

    def test_describes_the_messages(self, agent: AgentProcess) -> None:
        assert "string pciAddress = 1;" in grpcurl(agent.listen, "describe", "vdpadpdk.GetSocketpathRequest")
        assert "string socketpath = 1;" in grpcurl(agent.listen, "describe", "vdpadpdk.GetSocketpathResponse")

    @pytest.mark.parametrize(
        ("address", "answer"),
        [
            (KNOWN, {"socketpath": KNOWN_SOCKET}),
            ("82:00.5", {"socketpath": KNOWN_SOCKET}),
            (UNKNOWN, {}),
        ],
    )
    def test_asks_by_reflection(self, agent: AgentProcess, address: str, answer: dict[str, str]) -> None:
        assert grpcurl_get(agent.listen, address) == answer
        assert asked(agent) == [(address, answer.get("socketpath", ""))]

    def test_asks_in_any_form_of_the_address(self, letters_agent: AgentProcess) -> None:
        for address in ("0000:af:0b.1", "0000:AF:0B.1", "af:0b.1", "Af:0B.1"):
            assert grpcurl_get(letters_agent.listen, address) == {"socketpath": "/var/run/vdpa/vhost/vdpa-9"}, address

    def test_asks_by_the_proto_file(self, agent: AgentProcess) -> None:
        by_file = (f"-import-path={ROOT / 'protos'}", "-proto=vdpadpdk.proto", "-use-reflection=false")
        assert grpcurl_get(agent.listen, KNOWN, *by_file) == {"socketpath": KNOWN_SOCKET}
        assert grpcurl_get(agent.listen, UNKNOWN, *by_file) == {}


@pytest.mark.parametrize("client", GO_CLIENTS)
class TestGo:
    def test_known_and_unknown(self, agent: AgentProcess, client: str) -> None:
        lines = output(tool(client), f"-socket={agent.listen}", KNOWN, UNKNOWN)
        assert lines == f"{KNOWN}\t{KNOWN_SOCKET}\n{UNKNOWN}\t\n"
        assert asked(agent) == [(KNOWN, KNOWN_SOCKET), (UNKNOWN, "")]

    def test_a_path_as_authority(self, tap: Tap, client: str) -> None:
        lines = output(tool(client), f"-socket={tap.listen}", f"-authority={FIELD_SOCKET}", KNOWN)
        assert lines == f"{KNOWN}\t{KNOWN_SOCKET}\n"
        assert [request.headers[":authority"] for request in tap.only().requests()] == [FIELD_SOCKET]

    def test_200_calls_on_one_connection(self, agent: AgentProcess, tap: Tap, client: str) -> None:
        sockets = {f"0000:82:01.{n}": f"/var/run/vdpa/vhost/vdpa-{n + 6}" for n in range(8)}
        expected = [*sockets.items(), (UNKNOWN, ""), (KNOWN, KNOWN_SOCKET)] * 20
        lines = output(tool(client), f"-socket={tap.listen}", *(address for address, _ in expected))
        assert lines == "".join(f"{address}\t{socket}\n" for address, socket in expected)
        assert asked(agent) == expected
        assert len(tap.only().requests()) == 200

    def test_no_agent(self, run_dir: Path, client: str) -> None:
        ended = run(tool(client), f"-socket={run_dir / 'vdpa.sock'}", "-timeout=300ms", KNOWN)
        assert ended.returncode == 1
        assert ended.stderr.split(":")[0] in {"Unavailable", "DeadlineExceeded"}
        assert ended.stdout == ""


def test_the_old_go_client_sends_its_target_as_authority(tap: Tap) -> None:
    assert output(tool("get-socketpath-old"), f"-socket={tap.listen}", KNOWN) == f"{KNOWN}\t{KNOWN_SOCKET}\n"
    assert [request.headers[":authority"] for request in tap.only().requests()] == [str(tap.listen)]


def test_the_frozen_service_has_all_that_it_had_and_no_more() -> None:
    now = FileDescriptorProto()
    vdpadpdk_pb2.DESCRIPTOR.CopyToProto(now)
    assert now == text_format.Parse(FROZEN, FileDescriptorProto())


def raw(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
    """The method as bytes in, bytes out."""
    return channel.unary_unary(f"/{METHOD}")


class TestGrpcio:
    @pytest.fixture
    def channel(self, agent: AgentProcess) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(f"unix:{agent.listen}") as channel:
            yield channel

    @pytest.mark.parametrize(("address", "socket"), [(KNOWN, KNOWN_SOCKET), (UNKNOWN, "")])
    def test_known_and_unknown(self, agent: AgentProcess, channel: grpc.Channel, address: str, socket: str) -> None:
        ask = channel.unary_unary(
            f"/{METHOD}",
            request_serializer=GetSocketpathRequest.SerializeToString,
            response_deserializer=GetSocketpathResponse.FromString,
        )
        answer = ask(GetSocketpathRequest(pciAddress=address), timeout=PATIENCE_S)
        assert answer == GetSocketpathResponse(socketpath=socket)
        assert asked(agent) == [(address, socket)]

    def test_the_message_classes_write_the_golden_bytes(self) -> None:
        assert GetSocketpathRequest(pciAddress=KNOWN).SerializeToString() == REQUEST
        assert GetSocketpathResponse(socketpath=KNOWN_SOCKET).SerializeToString() == ANSWER

    @pytest.mark.parametrize(
        ("request_bytes", "answer_bytes"),
        [
            pytest.param(REQUEST, ANSWER, id="known"),
            pytest.param(b"\x0a\x07unknown", b"", id="unknown"),
            pytest.param(b"", b"", id="empty"),
            pytest.param(REQUEST + b"\x12\x03new", ANSWER, id="with-a-field-of-the-future"),
        ],
    )
    def test_golden_bytes(self, channel: grpc.Channel, request_bytes: bytes, answer_bytes: bytes) -> None:
        answer, call = raw(channel).with_call(request_bytes, timeout=PATIENCE_S)
        assert answer == answer_bytes
        assert call.code() is grpc.StatusCode.OK

    @pytest.mark.parametrize(
        "garbage",
        [
            pytest.param("", id="empty"),
            pytest.param("0" * 10_000, id="10-kB"),
            pytest.param("\N{WATERMELON}" * 40, id="emoji"),
            pytest.param("\0\n\r\x1b[31m\x7f", id="control-characters"),
            pytest.param(f"{KNOWN}\n{KNOWN}", id="two-lines"),
            pytest.param("\N{ARABIC-INDIC DIGIT ONE}" * 4 + ":82:00.5", id="digits-of-another-script"),
        ],
    )
    def test_garbage_is_an_unknown_address(self, agent: AgentProcess, channel: grpc.Channel, garbage: str) -> None:
        message = GetSocketpathRequest(pciAddress=garbage).SerializeToString()
        answer, call = raw(channel).with_call(message, timeout=PATIENCE_S)
        assert answer == b""
        assert call.code() is grpc.StatusCode.OK
        assert asked(agent) == [(garbage[:64], "")]

    @pytest.mark.parametrize("version", ["v1", "v1alpha"])
    def test_reflection_in_both_versions(self, channel: grpc.Channel, version: str) -> None:
        talk: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        )
        list_services = b"\x3a\x00"
        (answer,) = talk(iter([list_services]), timeout=PATIENCE_S)
        assert b"vdpadpdk.VdpaDpdk" in answer


def ask_by_grpcio(listen: Path) -> None:
    with grpc.insecure_channel(f"unix:{listen}") as channel:
        channel.unary_unary(f"/{METHOD}", request_serializer=GetSocketpathRequest.SerializeToString)(
            GetSocketpathRequest(pciAddress=KNOWN), timeout=PATIENCE_S
        )


ASK: Final[dict[str, Callable[[Path], Any]]] = {
    "grpcurl": lambda listen: grpcurl_get(
        listen, KNOWN, f"-import-path={ROOT / 'protos'}", "-proto=vdpadpdk.proto", "-use-reflection=false"
    ),
    "go": lambda listen: output(tool("get-socketpath"), f"-socket={listen}", KNOWN),
    "old-go": lambda listen: output(tool("get-socketpath-old"), f"-socket={listen}", KNOWN),
    "grpcio": ask_by_grpcio,
    "cli": lambda listen: output(sys.executable, "-m", "vdpa_agent", "get", KNOWN, f"--address={listen}"),
}


@pytest.mark.parametrize("client", ASK)
def test_the_wire(tap: Tap, client: str) -> None:
    ASK[client](tap.listen)
    (request,) = tap.only().requests()
    (answer,) = tap.only().answers()
    assert request.headers[":path"] == "/vdpadpdk.VdpaDpdk/GetSocketpath"
    # gRPC's prefix: not compressed, and the length in four bytes.
    assert request.data == b"\x00\x00\x00\x00\x0e" + REQUEST
    assert answer.data == b"\x00\x00\x00\x00\x1c" + ANSWER
    assert answer.headers["grpc-status"] == "0"


class TestGoDeviceService:
    def test_a_device(self, agent: AgentProcess) -> None:
        told = output(tool("get-device"), f"-socket={agent.listen}", "82:00.5")
        assert told == f"{KNOWN}\t{KNOWN_SOCKET}\tDEVICE_STATE_READY\n"

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("0000:87:00.5", "NotFound vdpa-agent/NO_SUCH_DEVICE: 0000:87:00.5 is not a device of this node"),
            ("ens1", "InvalidArgument vdpa-agent/BAD_PCI_ADDRESS: 'ens1' is not a PCI address such as 0000:82:00.2"),
        ],
    )
    def test_errors_with_their_details(self, agent: AgentProcess, address: str, said: str) -> None:
        refused = run(tool("get-device"), f"-socket={agent.listen}", address)
        assert (refused.returncode, refused.stderr) == (1, f"{said}\n")


def test_grpc_js(agent: AgentProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_PATH", str(built("node/node_modules", "interop")))
    script = ROOT / "tests" / "interop" / "node" / "ask.js"
    told = json.loads(output("node", script, agent.listen, ROOT / "protos", GOOGLE_PROTOS))
    assert told["known"] == {"socketpath": KNOWN_SOCKET}
    assert told["unknown"] == {"socketpath": ""}
    sockets = {device["pci_address"]: device["socket_path"] for device in told["devices"]}
    assert (len(sockets), sockets[KNOWN]) == (16, KNOWN_SOCKET)
    assert told["refused"] == {"code": "NOT_FOUND", "reason": "NO_SUCH_DEVICE", "domain": "vdpa-agent"}
    first = told["watched"]["first"]
    assert (first["initial"], first["devices"]) == (True, told["devices"])
    assert told["watched"]["code"] == "CANCELLED"
    assert told["after"]["ready"] is True  # the connection outlived the cancel
    assert asked(agent) == [(KNOWN, KNOWN_SOCKET), (UNKNOWN, "")]


class TestHealthProbe:
    @pytest.mark.parametrize(
        ("service", "code", "said"),
        [("", 0, "status: SERVING"), ("vdpadpdk.VdpaDpdk", 0, "status: SERVING"), ("nobody", 3, "NotFound")],
    )
    def test_check(self, agent: AgentProcess, service: str, code: int, said: str) -> None:
        probed = run(tool("grpc-health-probe"), f"-addr=unix:{agent.listen}", f"-service={service}")
        assert (probed.returncode, said in probed.stderr + probed.stdout) == (code, True)

    def test_not_ready(self, run_dir: Path) -> None:
        (run_dir / "socketList.dat").write_text("[{")
        with running(run_dir) as refusing:
            refusing.wait_logged("file_refused")
            assert run(tool("grpc-health-probe"), f"-addr=unix:{refusing.listen}").returncode == 4


def test_the_committed_go_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    generated = subprocess.run(
        ["tests/interop/generate", str(tmp_path)],
        cwd=ROOT,
        env={"PYTHON": sys.executable, "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    assert generated.returncode == 0, generated.stderr
    # The old generator compresses its descriptor, and each release of Go does that a little differently.
    files = [path.relative_to(tmp_path) for path in (tmp_path / "go").rglob("*.go")]
    assert len(files) == 4
    for path in files:
        assert (ROOT / "tests" / "interop" / path).read_bytes() == (tmp_path / path).read_bytes(), path
