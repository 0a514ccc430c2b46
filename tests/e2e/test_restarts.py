"""What clients of the agent see over restarts of the agent, and front ends over restarts of the daemon."""

import os
import signal
import socket
import stat
import struct
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hpack import Decoder

from tests.e2e.conftest import FOUR
from tests.processes import PATIENCE_S, AgentProcess, eventually, front_end, running, write_list
from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

RESTARTS: Final = 100
CONNECTS: Final = 10_000
KILLED_EVERY: Final = 10
"""Every so many agents are killed and leave a stale socket; the others stop in order."""

DATA: Final = 0
HEADERS: Final = 1
END_STREAM: Final = 1

OUTCOMES: Final = {("0", "/var/run/vdpa/vhost/vdpa-0"): "answered", ("0", ""): "nothing promised"}

VHOST_GET_FEATURES: Final = 1
VHOST_GET_PROTOCOL_FEATURES: Final = 15
VHOST_GET_QUEUE_NUM: Final = 17


class Client(threading.Thread):
    """Connects, asks once and parts, again and again; counts what it saw."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.over = threading.Event()
        self._path = path
        self._request = _request("0000:82:00.2")

    def run(self) -> None:
        while not self.over.is_set():
            self._look()
            outcome = self._connect()
            self._look()
            self.seen[outcome] += 1
            if outcome != "answered":
                self.over.wait(0.001)  # as a client that tries again

    def wait_answered(self, count: int) -> None:
        eventually(f"{count} answers", lambda: self.seen["answered"] >= count)

    def _look(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return
        self.modes[stat.filemode(status.st_mode)] += 1

    def _connect(self) -> str:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(PATIENCE_S)
            try:
                connection.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                return type(error).__name__
            except OSError as error:
                return repr(error)
            try:
                connection.sendall(self._request)
                return _answer(connection)
            except (ConnectionResetError, BrokenPipeError):
                return "cut"
            except OSError as error:
                return repr(error)


def _request(address: str) -> bytes:
    """The bytes of a connection that asks one question."""
    h2 = H2Connection(H2Configuration(client_side=True))
    h2.initiate_connection()
    h2.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/vdpadpdk.VdpaDpdk/GetSocketpath"),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ],
    )
    message = GetSocketpathRequest(pciAddress=address).SerializeToString()
    h2.send_data(1, struct.pack(">BI", 0, len(message)) + message, end_stream=True)
    return bytes(h2.data_to_send())


def _answer(connection: socket.socket) -> str:
    """Reads frames until the answer's end; the connection's orderly end before it is a cut."""
    message = b""
    rest = b""
    headers = Decoder()
    while chunk := connection.recv(65536):
        rest += chunk
        while len(rest) >= 9 and len(rest) >= 9 + (size := int.from_bytes(rest[:3], "big")):
            kind, flags, payload, rest = rest[3], rest[4], rest[9 : 9 + size], rest[9 + size :]
            if kind == DATA:
                message += payload
            elif kind == HEADERS:
                fields = {str(name): str(value) for name, value in headers.decode(payload)}
                if flags & END_STREAM:
                    answer = GetSocketpathResponse.FromString(message[5:]).socketpath
                    outcome = (fields.get("grpc-status", ""), answer)
                    return OUTCOMES.get(outcome, repr(outcome))
    return "cut"


@pytest.mark.timeout(300)
def test_10000_connects_during_100_restarts_see_answers_or_a_closed_door(run_dir: Path) -> None:
    client = Client(run_dir / "vdpa.sock")
    try:
        for life in range(1, RESTARTS + 1):
            agent = AgentProcess(run_dir, ["--example-data", "--listen-mode=0666", "--log-level=warning"], {})
            if not client.is_alive():
                client.start()
            try:
                client.wait_answered(life * CONNECTS // RESTARTS)
                # Where an earlier one gave all the answers of this life, it does not even handle signals yet.
                assert agent.stop(signal.SIGKILL if life % KILLED_EVERY == 0 else signal.SIGTERM) in {0, -9, -15}
                assert not agent.log.named("not_json"), "".join(agent.log.raw)
            finally:
                agent.kill()
    finally:
        client.over.set()
        client.join()
    # One client has one connection at a time: each stop or kill meets at most one that it accepted. It is cut, or,
    # since an agent that stops promises no socket any more, answered with an empty path.
    assert client.seen["cut"] + client.seen["nothing promised"] <= RESTARTS
    assert set(client.seen) <= {"answered", "nothing promised", "cut", "FileNotFoundError", "ConnectionRefusedError"}
    assert client.seen["answered"] >= CONNECTS
    assert set(client.modes) == {"srw-rw-rw-"}


def _questions(connection: socket.socket) -> tuple[int, ...]:
    """What the back end of a vhost-user connection says of itself: features, protocol features, queues."""
    answers = []
    for request in (VHOST_GET_FEATURES, VHOST_GET_PROTOCOL_FEATURES, VHOST_GET_QUEUE_NUM):
        connection.sendall(struct.pack("=III", request, 1, 0))
        reply = connection.recv(20, socket.MSG_WAITALL)
        kind, _, size, value = struct.unpack("=IIIQ", reply)
        assert (kind, size) == (request, 8)
        answers.append(value)
    return tuple(answers)


def _back_ends(path: Path) -> Generator[socket.socket]:
    """Accepts one back end after the other at a front end's own socket."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(PATIENCE_S)
        while True:
            connection, _ = server.accept()
            connection.settimeout(PATIENCE_S)
            with connection:
                yield connection


def test_in_client_mode_a_killed_daemon_comes_back_the_same_and_packets_pass_again(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    (run_dir / "vhost").mkdir()
    write_list(run_dir / "pciList.dat", FOUR)
    back_ends = _back_ends(run_dir / "vhost" / "vdpa-1")
    with running(run_dir, *options, "--vhost-mode=client") as agent:
        agent.wait_logged("device_ready", count=4)
        socket_path = str(run_dir / "vhost" / "vdpa-0")
        with front_end(socket_path, "--server", "--rate=5000", "--interval=0.1", "--connect-timeout=20") as front:
            back_end = next(back_ends)
            facts = _questions(back_end)
            mapping = agent.socket_list.read_text()
            front.wait_passing()
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            assert back_end.recv(1) == b""
            back_end = next(back_ends)
            assert _questions(back_end) == facts
            eventually("the same mapping", lambda: _read(agent.socket_list) == mapping)
            eventually("packets again", lambda: front.lines.named("recovered"))
            counts = front.stop()
        back_ends.close()
    recovered_ms = front.lines.named("recovered")[0]["recovered_after_ms"]
    assert facts[0] != 0
    assert recovered_ms < PATIENCE_S * 1000
    assert (counts["corrupt"], counts["outages"]) == (0, 1)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
