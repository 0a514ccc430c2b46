"""What 1,023 devices cost: listing and watching them, and the longest that a call waits when their daemon dies.

make figures runs it: an agent with an external mapping, then one with a daemon without DPDK, which takes any number.
"""

import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc

from bench.figures import NO_RATE, spread
from tests.processes import ROOT, AgentProcess, eventually, mapping_text, running, write_atomically, write_list
from vdpa_agent.serve.pb import device_service_pb2 as pb

DEVICES: Final = 1_023
CALLS: Final = 100
CHANGES: Final = 5
WATCHERS: Final = 32
_SERVICE: Final = "/vdpa_agent.v1.DeviceService/"
_MIB: Final = 2**20


def addresses(count: int = DEVICES) -> list[str]:
    """Some PCI addresses."""
    return [f"0000:{0x40 + number // 256:02x}:{number // 8 % 32:02x}.{number % 8}" for number in range(count)]


def rss_mib(pid: int) -> float:
    """What a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / _MIB


def listing(agent: AgentProcess, devices: int, calls: int) -> dict[str, float]:
    """Lists all devices again and again on one connection; times in ms, memory in MiB."""
    before = rss_mib(agent.process.pid)
    took = []
    with grpc.insecure_channel(f"unix:{agent.listen}") as channel:
        call = channel.unary_unary(
            f"{_SERVICE}ListDevices",
            request_serializer=pb.ListDevicesRequest.SerializeToString,
            response_deserializer=bytes,  # what the client makes of it is not the agent's time
        )
        for number in range(calls):
            began = time.perf_counter()
            answer = call(pb.ListDevicesRequest())
            took.append(time.perf_counter() - began)
            assert number or len(pb.ListDevicesResponse.FromString(answer).devices) == devices
            time.sleep(0.02)
    return {**spread(took, 1000), "RSS before": round(before, 1), "after": round(rss_mib(agent.process.pid), 1)}


def watching(agent: AgentProcess, change: Callable[[int], None]) -> dict[str, float]:
    """Watches all devices on many streams while the mapping changes as a whole; times in ms, memory in MiB."""
    before = rss_mib(agent.process.pid)
    seen = [0] * WATCHERS
    with grpc.insecure_channel(f"unix:{agent.listen}") as channel:
        watch = channel.unary_stream(
            f"{_SERVICE}WatchDevices",
            request_serializer=pb.WatchDevicesRequest.SerializeToString,
            response_deserializer=bytes,
        )
        streams = [watch(pb.WatchDevicesRequest()) for _ in range(WATCHERS)]

        def read(number: int) -> None:
            try:
                for _ in streams[number]:
                    seen[number] += 1
            except grpc.RpcError:
                return  # cancelled below

        readers = [threading.Thread(target=read, args=(number,)) for number in range(WATCHERS)]
        for reader in readers:
            reader.start()
        eventually("the first states", lambda: min(seen) >= 1)
        took = []
        for number in range(1, CHANGES + 1):
            began = time.perf_counter()
            change(number)
            while min(seen) <= number:
                time.sleep(0.0005)
            took.append(time.perf_counter() - began)
        after = rss_mib(agent.process.pid)
        for stream in streams:
            stream.cancel()
        for reader in readers:
            reader.join()
    return {**spread(took, 1000), "RSS before": round(before, 1), "after": round(after, 1)}


def of_devices(devices: int, calls: int) -> dict[str, dict[str, float]]:
    """What listing and watching so many devices takes, on an agent of its own."""
    with tempfile.TemporaryDirectory(prefix="va-") as name:
        directory = Path(name)

        def change(number: int) -> None:
            sockets = {address: f"/var/run/vdpa/vhost/{number}-{n}" for n, address in enumerate(addresses(devices))}
            write_atomically(directory / "socketList.dat", mapping_text(sockets))

        change(0)
        with running(directory, NO_RATE) as agent:
            agent.wait_answer(addresses()[0], "/var/run/vdpa/vhost/0-0")
            return {
                f"ListDevices, {devices:,} devices, ms": listing(agent, devices, calls),
                f"WatchDevices, {devices:,} devices: all changed, {WATCHERS} watchers have it, ms": watching(
                    agent, change
                ),
            }


def losing(directory: Path) -> str:
    """Kills the daemon of all devices, and looks for the call that waited longest meanwhile."""
    write_list(directory / "pciList.dat", addresses())
    fake = ROOT / "tests" / "daemon" / "fake_vdpad.py"
    options = ("--simulate", f"--vdpad={fake}", "--hold-timeout=0", "--max-calls-per-second=1000000")
    with running(directory, *options) as agent:
        began = time.perf_counter()
        eventually("all devices", lambda: len(agent.log.named("device_ready")) >= DEVICES, timeout_s=120)
        served_s = time.perf_counter() - began
        waits = []
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        until = time.perf_counter() + 3
        while (now := time.perf_counter()) < until:
            agent.ask("0000:00:00.0")
            waits.append((time.perf_counter() - now) * 1000)
    return (
        f"all served {served_s:.1f} s after the start; longest call of {len(waits)} while the daemon died and"
        f" came back {max(waits):.0f} ms, p50 {statistics.median(waits):.2f} ms"
    )


def main() -> None:
    """Prints the figures."""
    for what, found in of_devices(DEVICES, CALLS).items():
        print(f"{what}: {found}")
    with tempfile.TemporaryDirectory() as name:
        print(f"{DEVICES} devices lose their daemon: {losing(Path(name))}")


if __name__ == "__main__":
    main()
