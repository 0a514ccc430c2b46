"""What a hostile or broken front end of one VF does to the others: nothing."""

import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.e2e.front_ends import (
    DEVICES,
    GET_FEATURES,
    GET_INFLIGHT_FD,
    MEMORY_BYTES,
    RESET_OWNER,
    SET_FEATURES,
    SET_INFLIGHT_FD,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_VRING_CALL,
    SET_VRING_NUM,
    USER_ADDRESS,
    FrontEnd,
    Vdpad,
    flood,
    settled,
    timed,
)
from tests.e2e.fuzz_front_ends import converse

HOSTILE, NEIGHBOUR = DEVICES

AT_ONCE_S = 10.0
"""More than any answer takes on a machine that is loaded; a wait for a front end would have no end."""


@pytest.fixture(params=["native", "native-sanitized"])
def vdpad(run_dir: Path, request: pytest.FixtureRequest) -> Iterator[Vdpad]:
    with Vdpad(run_dir, request.param) as running:
        yield running


def configured(vdpad: Vdpad, address: str) -> Callable[[], bool]:
    return lambda: bool(vdpad.device(address)["configured"])


@pytest.mark.parametrize("part", range(1, 20))
def test_part_of_a_message_keeps_nobody_waiting(run_dir: Path, part: int) -> None:
    message = struct.pack("<IIIQ", SET_FEATURES, 1, 8, 0)
    with Vdpad(run_dir, "native") as vdpad, FrontEnd(vdpad.socket(HOSTILE)) as front:
        front.send(SET_OWNER)
        front.send_bytes(message[:part])
        with FrontEnd(vdpad.socket(NEIGHBOUR)) as other:
            assert struct.unpack("<Q", other.ask(GET_FEATURES))[0] >> 32 & 1
        # Neither does the device's own removal.
        assert timed(lambda: vdpad.call("device.remove", device=HOSTILE)) < AT_ONCE_S
        assert front.ended()


def test_unread_replies_keep_nobody_waiting(vdpad: Vdpad) -> None:
    with FrontEnd(vdpad.socket(HOSTILE)) as front:
        front.flood(struct.pack("<III", GET_FEATURES, 1, 0))
        vdpad.send_packets(NEIGHBOUR)
        assert timed(lambda: vdpad.call("device.remove", device=HOSTILE)) < AT_ONCE_S


def test_a_crowd_at_one_socket_is_alone(vdpad: Vdpad) -> None:
    crowd = [FrontEnd(vdpad.socket(HOSTILE)) for _ in range(1200)]
    vdpad.send_packets(NEIGHBOUR)
    settled("the crowd is thinned", lambda: vdpad.descriptors() < 60)
    for front in crowd:
        front.close()
    vdpad.send_packets(HOSTILE)
    # Drawn together.
    assert sum("too many connections" in line for line in vdpad.log) < 5


@pytest.mark.parametrize("when", ["before the rings", "while served", "while served, with kicks"])
def test_truncated_memory_costs_its_front_end_alone(vdpad: Vdpad, when: str) -> None:
    with FrontEnd(vdpad.socket(NEIGHBOUR)) as other:
        other.share()
        other.start_rings()
        settled("the neighbour is served", configured(vdpad, NEIGHBOUR))
        for _ in range(5):
            with FrontEnd(vdpad.socket(HOSTILE)) as front:
                front.share()
                # The answer comes after the table has been taken.
                front.ask(SET_OWNER)
                if when == "before the rings":
                    os.ftruncate(front.memory, 0)
                    front.start_rings()
                else:
                    front.start_rings()
                    settled("it is served", configured(vdpad, HOSTILE))
                    os.ftruncate(front.memory, 0)
                    for _ in range(3 if when.endswith("kicks") else 1):
                        front.kick()
                assert front.ended()
        assert vdpad.refusals(HOSTILE)["truncated"] == 5
        assert configured(vdpad, NEIGHBOUR)()
        assert other.ask(SET_OWNER) == bytes(8)
    vdpad.send_packets(HOSTILE)


def inflight(size: int, queues: int, length: int) -> bytes:
    return struct.pack("<QQHHI", size, 0, queues, length, 0)


def test_requests_that_no_device_offered(vdpad: Vdpad) -> None:
    event = os.eventfd(0)
    file = os.memfd_create("file")
    os.ftruncate(file, 4096)
    rss = vdpad.rss_kib()
    for request, payload, fds in (
        (GET_INFLIGHT_FD, inflight(0, 16384, 4096), []),
        (GET_INFLIGHT_FD, inflight(0, 65535, 65535), []),
        (SET_INFLIGHT_FD, inflight(4096, 8, 65535), [file]),
        (RESET_OWNER, b"", []),
    ):
        for _ in range(20):
            with FrontEnd(vdpad.socket(HOSTILE)) as front:
                front.share()
                front.send(SET_VRING_CALL, struct.pack("<Q", 0), [event])
                front.send(SET_VRING_NUM, struct.pack("<II", 0, 256))
                front.send(request, payload, fds)
                assert front.ended()
    os.close(event)
    os.close(file)
    assert vdpad.refusals(HOSTILE) == {"request": 80}
    assert vdpad.rss_kib() - rss < 8 * 1024
    vdpad.send_packets(NEIGHBOUR)


def table(*regions: tuple[int, int, int, int]) -> bytes:
    return struct.pack("<II", len(regions), 0) + b"".join(struct.pack("<QQQQ", *region) for region in regions)


def test_bad_tables_of_memory_leave_no_descriptor(vdpad: Vdpad) -> None:
    file = os.memfd_create("file")
    os.ftruncate(file, MEMORY_BYTES)
    event = os.eventfd(0)
    before = vdpad.descriptors()
    for payload, fds in (
        (table((0, 4096, USER_ADDRESS, 2**64 - 4096)), [file]),
        (table((0, MEMORY_BYTES, USER_ADDRESS, 0), (MEMORY_BYTES, 4096, 0, MEMORY_BYTES)), [file, file]),
        (table((0, MEMORY_BYTES, USER_ADDRESS, 0), (4096, 4096, 0, 0)), [file, file]),
        (table((0, 4096, USER_ADDRESS, 0)), [event]),
        (table(*[(i * 4096, 4096, i * 4096, 0) for i in range(9)]), [file] * 9),
    ):
        for _ in range(20):
            with FrontEnd(vdpad.socket(HOSTILE)) as front:
                front.send(SET_MEM_TABLE, payload, fds)
                assert front.ended()
    os.close(file)
    os.close(event)
    settled("no descriptor is left", lambda: vdpad.descriptors() <= before)


def reconnect(vdpad: Vdpad) -> None:
    with FrontEnd(vdpad.socket(HOSTILE)) as front:
        front.share()
        front.start_rings()
        settled("it is served", configured(vdpad, HOSTILE))
    settled("it is gone", lambda: not vdpad.device(HOSTILE)["connected"])


@pytest.mark.parametrize("running", [True, False], ids=["with rings", "before rings"])
def test_memory_that_cannot_be_mapped_is_refused(vdpad: Vdpad, running: bool) -> None:  # noqa: FBT001 - a parameter
    """DPDK would forget what it had, and the descriptor, and set the device up without memory."""
    before = vdpad.descriptors()
    for count, size in ((1, 1 << 47), (8, 1 << 46), (8, 1 << 39)):
        with FrontEnd(vdpad.socket(HOSTILE)) as front:
            if running:
                front.share()
                front.start_rings()
                settled("it is served", configured(vdpad, HOSTILE))
            else:
                front.send(SET_OWNER)
            sparse = [os.memfd_create("sparse") for _ in range(count)]
            for fd in sparse:
                os.ftruncate(fd, size)
            regions = (struct.pack("<QQQQ", number * size, size, number * size, 0) for number in range(count))
            front.send(SET_MEM_TABLE, struct.pack("<II", count, 0) + b"".join(regions), sparse)
            for fd in sparse:
                os.close(fd)
            assert front.ended()
    vdpad.send_packets(NEIGHBOUR)
    vdpad.send_packets(HOSTILE)
    settled("no descriptor is left", lambda: vdpad.descriptors() <= before)
    refusals = vdpad.device(HOSTILE)["refusals"]
    assert refusals == {"memory": 3}


def test_memory_that_the_kernel_has_no_room_for_is_refused(vdpad: Vdpad) -> None:
    """Far less than a front end may share, of a process that may map no more."""
    before, pid = vdpad.descriptors(), vdpad.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    with FrontEnd(vdpad.socket(HOSTILE)) as front:
        front.share()
        front.start_rings()
        settled("it is served", configured(vdpad, HOSTILE))
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), hard))
        memory = os.memfd_create("large")
        os.ftruncate(memory, 1 << 30)
        front.send(SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 1 << 30, 0, 0), [memory])
        os.close(memory)
        assert front.ended()
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
    vdpad.send_packets(NEIGHBOUR)
    vdpad.send_packets(HOSTILE)
    settled("no descriptor is left", lambda: vdpad.descriptors() <= before)
    assert vdpad.device(HOSTILE)["refusals"] == {"memory": 1}


@pytest.mark.parametrize("build", ["native", "native-sanitized"])
def test_reconnects_without_end_leave_nothing(run_dir: Path, build: str) -> None:
    """ASan holds back what was freed, 256 MiB of it by default, which is no growth of vdpad."""
    holding_back = "ASAN_OPTIONS=quarantine_size_mb=1:thread_local_quarantine_size_kb=64"
    with Vdpad(run_dir, build, environment=[holding_back]) as vdpad:
        for _ in range(20):
            reconnect(vdpad)
        before, rss = vdpad.descriptors(), vdpad.rss_kib()
        for _ in range(60):
            reconnect(vdpad)
        settled("no descriptor is left", lambda: vdpad.descriptors() <= before)
        assert vdpad.rss_kib() - rss < 8 * 1024


def lingering() -> tuple[socket.socket, socket.socket]:
    """A TCP connection on the loopback whose last close waits, because nobody reads what was sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far = server.accept()[0]
    flood(near, bytes(65536))
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    return near, far


def reset(far: socket.socket) -> None:
    """Ends a connection at once, and with it the wait of the other end's close."""
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


def test_a_descriptor_whose_close_waits_keeps_nobody_waiting(vdpad: Vdpad) -> None:
    ends = []
    for _ in range(6):
        near, far = lingering()
        ends.append(far)
        with FrontEnd(vdpad.socket(HOSTILE)) as front:
            # The last byte comes when only vdpad has the descriptor.
            head = struct.pack("<III", SET_OWNER, 1, 0)
            front.send_bytes(head[:11], [near.fileno()])
            near.close()
            front.send_bytes(head[11:])
        with FrontEnd(vdpad.socket(NEIGHBOUR)) as other:
            other.ask(GET_FEATURES)
    assert timed(lambda: vdpad.call("device.remove", device=HOSTILE)) < AT_ONCE_S
    vdpad.send_packets(NEIGHBOUR)
    for far in ends:
        reset(far)


def test_conversations_of_chance(run_dir: Path) -> None:
    """From a fixed seed; `python -m tests.e2e.fuzz_front_ends` goes on with others."""
    with Vdpad(run_dir, "native-sanitized") as vdpad:
        assert converse(vdpad, seed=1, seconds=60, conversations=150) == 150


def messages(data: bytes) -> list[bytes]:
    """What was sent, cut where a message ends; the last piece may be a part of one."""
    pieces = []
    while data:
        end = 12 + struct.unpack_from("<I", data, 8)[0] if len(data) >= 12 else len(data)
        pieces.append(data[:end])
        data = data[end:]
    return pieces


def replay(front: FrontEnd, kinds: int, data: bytes, memory: int, stream: int) -> list[socket.socket]:
    """Sends a file of the corpus; returns the other ends of the connections that linger.

    `kinds`, byte 0 of the file, is that of native/tests/fuzz/fuzz_vhost_user.c.
    """
    far_ends = []
    for number, message in enumerate(messages(data)):
        count = 0 if number == 0 and kinds & 64 else min(kinds & 15, 8)
        passed = [stream if kinds & 16 else memory] * count
        with suppress(BrokenPipeError, ConnectionResetError), ExitStack() as near_ends:
            if kinds & 32:
                pairs = [lingering() for _ in range(count)]
                far_ends += [far for _, far in pairs]
                passed = [near_ends.enter_context(near).fileno() for near, _ in pairs]
            front.send_bytes(message[:-1], passed)
            # Now only vdpad has those that linger.
            near_ends.close()
            front.send_bytes(message[-1:])
    return far_ends


def test_the_corpus_hurts_only_itself(run_dir: Path) -> None:
    """Each file of the fuzzer of vhost-user, with the descriptors that it names, of which some wait in close()."""
    corpus = sorted((Path(__file__).parents[2] / "native/tests/fuzz/corpus/vhost_user").iterdir())
    assert len(corpus) > 40
    memory = os.memfd_create("corpus")
    os.ftruncate(memory, 1 << 20)
    ends = socket.socketpair()
    lingered = 0
    with Vdpad(run_dir, "native-sanitized") as vdpad, FrontEnd(vdpad.socket(NEIGHBOUR)) as other:
        other.share()
        other.start_rings()
        settled("the neighbour is served", configured(vdpad, NEIGHBOUR))
        before = vdpad.descriptors()
        for path in corpus:
            kinds, data = path.read_bytes()[0], path.read_bytes()[1:]
            with FrontEnd(vdpad.socket(HOSTILE)) as front:
                far_ends = replay(front, kinds, data, memory, ends[0].fileno())
                front.finish()
            assert other.ask(SET_OWNER) == bytes(8), path.name
            lingered += len(far_ends)
            for far in far_ends:
                reset(far)
        settled("the hostile ones are gone", lambda: not vdpad.device(HOSTILE)["connected"])
        settled("no descriptor is left", lambda: vdpad.descriptors() <= before)
        assert lingered >= 12
        refusals = vdpad.refusals(HOSTILE)
        assert {"request", "form", "descriptors", "memory", "ring"} <= set(refusals)
        assert configured(vdpad, NEIGHBOUR)()
    os.close(memory)
    for end in ends:
        end.close()
