#!/usr/bin/env python3
"""A daemon with faults on demand, which the real one does not give: it speaks vdpad's control protocol, and no DPDK.

FAKE_VDPAD names the faults, joined by commas: `deaf` (neither shutdown nor SIGTERM ends it), `mute` (never answers),
`picky` (refuses its first two device.add), `parent` (has three children that ignore SIGTERM), `burst` (prints 200 MB
and how long that took), `runaway` (leaves a process in a session of its own, whose child is in another), `orphans`
(leaves 1,000 that end at once), `chatty` (prints for ever), `aloof` (closes its control channel, and lives on),
`flood` (notifies of front ends that come and go for ever, once it has a device), `silent:METHOD` (never answers that,
of its first device), `does:METHOD` (does it all the same), `no-socket` (makes none), `no-file` (does not say which file
a socket is), `one-file` (makes the second device's socket a link to the first one's), `datagram` (makes sockets of
another type), `other-mode` (says that it runs in another vhost mode).
FAKE_ANSWERS is a JSON object of lines to answer by method, in place of what is right; `@id` in them is the request's,
`@file` the file of a socket that is made then.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any


def main() -> None:
    faults = set(os.environ.get("FAKE_VDPAD", "").split(","))  # noqa: TID251 - there is no other way to hand it over
    options = dict(argument.lstrip("-").partition("=")[::2] for argument in sys.argv[1:])
    control = socket.socket(fileno=int(options["control-fd"]))
    _misbehave(faults)
    if "aloof" in faults:
        control.close()
        signal.pause()
    daemon = Daemon(faults, options.get("socket-list"))
    lines: dict[str, str] = json.loads(os.environ.get("FAKE_ANSWERS", "{}"))  # noqa: TID251 - as above
    for line in control.makefile():
        request: dict[str, Any] = json.loads(line)
        if request["method"] in lines:
            said = lines[request["method"]].replace("@id", str(request["id"]))
            if "@file" in said:
                said = said.replace("@file", daemon.open(request["params"]["device"], request["params"]["socket"]))
            control.sendall(said.encode() + b"\n")
            continue
        reply = daemon.answer(request["method"], request["params"])
        if reply is not None:
            control.sendall(json.dumps({"jsonrpc": "2.0", "id": request["id"], **reply}).encode() + b"\n")
        if "flood" in faults and request["method"] == "device.add":
            threading.Thread(target=_flood, args=(control, request["params"]["device"]), daemon=True).start()
        if reply is not None and request["method"] == "shutdown":
            return
    while "deaf" in faults:
        signal.pause()


def _misbehave(faults: set[str]) -> None:
    if "deaf" in faults:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(3 if "parent" in faults else 0):
        subprocess.Popen(["sh", "-c", "trap '' TERM; exec sleep 60"])
    for fault, act in {"burst": _burst, "chatty": _chat}.items():
        if fault in faults:
            threading.Thread(target=act, daemon=True).start()
    if "runaway" in faults:
        subprocess.Popen(["sh", "-c", "setsid sh -c 'setsid sleep 61 & exec sleep 62' & exit 0"]).wait()
    if "orphans" in faults:
        _leave_orphans()


class Daemon:
    def __init__(self, faults: set[str], socket_list: str | None) -> None:
        self._faults = faults
        self._socket_list = socket_list
        self._refusals = 2 if "picky" in faults else 0
        self._mapping: dict[str, str] = {}
        self._first = ""
        self._sockets: dict[str, socket.socket] = {}

    def answer(self, method: str, params: dict[str, str]) -> dict[str, Any] | None:
        if "mute" in self._faults or (method == "shutdown" and "deaf" in self._faults):
            return None
        self._first = self._first or params.get("device", "")
        if f"silent:{method}" in self._faults and params.get("device", "first") == (self._first or "first"):
            if f"does:{method}" in self._faults:
                self._do(method, params)
            return None
        return self._do(method, params)

    def _do(self, method: str, params: dict[str, str]) -> dict[str, Any]:
        if method == "version":
            mode = {"vhost_mode": "client"} if "other-mode" in self._faults else {}
            return {"result": {"version": "0", "protocol": 2, **mode}}
        result: dict[str, str] = {}
        if method == "device.add" and self._refusals:
            self._refusals -= 1
            return {"error": {"code": -32003, "message": f"{params['device']}: no such VF: bind it to vfio-pci"}}
        if method == "device.add":
            self._mapping[params["device"]] = params["socket"]
            result = {"socket_file": self.open(params["device"], params["socket"])}
            if "no-file" in self._faults:
                result = {}
        elif method == "device.remove":
            if self._mapping.pop(params["device"], None) is None:
                return {"error": {"code": -32001, "message": f"no device {params['device']}"}}
            if params["device"] in self._sockets:
                self._sockets.pop(params["device"]).close()
        self._write()
        return {"result": result}

    def open(self, device: str, path: str) -> str:
        """Makes a device's socket; returns which file it is."""
        first = next(iter(self._mapping.values()), path)
        if "no-socket" in self._faults:
            return "1:2"
        if "one-file" in self._faults and path != first:
            os.link(first, path)
        else:
            kind = socket.SOCK_DGRAM if "datagram" in self._faults else socket.SOCK_STREAM
            self._sockets[device] = _listen(path, kind)
        found = os.stat(path)  # noqa: PTH116
        return f"{found.st_dev}:{found.st_ino}"

    def _write(self) -> None:
        entries = [{"pciAddress": address, "socketpath": path} for address, path in self._mapping.items()]
        if self._socket_list is None:
            return
        with open(f"{self._socket_list}.tmp", "w") as file:  # noqa: PTH123 - no pathlib: it starts faster without
            json.dump(entries, file)
        os.rename(f"{self._socket_list}.tmp", self._socket_list)  # noqa: PTH104


def _flood(control: socket.socket, device: str) -> None:
    lines = b"".join(
        b'{"jsonrpc":"2.0","method":"device.%s","params":{"device":"%s"}}\n' % (word, device.encode())
        for word in (b"connected", b"disconnected")
    )
    while True:
        control.sendall(lines * 100)


def _burst() -> None:
    began = time.monotonic()
    lines = b"info: a line that is printed over and over again, as fast as it can\n" * 1000
    for _ in range(200_000_000 // len(lines) + 1):
        os.write(2, lines)
    os.write(2, f"warning: the burst took {time.monotonic() - began:.3f} s\n".encode())


def _leave_orphans() -> None:
    """They end together, when the pipe that they read is closed, as orphans."""
    read_end, write_end = os.pipe()
    if (between := os.fork()) == 0:
        for _ in range(1000):
            if os.fork() == 0:
                os.close(write_end)
                os.read(read_end, 1)
                os._exit(0)
        os._exit(0)
    os.waitpid(between, 0)
    os.close(write_end)


def _chat() -> None:
    for number in itertools.count():
        os.write(2, f"info: line {number}\n".encode())


def _listen(path: str, kind: socket.SocketKind) -> socket.socket:
    if os.path.exists(path):  # noqa: PTH110
        os.unlink(path)  # noqa: PTH108
    listening = socket.socket(socket.AF_UNIX, kind)
    listening.bind(path)
    if kind is socket.SOCK_STREAM:
        listening.listen()
    return listening


if __name__ == "__main__":
    main()
