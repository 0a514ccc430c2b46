"""Switches whose uplinks are tap devices: front ends of two nodes exchange packets, and a node reaches its own."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import FOUR
from tests.e2e.consumers import guest
from tests.e2e.front_ends import Vdpad, settled
from tests.e2e.test_switch import BROADCAST, PACED, SWITCH, build, heard, intact, mac, on, ready

__all__ = ["build"]

A, B, _, _ = FOUR
NOBODY: Final = 65534
TAP: Final = f"ip tuntap add dev up0 mode tap vnet_hdr user {NOBODY}"


class Node:
    """A network namespace with a bridge, to which a tap device and a veth pair belong."""

    def __init__(self) -> None:
        """Makes it, empty."""
        self.holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"], stdout=subprocess.PIPE, text=True
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "made\n"
        self.enter = ("nsenter", f"--net=/proc/{self.holder.pid}/ns/net")
        # The kernel's own multicasts would be counted with the others.
        self.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1")

    def run(self, *commands: str) -> None:
        """Runs commands in it."""
        for command in commands:
            done = subprocess.run([*self.enter, *command.split()], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"

    def bridge(self, *ports: str) -> None:
        """Joins devices."""
        self.run("ip link add br0 type bridge mcast_snooping 0", "ip link set br0 up")
        for port in ports:
            self.run(f"ip link set {port} up master br0")

    def carries(self) -> bool:
        """Whether all ports of its bridge pass frames, which they do a moment after both their ends are up."""
        show = [*self.enter, "ip", "-d", "-o", "link", "show", "master", "br0"]
        ports = subprocess.run(show, capture_output=True, text=True, check=True).stdout.splitlines()
        return bool(ports) and all("LOWER_UP" in port and "state forwarding" in port for port in ports)

    def vdpad(self, directory: Path, build: str, **devargs: str) -> Vdpad:
        """A vdpad in it, of a user without any capability."""
        directory.mkdir(exist_ok=True)
        os.chown(directory, NOBODY, NOBODY)
        run_as = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all")
        devices = {A: devargs.get("A", "uplink=up0"), B: devargs.get("B", "")}
        return Vdpad(
            directory,
            build,
            SWITCH,
            devices=devices,
            environment=[f"XDG_RUNTIME_DIR={directory}"],
            inside=[*self.enter, *run_as],
        )

    def close(self) -> None:
        """Ends it, and with it its devices."""
        self.holder.kill()
        self.holder.wait()
        assert self.holder.stdout is not None
        self.holder.stdout.close()


@contextmanager
def nodes(count: int) -> Iterator[list[Node]]:
    """Nodes with a tap each; two are joined by a cable."""
    made: list[Node] = []
    try:
        for _ in range(count):
            made.append(Node())
            made[-1].run(TAP)
        if count > 1:
            made[0].run(f"ip link add cable type veth peer name cable netns {made[1].holder.pid}")
        for node in made:
            node.bridge("up0", *(["cable"] if count > 1 else []))
        yield made
    finally:
        for node in made:
            node.close()


@pytest.fixture
def open_dir(run_dir: Path) -> Path:
    """A directory below which another user may have one."""
    run_dir.chmod(0o755)
    return run_dir


def test_front_ends_of_two_nodes_exchange_packets(open_dir: Path, build: str) -> None:
    with (
        nodes(2) as (here, there),
        here.vdpad(open_dir / "here", build) as ours,
        there.vdpad(open_dir / "there", build) as theirs,
        on(theirs, B, "--mode=echo") as echo,
        on(ours, B, "--mode=listen", "--mac=02:00:00:00:00:77") as bystander,
    ):
        ready(echo, bystander)
        settled("the cable carries", lambda: here.carries() and there.carries())
        with on(ours, A, f"--to={mac(B)}", "--packets=3000", PACED) as front:
            assert intact(front.result(), 3000)
        learned = ours.stats(B, "packets", receiving=True)
        assert 1 <= learned <= 10, "the first frames were flooded"
        with on(ours, A, f"--to={mac(B)}", "--packets=1000", PACED) as front:
            assert intact(front.result(), 1000)
        assert ours.stats(B, "packets", receiving=True) == learned, "it is known to be behind the uplink"
        with on(ours, A, f"--to={BROADCAST}", "--packets=500", PACED) as front:
            assert intact(front.result(), 500)
        settled("the others of this node heard it", lambda: heard(bystander) >= 500)
        assert echo.stop()["foreign"] == 4500


def cpu_ticks(vdpad: Vdpad) -> int:
    """The processor time that vdpad has taken so far."""
    fields = Path(f"/proc/{vdpad.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_linux_guests_of_two_nodes_reach_each_other_and_their_nodes(open_dir: Path) -> None:
    with (
        nodes(2) as (here, there),
        here.vdpad(open_dir / "here", "native") as ours,
        there.vdpad(open_dir / "there", "native") as theirs,
        guest(str(ours.socket(A)), open_dir, mac=mac(A)) as one,
        guest(str(theirs.socket(B)), open_dir, mac=mac(B)) as two,
    ):
        here.run("ip address add 10.9.0.100/24 dev br0")
        for number, machine in enumerate((one, two), 1):
            machine.wait_up()
            machine.run(f"ifconfig eth0 10.9.0.{number} netmask 255.255.255.0 up")
        one.run("ping -c 3 10.9.0.2")
        two.run("ping -c 3 10.9.0.100")
        one.run("dd if=/dev/urandom of=/sent bs=1M count=5 2>/dev/null")
        two.say("nc -l -p 99 > /received; sync; echo all of it")
        one.run("until nc 10.9.0.2 99 < /sent; do sleep 1; done")
        two.wait("all of it")
        sums = [machine.run(f"md5sum < /{name}").split()[0] for machine, name in ((one, "sent"), (two, "received"))]
        assert sums[0] == sums[1]


def test_an_uplink_costs_nothing_while_nothing_comes(open_dir: Path) -> None:
    with nodes(1) as (node,), node.vdpad(open_dir / "d", "native") as vdpad, on(vdpad, A, "--mode=listen") as front:
        ready(front)
        settled("it rests", lambda: _idle(vdpad))


def _idle(vdpad: Vdpad) -> bool:
    before = cpu_ticks(vdpad)
    time.sleep(1)
    return cpu_ticks(vdpad) == before


def test_a_tap_that_is_down_or_gone_is_used_again_once_it_is_back(open_dir: Path, build: str) -> None:
    with (
        nodes(2) as (here, there),
        here.vdpad(open_dir / "here", build) as ours,
        there.vdpad(open_dir / "there", build) as theirs,
        on(theirs, B, "--mode=echo") as echo,
    ):
        ready(echo)
        settled("the cable carries", lambda: here.carries() and there.carries())
        with on(ours, A, f"--to={mac(B)}", "--packets=100", PACED) as front:
            assert intact(front.result(), 100)
        here.run("ip link set up0 down")
        with on(ours, A, f"--to={mac(B)}", "--packets=100", PACED) as front:
            assert front.result()["received"] == 0
        assert ours.stats(A, "dropped", receiving=False) == 100
        settled("a warning", lambda: _logged(ours, "uplink up0: it takes no frames (Input/output error): run ip link"))
        here.run("ip link set up0 up")
        settled("the cable carries", here.carries)
        with on(ours, A, f"--to={mac(B)}", "--packets=100", PACED) as front:
            assert intact(front.result(), 100)
        here.run("ip link delete up0")
        settled("a warning", lambda: _logged(ours, "uplink up0: it is gone"))
        here.run(TAP, "ip link set up0 up master br0")
        settled("it is found", lambda: _logged(ours, "uplink up0: it is back"))
        settled("the cable carries", here.carries)
        with on(ours, A, f"--to={mac(B)}", "--packets=100", PACED) as front:
            assert intact(front.result(), 100)
        assert len([line for line in ours.log if "uplink up0" in line]) == 3


def _logged(vdpad: Vdpad, text: str) -> bool:
    return any(text in line for line in vdpad.log)


def test_a_tap_that_cannot_be_used_is_named_with_what_to_do(open_dir: Path) -> None:
    make = f"run ip tuntap add dev up0 mode tap vnet_hdr user {NOBODY} && ip link set up0 up"
    with nodes(0):
        node = Node()
        try:
            with node.vdpad(open_dir / "d", "native", A="") as vdpad:

                def refusal(devargs: str) -> str:
                    socket = str(open_dir / "d" / "c")
                    answer = vdpad.request("device.add", device=FOUR[2], devargs=devargs, socket=socket)
                    return str(answer["error"]["message"])

                assert f"uplink=up0 is not a device here: {make}" in refusal("uplink=up0")
                node.run("ip tuntap add dev up0 mode tap user 4321")
                assert f"uplink=up0 is another user's: delete it, and: {make}" in refusal("uplink=up0")
                node.run("ip link delete up0", "ip link add up0 type bridge")
                assert f"uplink=up0 is not a tap: delete it, or name another, and: {make}" in refusal("uplink=up0")
                node.run("ip link delete up0", f"{TAP} multi_queue")
                vdpad.call("device.add", device=FOUR[2], devargs="uplink=up0", socket=str(open_dir / "d" / "c"))
                node.run(f"ip tuntap add dev up1 mode tap user {NOBODY}")
                (second,) = (
                    str(vdpad.request("device.add", device=FOUR[3], devargs=d, socket=str(open_dir / "e"))["error"])
                    for d in ("uplink=up1",)
                )
                assert "uplink=up1 is a second one for its switch, which has up0: give both the same" in second
                vlan = "vlan=5,uplink=up1"
                vdpad.call("device.add", device=FOUR[3], devargs=vlan, socket=str(open_dir / "d" / "e"))
                with Vdpad(
                    open_dir, "native", SWITCH, devices={}, inside=node.enter, environment=["XDG_RUNTIME_DIR=/tmp"]
                ) as other:
                    answer = other.request("device.add", device=A, devargs="uplink=up1", socket=str(open_dir / "f"))
                    assert "uplink=up1 is in use: each switch needs a tap of its own" in answer["error"]["message"]
        finally:
            node.close()
