"""Simulated VFs as a network: front ends on several VFs exchange packets, and none of them can hurt the others."""

import struct
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e import front_ends
from tests.e2e.conftest import FOUR
from tests.e2e.consumers import Program, guest
from tests.e2e.front_ends import Vdpad, settled
from tests.processes import FrontEnd, eventually, front_end, running, write_list

SWITCH: Final = "--simulate-network=switch"
OTHER_PF: Final = "0000:83:00.2"
BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
PACED: Final = "--rate=1000"
"""A ring of 1,024 buffers outlasts the stalls of a loaded machine."""

A, B, C, D = FOUR

MRG_RXBUF, MQ, INDIRECT_DESC, EVENT_IDX = 15, 22, 28, 29
FEATURES: Final = 64
"""As Linux prints them, one character each."""


@pytest.fixture(params=["native", "native-sanitized"])
def build(request: pytest.FixtureRequest) -> str:
    """The builds of vdpad."""
    name: str = request.param
    return name


def network(directory: Path, build: str, **devargs: str) -> Vdpad:
    """A vdpad whose four VFs, and one of another PF, are devices of networks; `devargs` by the VF's letter."""
    devices = {address: devargs.get(name, "") for name, address in zip("ABCDE", (*FOUR, OTHER_PF), strict=True)}
    return Vdpad(directory, build, SWITCH, devices=devices)


def mac(address: str) -> str:
    """The address of the front end on a VF."""
    return f"02:00:00:00:00:0{address[-1]}"


def on(vdpad: Vdpad, address: str, *arguments: str) -> AbstractContextManager[FrontEnd]:
    """A front end on a VF, with an address of its own unless the arguments say another."""
    own = () if any(a.startswith("--mac=") for a in arguments) else (f"--mac={mac(address)}",)
    return front_end(str(vdpad.socket(address)), *own, "--interval=0.05", *arguments)


def ready(*fronts: FrontEnd) -> None:
    """Waits until front ends are connected, so that nothing that is sent comes too early for them."""
    for front in fronts:
        eventually("a front end", lambda front=front: front.lines.named("ready"))  # type: ignore[misc]


def intact(counts: dict[str, Any], sent: int) -> bool:
    """Whether everything came back, in order."""
    return (counts["sent"], counts["received"], counts["lost"], counts["reordered"], counts["corrupt"]) == (
        *(sent, sent),
        *(0, 0, 0),
    )


def heard(front: FrontEnd) -> int:
    """How many frames of others a front end got until now."""
    return max((int(event["received"]) for event in front.lines.named("interval")), default=0)


def test_two_front_ends_exchange_packets_as_the_agent_named_their_sockets(
    run_dir: Path, each_build: tuple[str, ...]
) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *each_build, SWITCH) as agent:
        for number, address in enumerate(FOUR):
            agent.wait_answer(address, str(run_dir / "vhost" / f"vdpa-{number}"))
        with front_end(agent.ask(B), "--mode=echo", f"--mac={mac(B)}") as echo:
            ready(echo)
            with front_end(agent.ask(A), f"--mac={mac(A)}", f"--to={mac(B)}", "--packets=3000", PACED) as front:
                counts = front.result()
            assert intact(counts, 3000)
            assert counts["exit_code"] == 0
            assert echo.stop()["foreign"] == 3000


def test_a_known_address_is_nobody_elses_business(run_dir: Path, build: str) -> None:
    with (
        network(run_dir, build) as vdpad,
        on(vdpad, B, "--mode=echo") as echo,
        on(vdpad, C, "--mode=listen") as bystander,
        on(vdpad, OTHER_PF, "--mode=listen", "--mac=02:00:00:00:00:99") as stranger,
    ):
        ready(echo, bystander, stranger)
        with on(vdpad, A, f"--to={mac(B)}", "--packets=10", PACED) as front:
            assert intact(front.result(), 10)
        learned = vdpad.stats(C, "packets", receiving=True)
        assert 1 <= learned <= 10, "the first frame for B was flooded"
        with on(vdpad, A, f"--to={mac(B)}", "--packets=2000", PACED) as front:
            assert intact(front.result(), 2000)
        assert vdpad.stats(C, "packets", receiving=True) == learned
        assert bystander.stop()["foreign"] == learned
        assert stranger.stop()["foreign"] == 0


def test_a_broadcast_reaches_all_others(run_dir: Path, build: str) -> None:
    with network(run_dir, build) as vdpad, on(vdpad, B, "--mode=listen") as b, on(vdpad, C, "--mode=listen") as c:
        ready(b, c)
        with on(vdpad, A, f"--to={BROADCAST}", "--packets=1000", PACED) as front:
            counts = front.result()
        assert (counts["sent"], counts["received"]) == (1000, 0)
        settled("all was heard", lambda: heard(b) == heard(c) == 1000)
        assert vdpad.stats(A, "packets", receiving=False) == 1000
        assert vdpad.stats(B, "packets", receiving=True) == vdpad.stats(C, "packets", receiving=True) == 1000


def test_vlans_do_not_see_each_other(run_dir: Path, build: str) -> None:
    with (
        network(run_dir, build, A="vlan=10", B="vlan=10", C="vlan=20") as vdpad,
        on(vdpad, B, "--mode=listen") as same,
        on(vdpad, C, "--mode=listen") as other,
        on(vdpad, D, "--mode=listen") as untagged,
    ):
        ready(same, other, untagged)
        for to in (BROADCAST, mac(B), mac(C), mac(D)):
            with on(vdpad, A, f"--to={to}", "--packets=200", PACED) as front:
                assert front.result()["sent"] == 200
        settled("its own VLAN heard all", lambda: heard(same) == 800)
        assert other.stop()["foreign"] == untagged.stop()["foreign"] == 0


def test_a_receiver_that_never_reads_costs_its_own_frames(run_dir: Path, build: str) -> None:
    with (
        network(run_dir, build) as vdpad,
        front_ends.FrontEnd(vdpad.socket(C)) as idle,
        on(vdpad, B, "--mode=echo") as echo,
    ):
        idle.share()
        idle.start_rings()
        ready(echo)
        settled("the idle one is plugged in", lambda: vdpad.device(C)["configured"])
        with on(vdpad, A, f"--to={BROADCAST}", "--packets=1000", PACED) as front:
            assert intact(front.result(), 1000)
        # The broadcasts; what B sent back was for A alone.
        assert vdpad.stats(C, "dropped", receiving=True) == 1000
        assert vdpad.stats(B, "dropped", receiving=True) == vdpad.stats(A, "dropped", receiving=True) == 0


def test_a_senderthat_is_killed_takes_nobody_with_it(run_dir: Path, build: str) -> None:
    with (
        network(run_dir, build) as vdpad,
        on(vdpad, B, "--mode=echo") as healthy,
        on(vdpad, A, f"--to={mac(B)}", PACED) as front,
    ):
        ready(healthy)
        front.wait_passing()
        for round_number in range(5):
            with on(vdpad, C, "--mode=echo") as victim, on(vdpad, D, f"--to={mac(C)}", "--rate=20000") as sender:
                sender.wait_passing()
                (victim if round_number % 2 else sender).process.kill()
            settled("it is gone", lambda: not vdpad.device(C)["connected"] and not vdpad.device(D)["connected"])
        before = vdpad.stats(A, "dropped", receiving=True) + vdpad.stats(B, "dropped", receiving=True)
        counts = front.stop()
        assert before == 0
        assert counts["received"] > 0
        assert (counts["reordered"], counts["corrupt"]) == (0, 0)


def test_a_device_is_removed_and_added_while_others_send_to_it(run_dir: Path, build: str) -> None:
    with (
        network(run_dir, build) as vdpad,
        on(vdpad, B, "--mode=echo") as healthy,
        on(vdpad, A, f"--to={mac(B)}", PACED) as front,
        on(vdpad, D, f"--to={BROADCAST}", PACED),
    ):
        ready(healthy)
        front.wait_passing()
        for _ in range(5):
            with on(vdpad, C, "--mode=listen") as victim:
                settled("it hears", lambda victim=victim: heard(victim))
                vdpad.call("device.remove", device=C)
            vdpad.add(C)
        assert vdpad.device(A)["configured"]
        counts = front.stop()
        assert counts["received"] > 0
        assert (counts["reordered"], counts["corrupt"]) == (0, 0)


def test_a_checked_port_sends_from_its_own_address_alone(run_dir: Path) -> None:
    check = f"mac={mac(A)},spoofcheck=1"
    with network(run_dir, "native", A=check) as vdpad, on(vdpad, B, "--mode=listen") as b:
        ready(b)
        with on(vdpad, A, "--mac=02:00:00:00:00:77", f"--to={BROADCAST}", "--packets=100", PACED) as liar:
            assert liar.result()["sent"] == 100
        assert vdpad.stats(A, "dropped", receiving=False) == 100
        assert vdpad.stats(B, "packets", receiving=True) == 0
        with on(vdpad, A, f"--to={BROADCAST}", "--packets=100", PACED):
            settled("the honest one is heard", lambda: heard(b) == 100)


def test_several_queue_pairs(run_dir: Path) -> None:
    with network(run_dir, "native") as vdpad, on(vdpad, B, "--mode=echo", "--queues=2") as echo:
        ready(echo)
        with on(vdpad, A, f"--to={mac(B)}", "--queues=4", "--packets=4000", PACED) as front:
            assert intact(front.result(), 4000)


def test_a_profile_offers_no_more_than_that_driver_does(run_dir: Path) -> None:
    beyond_mlx5 = 1 << MRG_RXBUF | 1 << INDIRECT_DESC | 1 << EVENT_IDX
    with network(run_dir, "native", B="profile=mlx5", C="profile=mlx5,queues=1") as vdpad:
        offered = {}
        for address in (A, B, C):
            with front_ends.FrontEnd(vdpad.socket(address)) as front:
                front.send(front_ends.GET_FEATURES)
                (offered[address],) = struct.unpack("<Q", front.reply())
        assert offered[A] & beyond_mlx5 == beyond_mlx5
        assert offered[B] == offered[A] & ~beyond_mlx5
        assert offered[C] == offered[B] & ~(1 << MQ)
        # And one that goes by it exchanges packets with one that has all.
        with on(vdpad, A, "--mode=echo") as echo:
            ready(echo)
            with on(vdpad, B, f"--to={mac(A)}", "--packets=1000", PACED) as sender:
                assert intact(sender.result(), 1000)


def test_indirect_descriptors_of_testpmd(run_dir: Path) -> None:
    """A frame of several pieces is one descriptor of the ring, which leads to a table."""
    with network(run_dir, "native") as vdpad, on(vdpad, B, "--mode=listen") as b:
        ready(b)
        testpmd = [
            *("dpdk-testpmd", "--lcores=(0,1)@0", "--no-pci", "--no-telemetry", "--no-huge", "--no-shconf"),
            *("-m", "32", f"--vdev=net_virtio_user0,path={vdpad.socket(A)}", "--", "--total-num-mbufs=2048"),
            *("--no-mlockall", "--forward-mode=txonly", "--txpkts=40,40,40,40", "--auto-start", "--stats-period=1"),
        ]
        program = Program(testpmd, run_dir)
        try:
            eventually("frames", lambda: vdpad.stats(B, "packets", receiving=True) > 10_000)
        finally:
            program.kill()
        frames, octets = (vdpad.stats(B, name, receiving=True) for name in ("packets", "bytes"))
        assert octets == 160 * frames
        assert vdpad.stats(A, "errors", receiving=False) == 0


def test_two_linux_guests_talk(run_dir: Path) -> None:
    """Unmodified, with all that is offered: indirect descriptors and events, interrupts, mergeable buffers."""
    with (
        network(run_dir, "native") as vdpad,
        guest(str(vdpad.socket(A)), run_dir, mac=mac(A)) as here,
        guest(str(vdpad.socket(B)), run_dir, mac=mac(B)) as there,
    ):
        for number, machine in enumerate((here, there), 1):
            machine.wait_up()
            machine.run(f"ifconfig eth0 10.9.0.{number} netmask 255.255.255.0 up")
            features = machine.run("cat /sys/bus/virtio/devices/virtio0/features")
            bits = next(line.strip() for line in features.splitlines() if len(line.strip()) == FEATURES)
            assert all(bits[bit] == "1" for bit in (MRG_RXBUF, INDIRECT_DESC, EVENT_IDX))
        here.run("ping -c 3 10.9.0.2")
        here.run("until ping6 -c 1 fe80::ff:fe00:3%eth0; do sleep 1; done")  # its address is tentative at first
        here.run("dd if=/dev/urandom of=/sent bs=1M count=20 2>/dev/null")
        there.say("nc -l -p 99 > /received; sync; echo all of it")
        here.run("until nc 10.9.0.2 99 < /sent; do sleep 1; done")
        there.wait("all of it")
        sums = [machine.run(f"md5sum < /{name}").split()[0] for machine, name in ((here, "sent"), (there, "received"))]
        assert sums[0] == sums[1]
        assert sum(vdpad.stats(address, "bytes", receiving=True) for address in (A, B)) > 20 << 20


def test_two_linux_guests_have_the_mtu_that_they_are_given(run_dir: Path) -> None:
    """One of 9,000 bytes, and one to whose device the operator gave less than QEMU says."""
    with (
        network(run_dir, "native", C="mtu=1500") as vdpad,
        guest(str(vdpad.socket(A)), run_dir, mac=mac(A), device=",host_mtu=9000") as here,
        guest(str(vdpad.socket(B)), run_dir, mac=mac(B), device=",host_mtu=9000") as there,
    ):
        for number, machine in enumerate((here, there), 1):
            machine.wait_up()
            assert machine.run("cat /sys/class/net/eth0/mtu").splitlines()[0] == "9000"
            machine.run(f"ifconfig eth0 10.9.0.{number} netmask 255.255.255.0 up")
        here.run("ping -c 3 -s 8972 10.9.0.2")  # 9,000 bytes with the headers of IPv4 and ICMP
        assert vdpad.stats(B, "dropped", receiving=True) == 0
        here.run("ifconfig eth0 mtu 9500 2>/dev/null; test $(cat /sys/class/net/eth0/mtu) = 9000")
        there.kill()
        with guest(str(vdpad.socket(C)), run_dir, mac=mac(C), device=",host_mtu=9000") as third:
            third.wait_up()
            third.run("ifconfig eth0 10.9.0.3 netmask 255.255.255.0 up")
            settled("the warning", lambda: any("MTU of 9000, longer packets than mtu=1500" in x for x in vdpad.log))
            here.run("until ping -c 1 10.9.0.3; do sleep 1; done")
            dropped = vdpad.stats(C, "dropped", receiving=True)
            here.run("! ping -c 1 -W 2 -s 8972 10.9.0.3")
            assert vdpad.stats(C, "dropped", receiving=True) == dropped + 1


@pytest.mark.parametrize(
    ("devargs", "said"),
    [
        ("mtu=67", "mtu=67 is no MTU: give 68 to 65535 bytes"),
        ("mtu=65536", "mtu=65536 is no MTU"),
        ("mtu=9k", "mtu=9k is no MTU"),
        ("vlan=4095", "vlan=4095 is no VLAN: give 1 to 4094"),
        ("mac=ff:ff:ff:ff:ff:ff", "is not the address of a station"),
        ("spoofcheck=1", "spoofcheck=1 needs the address that may send: add mac=<MAC>"),
        ("spoofcheck=2", "spoofcheck=2 is neither 0 nor 1"),
        ("profile=e1000", "profile=e1000 is neither all nor mlx5"),
        ("network=hub", "network=hub is neither loopback nor switch"),
        ("mac=02:00:00:00:00:01", "its mac is that of another device of this network: give each its own"),
        ("vlan=5,network=loopback", "vlan, mac, spoofcheck and uplink are those of a switch: add network=switch"),
    ],
)
def test_wrong_device_arguments_are_refused(run_dir: Path, devargs: str, said: str) -> None:
    with Vdpad(run_dir, "native", SWITCH, devices={A: "mac=02:00:00:00:00:01"}) as vdpad:
        answer = vdpad.request("device.add", device=B, devargs=devargs, socket=str(run_dir / "b"))
        assert said in answer["error"]["message"]
        # Nothing is left of it.
        assert "result" in vdpad.request("device.add", device=B, devargs="", socket=str(run_dir / "b"))


def test_the_switch_is_refused_where_each_device_has_its_own_vdpad(run_dir: Path) -> None:
    command = [sys.executable, "-m", "vdpa_agent", "run", f"--listen={run_dir}/s", SWITCH]
    refused = subprocess.run(
        [*command, "--simulate", "--isolation=device"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "--isolation device gives each its own: drop one of them" in refused.stderr
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--simulate-network switch is for software devices, add --simulate or drop it" in refused.stderr
