"""What is wrong with a call gets the status that gRPC has for it, and nothing else suffers."""

import base64
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, RstStreamFrame

from tests.abuse.conftest import AGENT_UID, STRANGER_UID, under
from tests.abuse.wire import KNOWN_SOCKET, PATH, Answer, Wire, message, request, with_headers
from tests.processes import ROOT, AgentProcess, eventually, running

WATCH: Final = "/vdpa_agent.v1.DeviceService/WatchDevices"
KNOWN_ANSWER: Final = message(b"\x0a" + bytes([len(KNOWN_SOCKET)]) + KNOWN_SOCKET)
Connect = Callable[..., Wire]
LARGEST: Final = 64 * 1024
GROUP: Final = 65_531


def no_defect(agent: AgentProcess) -> None:
    """Nothing in the log tells of a defect."""
    assert not [line for line in agent.log.raw if "Traceback" in line or "exception" in line or "call_failed" in line]


@pytest.fixture(scope="module")
def shared() -> Iterator[AgentProcess]:
    """One agent for all the calls that hurt nobody."""
    with tempfile.TemporaryDirectory(prefix="va-") as directory:
        with running(Path(directory), "--example-data") as agent:
            yield agent
        no_defect(agent)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects to an agent; the end is the test's."""
    with ExitStack() as wires:
        yield lambda agent, **how: wires.enter_context(closing(Wire(str(agent.listen), **how)))


@pytest.fixture
def wire(shared: AgentProcess) -> Iterator[Wire]:
    """A connection that is as good after its test as it was before."""
    wire = Wire(str(shared.listen))
    yield wire
    last = wire.ask(99)
    assert (last.headers.get("grpc-status"), last.data) == ("0", KNOWN_ANSWER)
    wire.close()


def answer(wire: Wire, data: bytes | None, **headers: str | None) -> Answer:
    """The answer to a call with this data."""
    wire.send(wire.call(1, data, headers=with_headers(**headers)))
    return wire.wait(1)


def status(answer: Answer) -> tuple[str | None, str | None]:
    """Of HTTP and of gRPC."""
    return answer.headers.get(":status"), answer.headers.get("grpc-status")


def reason(answer: Answer) -> str:
    """The reason in its ErrorInfo."""
    packed = answer.headers["grpc-status-details-bin"]
    (detail,) = Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4))).details
    info = ErrorInfo()
    assert detail.Unpack(info)
    assert info.domain == "vdpa-agent"
    return str(info.reason)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(message(b"\x0a\x01x", compressed=1), "12", id="compressed"),
        pytest.param(message(request()[5:], compressed=1), "12", id="compressed-and-answerable"),
        pytest.param(message(b"\x0a\x05x"), "13", id="a-field-longer-than-its-message"),
        pytest.param(message(b"\x0a\x02\xff\xfe"), "13", id="a-string-that-is-not-utf-8"),
        pytest.param(message(b"\xff" * 11), "13", id="not-protobuf"),
        pytest.param(message(b"\x0a\x04abcd", length=100), "13", id="truncated-message"),
        pytest.param(b"\0\0\0", "13", id="truncated-prefix"),
        pytest.param(b"", "13", id="empty-data"),
        pytest.param(None, "13", id="no-data"),
        pytest.param(request() * 2, "13", id="two-messages"),
        pytest.param(request() + b"\0", "13", id="a-message-and-the-beginning-of-another"),
        pytest.param(request() + message(b"", length=2**32 - 1), "13", id="a-message-and-a-very-long-one"),
        pytest.param(message(b"", length=LARGEST + 1), "8", id="longer-than-allowed"),
        pytest.param(message(b"", length=2**32 - 1), "8", id="much-longer-than-allowed"),
    ],
)
def test_a_bad_request(wire: Wire, data: bytes | None, code: str) -> None:
    assert status(answer(wire, data)) == ("200", code)


@pytest.mark.parametrize(
    "path", [WATCH, PATH, "/vdpa_agent.v1.DeviceService/ListDevices", "/grpc.health.v1.Health/Check"]
)
def test_what_takes_one_request_is_not_answered_before_the_end_of_it(wire: Wire, path: str) -> None:
    """As in gRPC for Go: a second message is refused, whenever it comes."""
    wire.send(wire.call(1, message(b""), headers=with_headers(_path=path), end=False))
    assert not wire.wait(1, patience_s=0.2).headers
    wire.send(DataFrame(1, message(b""), flags=["END_STREAM"]).serialize())
    refused = wire.wait(1)
    assert status(refused) == ("200", "13")
    assert "one request" in refused.headers["grpc-message"]


def test_a_request_that_is_too_long_is_refused_before_it_came(wire: Wire) -> None:
    wire.send(wire.call(1, message(b"", length=LARGEST + 1), end=False))
    refused = wire.wait(1)
    assert status(refused) == ("200", "8")
    # The client is told to send no more of it.
    wire.read_until(lambda: refused.reset is not None)
    assert refused.reset == ErrorCodes.NO_ERROR


def test_a_request_of_just_the_largest_size_is_taken(shared: AgentProcess) -> None:
    prefix = len(b"\x0a\xfc\xff\x03")
    assert shared.ask("x" * (LARGEST - prefix)) == ""
    with pytest.raises(grpc.RpcError) as refused:
        shared.ask("x" * (LARGEST - prefix + 1))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "path",
    ["/vdpadpdk.VdpaDpdk/Nothing", "/vdpadpdk.Nobody/GetSocketpath", "vdpadpdk.VdpaDpdk/GetSocketpath", "/", "*", "é"],
)
def test_an_unknown_path(wire: Wire, path: str) -> None:
    assert status(answer(wire, request(), _path=path)) == ("200", "12")


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "post"])
def test_a_method_of_http_is_told_what_to_use(wire: Wire, method: str) -> None:
    told = answer(wire, None, _method=method)
    assert (told.headers[":status"], told.headers["allow"]) == ("405", "POST")
    assert b"grpcurl" in told.data


def test_head_gets_headers_alone(wire: Wire) -> None:
    told = answer(wire, None, _method="HEAD")
    assert (told.headers[":status"], told.headers["allow"], told.data) == ("405", "POST", b"")


@pytest.mark.parametrize(
    "content_type", [None, "", "text/html", "application/json", "application/grpc-web", "application/grpc+json"]
)
def test_another_content_type(wire: Wire, content_type: str | None) -> None:
    assert answer(wire, request(), content_type=content_type).headers[":status"] == "415"


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=x"])
def test_a_content_type_of_grpc(wire: Wire, content_type: str) -> None:
    assert status(answer(wire, request(), content_type=content_type)) == ("200", "0")


@pytest.mark.parametrize("headers", [{"_authority": None}, {"_authority": None, "host": "a"}, {"_authority": ""}])
def test_a_request_need_not_name_a_host(wire: Wire, headers: dict[str, str | None]) -> None:
    assert status(answer(wire, request(), **headers)) == ("200", "0")


@pytest.mark.parametrize("timeout", ["", "1", "S", "1x", "-1S", "1.5S", "123456789S", "\u0661S"])
def test_a_malformed_timeout(wire: Wire, timeout: str) -> None:
    assert status(answer(wire, request(), grpc_timeout=timeout)) == ("200", "13")


@pytest.mark.parametrize("timeout", ["99999999H", "5M", "10S", "5000m", "5000000u"])
def test_a_good_timeout(wire: Wire, timeout: str) -> None:
    assert status(answer(wire, request(), grpc_timeout=timeout)) == ("200", "0")


@pytest.mark.parametrize("timeout", ["30m", "30000u", "1n", "0S"])
def test_a_deadline_that_is_over(wire: Wire, timeout: str) -> None:
    wire.send(wire.call(1, headers=with_headers(grpc_timeout=timeout), end=False))
    assert status(wire.wait(1)) == ("200", "4")


def test_a_deadline_ends_a_watch(wire: Wire) -> None:
    watched = answer(wire, message(b""), _path=WATCH, grpc_timeout="300m")
    assert status(watched) == ("200", "4")
    assert watched.data.count(KNOWN_SOCKET) == 1


def test_unknown_frames_are_ignored_amid_a_call(wire: Wire) -> None:
    unknown = b"\0\0\x03\xbe\xff\0\0\0\x01abc"
    headers, data = wire.call(1, end=False), DataFrame(1, request(), flags=["END_STREAM"]).serialize()
    wire.send(unknown + headers + unknown + data + unknown)
    assert status(wire.wait(1)) == ("200", "0")


def test_a_request_in_single_bytes_is_taken(wire: Wire) -> None:
    wire.send(wire.call(1, end=False))
    for byte in request():
        wire.send(DataFrame(1, bytes([byte])).serialize())
    wire.send(DataFrame(1, b"", flags=["END_STREAM"]).serialize())
    assert wire.wait(1).data == KNOWN_ANSWER


def test_trailers_after_the_request_are_taken(wire: Wire) -> None:
    wire.send(wire.call(1, request(), end=False))
    trailers = HeadersFrame(1, wire.encoder.encode([("x-more", "1")]), flags=["END_HEADERS", "END_STREAM"])
    wire.send(trailers.serialize())
    assert status(wire.wait(1)) == ("200", "0")


@pytest.mark.parametrize(
    ("reset", "end"),
    [
        pytest.param(RstStreamFrame(1).serialize(), b"", id="the-call"),
        pytest.param(b"", GoAwayFrame(0).serialize(), id="its-connection"),
    ],
)
def test_a_refused_call_that_its_peer_has_ended(run_dir: Path, connect: Connect, reset: bytes, end: bytes) -> None:
    with running(run_dir, "--example-data") as agent:
        wire = connect(agent)
        # In one piece: all of it is known before any of it is answered.
        wire.send(wire.call(1, headers=with_headers(_path="/nowhere")) + reset + wire.call(3, request()) + end)
        wire.wait(3)
        if end:
            wire.wait_closed()
        assert wire.closed == bool(end)
        assert status(connect(agent).ask(1)) == ("200", "0")
    no_defect(agent)


def test_more_calls_a_second_than_allowed_have_to_wait(run_dir: Path, connect: Connect) -> None:
    with running(run_dir, "--example-data", "--max-calls-per-second=20") as agent:
        wire = connect(agent)
        began = time.monotonic()
        for stream in range(1, 161, 2):
            assert status(wire.ask(stream)) == ("200", "0")
        assert time.monotonic() - began >= 1.9  # 40 at once, then one every 50 ms
        (line,) = agent.log.named("peer_misbehaved")
        assert line["reason"] == "call_rate"
    no_defect(agent)


def test_more_open_calls_than_allowed(run_dir: Path, connect: Connect) -> None:
    with running(run_dir, "--example-data", "--max-open-calls-per-uid=2") as agent:
        wire, other = connect(agent), connect(agent)
        wire.send(wire.call(1, end=False) + wire.call(3, end=False))
        wire.send(wire.call(5, request()))
        refused = wire.wait(5)
        assert (status(refused), reason(refused)) == (("200", "8"), "OPEN_CALLS")
        assert status(other.ask(1)) == ("200", "8")
        wire.close()
        again = iter(range(3, 1_000, 2))
        eventually("taken again", lambda: status(other.ask(next(again))) == ("200", "0"))
    no_defect(agent)


def status_as(listen: Path, *setpriv: str) -> str:
    """The status that a call of another user gets."""
    program = "import sys; from tests.abuse.wire import Wire; print(Wire(sys.argv[1]).ask(1).headers['grpc-status'])"
    return subprocess.run(
        ["setpriv", *setpriv, "--inh-caps=-all", sys.executable, "-c", program, str(listen)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.strip()


@pytest.mark.parametrize(
    ("groups", "code"),
    [
        (("--clear-groups",), "7"),
        ((f"--groups={GROUP - 1},{GROUP}",), "0"),
        ((f"--groups={GROUP - 1},{GROUP + 1}",), "7"),
    ],
    ids=["none", "member", "others"],
)
def test_a_supplementary_group_may_call(run_dir: Path, groups: tuple[str, ...], code: str) -> None:
    os.chown(run_dir, AGENT_UID, AGENT_UID)
    run_dir.chmod(0o755)
    options = ("--example-data", "--listen-mode=0666", f"--allow-gid={GROUP}")
    with running(run_dir, *options, under=under(AGENT_UID)) as agent:
        who = (f"--reuid={STRANGER_UID}", f"--regid={STRANGER_UID}", *groups)
        assert status_as(agent.listen, *who) == code
        assert status_as(agent.listen, f"--reuid={STRANGER_UID}", f"--regid={GROUP}", "--clear-groups") == "0"
    no_defect(agent)


def test_a_stop_says_so_to_everybody_and_answers_who_waits(run_dir: Path, connect: Connect) -> None:
    with running(run_dir, "--daemon=none", "--hold-timeout=60") as agent:
        idle = [connect(agent) for _ in range(20)]
        waiting = connect(agent)
        for stream in range(1, 21, 2):
            waiting.send(waiting.call(stream, request()))
        for wire in (*idle, waiting):
            wire.ping()
        assert not any(answer.ended for answer in waiting.answers.values())
        assert agent.stop() == 0
        for wire in (*idle, waiting):
            wire.wait_closed()
            assert (wire.closed, wire.goaway) == (True, ErrorCodes.NO_ERROR)
        answers: list[Any] = [waiting.answers[stream] for stream in range(1, 21, 2)]
        assert {(status(answer), answer.data) for answer in answers} == {(("200", "0"), message(b""))}
    no_defect(agent)
