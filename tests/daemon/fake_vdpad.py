#!/usr/bin/env python3
"""A daemon with faults on demand, which the real one does not give: it speaks vdpad's control protocol, and no DPDK.

FAKE_VDPAD names the fault: `deaf` (neither shutdown nor SIGTERM ends it), `mute` (never answers), `picky` (refuses its
first two device.add).
"""

import json
import os
import signal
import socket
import sys
from typing import Any


def main() -> None:
    fault = os.environ.get("FAKE_VDPAD", "")  # noqa: TID251 - there is no other way to hand it over
    options = dict(argument.lstrip("-").partition("=")[::2] for argument in sys.argv[1:])
    control = socket.socket(fileno=int(options["control-fd"]))
    if fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    refusals = 2 if fault == "picky" else 0
    mapping: dict[str, str] = {}
    for line in control.makefile():
        request: dict[str, Any] = json.loads(line)
        method, params = request["method"], request["params"]
        if fault == "mute":
            continue
        if method == "shutdown" and fault == "deaf":
            continue
        if method == "device.add" and refusals:
            refusals -= 1
            error = {"code": -32003, "message": f"{params['device']}: no such VF: bind it to vfio-pci"}
            _send(control, {"id": request["id"], "error": error})
            continue
        if method == "device.add":
            mapping[params["device"]] = params["socket"]
        if method == "device.remove":
            mapping.pop(params["device"], None)
        _write(options["socket-list"], mapping)
        _send(control, {"id": request["id"], "result": {}})
        if method == "shutdown":
            return
    while fault == "deaf":
        signal.pause()


def _write(path: str, mapping: dict[str, str]) -> None:
    entries = [{"pciAddress": address, "socketpath": socket_path} for address, socket_path in mapping.items()]
    with open(f"{path}.tmp", "w") as file:  # noqa: PTH123 - no pathlib: it starts faster without
        json.dump(entries, file)
    os.rename(f"{path}.tmp", path)  # noqa: PTH104


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


if __name__ == "__main__":
    main()
