"""A vdpad without an agent, and front ends that speak vhost-user to it, well or badly."""

import array
import json
import mmap
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from tests.processes import PATIENCE_S, built, eventually

DEVICES: Final = ("0000:82:00.2", "0000:82:00.3")
TWO: Final = MappingProxyType(dict.fromkeys(DEVICES, ""))

GET_FEATURES: Final = 1
SET_FEATURES: Final = 2
SET_OWNER: Final = 3
RESET_OWNER: Final = 4
SET_MEM_TABLE: Final = 5
SET_VRING_NUM: Final = 8
SET_VRING_ADDR: Final = 9
SET_VRING_BASE: Final = 10
GET_VRING_BASE: Final = 11
SET_VRING_KICK: Final = 12
SET_VRING_CALL: Final = 13
SET_VRING_ENABLE: Final = 18
GET_INFLIGHT_FD: Final = 31
SET_INFLIGHT_FD: Final = 32

NEED_REPLY: Final = 8
VIRTIO: Final = 1 << 32 | 1 << 15 | 1 << 30
"""VERSION_1, MRG_RXBUF, and the protocol features that make rings start disabled."""

USER_ADDRESS: Final = 0x7F00_0000_0000
MEMORY_BYTES: Final = 1 << 20


class Vdpad:
    """A running `vdpad` with software devices, spoken to by its control end."""

    def __init__(
        self,
        directory: Path,
        build: str,
        *options: str,
        devices: Mapping[str, str] = TWO,
        environment: Sequence[str] = (),
        inside: Sequence[str] = (),
    ) -> None:
        """Starts it with further options and adds the devices, each with its device arguments.

        Args:
            directory: where its sockets are.
            build: which build.
            options: further ones.
            devices: the devices, each with its device arguments.
            environment: what its environment has besides, each as `NAME=value`.
            inside: a command that runs it, such as one that enters a namespace.
        """
        self.directory = directory
        self._numbers = {address: number for number, address in enumerate(devices)}
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    *("env", *environment, *inside),
                    str(built(f"{build}/vdpad/vdpad", build)),
                    *("--simulate", "--memory=none", "--log-level=info", *options),
                    f"--control-fd={theirs.fileno()}",
                    f"--socket-dir={directory}",
                    f"--socket-list={directory / 'socketList.dat'}",
                ],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._control = ours
        self._control.settimeout(PATIENCE_S)
        self._lines = ours.makefile("r")
        self._id = 0
        for address, devargs in devices.items():
            self.add(address, devargs)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            self.log.extend(self.process.stderr)

    def socket(self, address: str) -> Path:
        """The socket of a device."""
        return self.directory / f"vdpa-{self._numbers[address]}"

    def add(self, address: str, devargs: str = "") -> None:
        """Adds a device."""
        self.call("device.add", device=address, devargs=devargs, socket=str(self.socket(address)))

    def stats(self, address: str, name: str, *, receiving: bool) -> int:
        """A counter of a device, over all of its RX or all of its TX queues."""
        queues = self.call("device.stats", device=address)["queues"]
        return sum(queue["stats"].get(name, 0) for queue in queues if (queue["queue"] % 2 == 0) is receiving)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a request."""
        reply = self.request(method, **params)
        assert "result" in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a request; notifications that come before it are dropped."""
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        self._control.sendall(json.dumps(request).encode() + b"\n")
        while True:
            reply: dict[str, Any] = json.loads(self._lines.readline())
            if reply.get("id") == self._id:
                return reply

    def device(self, address: str) -> dict[str, Any]:
        """What `device.list` says of a device."""
        found: dict[str, Any] = next(d for d in self.call("device.list")["devices"] if d["device"] == address)
        return found

    def refusals(self, address: str) -> dict[str, int]:
        """How many front ends of a device were refused, by reason."""
        counts: dict[str, int] = self.device(address).get("refusals", {})
        return counts

    def descriptors(self) -> int:
        """How many descriptors the process has."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def rss_kib(self) -> int:
        """What it has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def send_packets(self, address: str) -> None:
        """A well-behaved front end gets its packets through; its time is limited by patience alone."""
        subprocess.run(
            [
                str(built("native/frontend/vdpa-front", "native")),
                *(f"--path={self.socket(address)}", "--memory=none", "--packets=100", "--connect-timeout=10"),
            ],
            check=True,
            capture_output=True,
            timeout=3 * PATIENCE_S,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                if error is None:
                    self.call("shutdown")
                else:
                    self.process.kill()
            code = self.process.wait(PATIENCE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(PATIENCE_S)
            self._lines.close()
            self._control.close()
        assert error is not None or code == 0, "".join(self.log[-40:])


class FrontEnd:
    """One connection, by which any message can be sent."""

    def __init__(self, path: Path) -> None:
        """Connects."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))  # waits for its turn, as with a time-out it would not
        self._socket.settimeout(PATIENCE_S)
        self.memory = -1
        self._events: list[int] = []

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 1) -> None:
        """Sends one message. What the other end has closed is no error."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([struct.pack("<III", request, flags, len(payload)) + payload], rights)
        except (BrokenPipeError, ConnectionResetError):
            return

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends what may be no message at all."""
        assert socket.send_fds(self._socket, [data], fds) == len(data)

    def flood(self, data: bytes) -> None:
        """Sends the same again and again, until the other end takes no more."""
        flood(self._socket, data)
        self._socket.settimeout(PATIENCE_S)

    def reply(self) -> bytes:
        """The payload of one reply."""
        size = struct.unpack("<III", self._receive(12))[2]
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            assert part, "the connection has ended"
            data += part
        return data

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Sends a message and returns the answer to it."""
        self.send(request, payload, fds, flags=1 | NEED_REPLY)
        return self.reply()

    def ended(self) -> bool:
        """Waits until the other end closes the connection."""
        try:
            while self._socket.recv(4096):
                pass
        except ConnectionResetError:
            return True
        return True

    def finish(self) -> None:
        """Waits until everything that was sent has been looked at, or the connection has ended."""
        self.send(SET_OWNER, flags=1 | NEED_REPLY)
        try:
            while part := self._socket.recv(4096):
                if part.endswith(struct.pack("<IIIQ", SET_OWNER, 5, 8, 0)):
                    return
        except ConnectionResetError:
            return

    def share(self, size: int = MEMORY_BYTES) -> None:
        """Negotiates, and shares one region of memory."""
        self.send(SET_OWNER)
        self.send(SET_FEATURES, struct.pack("<Q", VIRTIO))
        self.memory = os.memfd_create("guest")
        os.ftruncate(self.memory, size)
        self.send(SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, size, USER_ADDRESS, 0), [self.memory])

    def start_rings(self, count: int = 2) -> None:
        """Sets up rings in the shared memory, and starts them."""
        for ring in range(count):
            at = USER_ADDRESS + 0x10000 * (ring + 1)
            kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
            self._events += [kick, call]
            self.send(SET_VRING_NUM, struct.pack("<II", ring, 256))
            self.send(SET_VRING_BASE, struct.pack("<II", ring, 0))
            self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", ring, 0, at, at + 0x4000, at + 0x2000, 0))
            self.send(SET_VRING_CALL, struct.pack("<Q", ring), [call])
            self.send(SET_VRING_KICK, struct.pack("<Q", ring), [kick])
            self.send(SET_VRING_ENABLE, struct.pack("<II", ring, 1))

    def enable(self, ring: int, *, on: bool) -> None:
        """Enables or disables a ring that was started."""
        self.send(SET_VRING_ENABLE, struct.pack("<II", ring, int(on)))

    def stop_rings(self, count: int = 2) -> None:
        """Stops rings, as a driver that is unbound does; the memory stays shared."""
        for ring in range(count):
            self.ask(GET_VRING_BASE, struct.pack("<II", ring, 0))

    def offer_descriptor(self) -> None:
        """Makes a packet of the second ring available, and kicks both rings."""
        with mmap.mmap(self.memory, MEMORY_BYTES) as memory:
            struct.pack_into("<QIHH", memory, 0x20000, 0x80000, 100, 0, 0)
            struct.pack_into("<HHH", memory, 0x22000, 0, 1, 0)
        self.kick()

    def kick(self) -> None:
        """Kicks all rings."""
        for event in self._events[::2]:
            os.eventfd_write(event, 1)

    def close(self) -> None:
        """Closes the connection and everything that was passed."""
        self._socket.close()
        for fd in (*self._events, *((self.memory,) if self.memory >= 0 else ())):
            os.close(fd)
        self._events, self.memory = [], -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def flood(connection: socket.socket, data: bytes) -> None:
    """Sends the same again and again without waiting, until no more is taken."""
    connection.settimeout(0)
    try:
        while True:
            connection.send(data)
    except BlockingIOError:
        return


def settled(what: str, condition: Any) -> None:
    """Waits for a condition."""
    eventually(what, lambda: condition() or None)


def timed(call: Any) -> float:
    """How long a call takes, in seconds."""
    start = time.monotonic()
    call()
    return time.monotonic() - start
