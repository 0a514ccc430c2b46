"""The demo: from a list of VFs to packets through the socket that gRPC named, on simulated VFs, in plain words."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from vdpa_agent.serve.pb.vdpadpdk_pb2 import GetSocketpathRequest, GetSocketpathResponse

ROOT: Final = Path(__file__).parent.parent
VDPAD: Final = ROOT / "build" / "native" / "vdpad" / "vdpad"
FRONT: Final = ROOT / "build" / "native" / "frontend" / "vdpa-front"
AGENT: Final = (sys.executable, "-m", "vdpa_agent")
FOUR: Final = tuple(f"0000:82:00.{function}" for function in range(2, 6))
FIFTH: Final = "0000:82:00.6"
PATIENCE_S: Final = 20.0


class Failed(Exception):
    """A step did not do what it should."""


def main() -> int:
    """Runs the demo; returns 0 if every step did what it should."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="vdpa-demo-") as directory:
            steps(Path(directory))
    except Failed as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - started:.1f} s: every step did what it should.")
    return 0


def steps(directory: Path) -> None:
    """All steps, in order."""
    say("A device plugin writes the list of VFs", "four simulated VFs, no NIC and no hugepages needed")
    pci_list = directory / "pciList.dat"
    pci_list.write_text("".join(f"{address}\n" for address in FOUR))
    show(pci_list.read_text())

    say("The agent starts: it runs the DPDK daemon and answers gRPC", f"everything is below {directory}")
    with agent(directory) as process:
        began = time.monotonic()
        require(all(ask(directory, address) for address in FOUR), "a question was answered with nothing")
        print(f"    asked at once, answered {time.monotonic() - began:.2f} s after the spawn, when all were ready")

        say("The daemon opened one vhost-user socket per VF and wrote the mapping", "socketList.dat")
        show((directory / "socketList.dat").read_text())

        say(
            "A user asks with the CLI",
            "vdpa-agent get 0000:82:00.4 0000:87:00.5 (the second is no device of this node)",
        )
        show(cli(directory, "get", FOUR[2], "0000:87:00.5", expect=4))

        say("A tool that has never heard of the API asks by reflection", "as grpcurl does: list, describe, call")
        socket = ask_by_reflection(directory, FOUR[2])
        require(socket.endswith("vdpa-2"), f"reflection named {socket}")

        say(
            "A real DPDK front end (virtio-user) connects to the socket that gRPC named",
            f"{socket}: this VF gives back what it is sent",
        )
        with front_end(socket, "--rate=20000") as front:
            packets = front.counted(1.5)
            print(f"    {packets['sent']} packets sent, {packets['received']} received back so far")

            say("A fifth VF is added to the list while the packets go on", FIFTH)
            began = time.monotonic()
            replace(pci_list, "".join(f"{address}\n" for address in (*FOUR, FIFTH)))
            wait("the fifth device", lambda: ask(directory, FIFTH))
            print(f"    served after {(time.monotonic() - began) * 1000:.0f} ms")
            show(cli(directory, "list"))
            packets = front.end()
        print(
            f"    {packets['sent']} sent, {packets['received']} received, {packets['lost']} lost,"
            f" longest pause {packets['longest_silence_ms']} ms"
        )
        require(packets["sent"] == packets["received"] > 0, "packets were lost")

        exchange(directory)

        say("The daemon is killed with kill -9", "its sockets are dead: a question waits until they are back")
        os.kill(daemon_of(process.pid), signal.SIGKILL)
        wait("the loss of the mapping", lambda: not (directory / "socketList.dat").exists())
        began = time.monotonic()
        answers = [ask(directory, address) for address in (*FOUR, FIFTH)]
        print(f"    all five were answered after {time.monotonic() - began:.2f} s, by process {daemon_of(process.pid)}")
        require(all(answers), "a question was answered with nothing")
        require(ask(directory, FOUR[2]) == socket, "the socket has another name")
        with front_end(socket, "--rate=20000") as front:
            front.counted(0.5)
            packets = front.end()
        print(f"    and packets pass again: {packets['sent']} sent, {packets['received']} received")
        require(packets["sent"] == packets["received"] > 0, "packets were lost after the restart")

        say("SIGTERM: the agent stops in order", "daemon first, then its own socket")
    left = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    print(f"    files left: {', '.join(left)}")
    require(not any("vhost/" in path or path == "vdpa.sock" for path in left), "a socket was left behind")


def exchange(directory: Path) -> None:
    """Two front ends on two VFs send packets to each other."""
    say(
        "Two front ends on two VFs exchange packets",
        f"{FOUR[0]} and {FOUR[1]} are ports of one switch, as the VFs of one PF are",
    )
    there = "02:00:00:00:00:03"
    with (
        front_end(ask(directory, FOUR[1]), "--mode=echo", f"--mac={there}") as echo,
        front_end(ask(directory, FOUR[3]), "--mode=listen") as bystander,
    ):
        echo.connected()
        bystander.connected()
        with front_end(ask(directory, FOUR[0]), f"--to={there}", "--rate=1000") as front:
            front.counted(0.5)
            packets = front.end()
        answered, overheard = echo.end()["foreign"], bystander.end()["foreign"]
    print(
        f"    {packets['sent']} packets sent to {there}, {answered} arrived there, {packets['received']} came back;"
        f" a third VF heard {overheard}, sent before the switch knew the address"
    )
    require(packets["sent"] == packets["received"] == answered > 0, "packets between two VFs were lost")
    require(overheard < answered, "the switch did not learn")


@contextmanager
def agent(directory: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """An agent on simulated VFs; its log goes to a file that is shown if something fails."""
    log = directory / "agent.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(*AGENT, "run", "--simulate", "--memory=none", f"--vdpad={VDPAD}"),
                *("--simulate-network=switch", f"--devargs={FOUR[2]}=network=loopback"),
                f"--listen={directory / 'vdpa.sock'}",
                f"--socket-list={directory / 'socketList.dat'}",
                f"--pci-list={directory / 'pciList.dat'}",
                f"--socket-dir={directory / 'vhost'}",
            ],
            stderr=output,
        )
    try:
        yield process
        began = time.monotonic()
        process.terminate()
        code = process.wait(PATIENCE_S)
        print(f"    exit code {code} after {time.monotonic() - began:.2f} s")
        require(code == 0, "the agent did not stop in order")
    except Failed:
        sys.stderr.write("".join(log.read_text().splitlines(keepends=True)[-20:]))
        raise
    finally:
        process.kill()
        process.wait()


class FrontEnd:
    """A running vdpa-front."""

    def __init__(self, process: "subprocess.Popen[str]", output: IO[str]) -> None:
        self._process = process
        self._output = output

    def connected(self) -> None:
        """Waits until it can send and receive."""
        require(json.loads(self._output.readline())["event"] == "ready", "the front end ended early")

    def counted(self, seconds: float) -> dict[str, Any]:
        """Lets packets pass for a time; returns the counts so far."""
        for line in self._output:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "interval" and event["t_s"] >= seconds:
                return event
        message = "the front end ended early"
        raise Failed(message)

    def end(self) -> dict[str, Any]:
        """Ends it; returns its final counts."""
        self._process.terminate()
        events = [json.loads(line) for line in self._output]
        self._process.wait(PATIENCE_S)
        return next(event for event in events if event["event"] == "done")


@contextmanager
def front_end(socket: str, *arguments: str) -> Iterator[FrontEnd]:
    """A front end on a socket, gone at the end."""
    process = subprocess.Popen(
        [FRONT, f"--path={socket}", "--memory=none", "--interval=0.1", "--format=json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        require(process.stdout is not None, "no output")
        yield FrontEnd(process, process.stdout)  # type: ignore[arg-type]
    finally:
        process.kill()
        process.wait()


def ask_by_reflection(directory: Path, address: str) -> str:
    """Learns the API from the server and calls it, without any generated code."""
    with grpc.insecure_channel(f"unix:{directory / 'vdpa.sock'}") as channel:
        reflect = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        questions = [
            ServerReflectionRequest(list_services=""),
            ServerReflectionRequest(file_containing_symbol="vdpadpdk.VdpaDpdk"),
        ]
        services, files = list(reflect(iter(questions), timeout=PATIENCE_S))
        for service in services.list_services_response.service:
            print(f"    {service.name}")
        pool = descriptor_pool.DescriptorPool()
        for content in files.file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(content))
        method = pool.FindServiceByName("vdpadpdk.VdpaDpdk").FindMethodByName("GetSocketpath")
        request = message_factory.GetMessageClass(method.input_type)
        reply = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        answer: Any = call(request(pciAddress=address), timeout=PATIENCE_S)
        print(f"    {method.full_name}({address}) = {answer.socketpath}")
        return str(answer.socketpath)


def cli(directory: Path, *arguments: str, expect: int = 0) -> str:
    """Runs a client command; returns what it printed."""
    command = [*AGENT, *arguments, f"--address={directory / 'vdpa.sock'}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    require(result.returncode == expect, f"{' '.join(arguments)}: exit code {result.returncode}: {result.stderr}")
    return result.stdout + result.stderr


def ask(directory: Path, address: str) -> str:
    """The socket of an address as gRPC answers now; empty if there is none."""
    with grpc.insecure_channel(f"unix:{directory / 'vdpa.sock'}") as channel:
        call = channel.unary_unary(
            "/vdpadpdk.VdpaDpdk/GetSocketpath",
            request_serializer=GetSocketpathRequest.SerializeToString,
            response_deserializer=GetSocketpathResponse.FromString,
        )
        answer = call(GetSocketpathRequest(pciAddress=address), timeout=PATIENCE_S, wait_for_ready=True)
        return str(answer.socketpath)


def daemon_of(agent_pid: int) -> int:
    """The process id of the agent's daemon."""
    children = Path(f"/proc/{agent_pid}/task/{agent_pid}/children").read_text().split()
    require(len(children) == 1, f"the agent has {len(children)} children")
    return int(children[0])


def replace(path: Path, content: str) -> None:
    """Replaces a file as the device plugin does, by a rename."""
    temporary = path.with_name("tmpPciList.dat")
    temporary.write_text(content)
    temporary.rename(path)


def wait(what: str, condition: Callable[[], object]) -> None:
    """Waits for a condition, for a bounded time."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        require(time.monotonic() < end, f"{what} did not come within {PATIENCE_S:g} s")
        time.sleep(0.01)


def require(condition: object, message: str) -> None:
    """Ends the demo with a message unless a condition holds."""
    if not condition:
        raise Failed(message)


def say(what: str, detail: str) -> None:
    """Announces a step."""
    print(f"\n== {what}\n   {detail}", flush=True)


def show(text: str) -> None:
    """Prints a text indented."""
    print("".join(f"    {line}\n" for line in text.splitlines()), end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
