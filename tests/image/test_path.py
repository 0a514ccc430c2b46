"""The agent in a container without privilege: packets to a second container, and each way to end."""

import os
import signal
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from tests.image.conftest import FOUR
from tests.image.containers import AGENT, RUN_DIRECTORY, USER, Container, ask, container, counts, front_end, podman
from tests.processes import eventually, write_list

FIFTH = "0000:82:00.6"


def socket(number: int) -> str:
    return f"{RUN_DIRECTORY}/vhost/vdpa-{number}"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_from_a_list_to_packets_in_another_container(agent: Container, shared: Path) -> None:
    assert [ask(shared, address) for address in FOUR] == [socket(number) for number in range(4)]
    assert ask(shared, "0000:87:00.5") == ""

    with front_end(shared, ask(shared, FOUR[2]), "--rate=20000", "--interval=0.1") as front:
        eventually("packets", lambda: any(line["received"] > 0 for line in front.named("interval")))
        write_list(shared / "pciList.dat", (*FOUR, FIFTH))
        eventually("the fifth VF", lambda: ask(shared, FIFTH) == socket(4))
        front.exec("vdpa-front", "--version")  # it still runs
        podman("stop", front.name)
        passed = counts(front)
    assert passed["sent"] == passed["received"] > 0
    assert (passed["lost"], passed["corrupt"], passed["outages"]) == (0, 0, 0)

    (daemon,) = children(agent.pid())
    os.kill(daemon, signal.SIGKILL)
    eventually("the loss to be seen", lambda: agent.named("daemon_ended"))
    assert [ask(shared, address) for address in (*FOUR, FIFTH)] == [socket(number) for number in range(5)]
    assert children(agent.pid()) != [daemon]
    with front_end(shared, socket(2), "--rate=20000", "--packets=10000") as front:
        assert counts(front)["received"] == 10000


def test_no_device_waits_for_another(agent: Container, shared: Path) -> None:
    """DPDK 24.11 stops for a second when its last vhost socket goes, which each device that is described would be."""
    assert [ask(shared, address) for address in FOUR] == [socket(number) for number in range(4)]
    times = [datetime.fromisoformat(event["timestamp"]) for event in agent.named("device_ready")[:4]]
    assert min(later - earlier for earlier, later in pairwise(times)) < timedelta(seconds=0.9)


def test_the_commands_inside_answer(agent: Container, shared: Path) -> None:
    assert ask(shared, FOUR[3]) == socket(3)
    assert agent.exec("vdpa-agent", "health") == "SERVING\n"
    assert agent.exec("vdpa-agent", "get", FOUR[1]).split()[-1] == socket(1)
    assert agent.exec("vdpa-agent", "list").count("ready") == 4
    assert "ready       yes" in agent.exec("vdpa-agent", "status")
    agent.exec("vdpa-agent", "get", "0000:87:00.5", expect=4)


def test_the_agent_is_process_1_without_privilege(agent: Container, shared: Path) -> None:
    assert ask(shared, FOUR[0]) == socket(0)
    pid = agent.pid()
    (daemon,) = children(pid)
    assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3] == [b"/opt/vdpa-agent/bin/vdpa-agent", b"run"]
    assert status(pid)["NSpid"].split()[-1] == "1"
    for process in (pid, daemon):
        told = status(process)
        assert told["Uid"].split() == told["Gid"].split() == [str(USER)] * 4
        assert told["CapEff"] == told["CapPrm"] == told["CapBnd"] == "0" * 16
        assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")


def test_it_needs_no_other_directory_to_write_to(agent: Container, shared: Path) -> None:
    # All of them: as long as one is missing, the daemon may be writing its mapping.
    assert [ask(shared, address) for address in FOUR] == [socket(number) for number in range(4)]
    assert sorted(path.name for path in shared.iterdir()) == [
        ".pciList.last",
        ".socketList.dat.lock",
        "devices",
        "pciList.dat",
        "socketList.dat",
        "socketNames.json",
        "vdpa.sock",
        "vdpa.sock.lock",
        "vhost",
    ]
    assert not [line for line in agent.lines() if line["level"] in ("warning", "error")]


def test_stop_is_in_order(agent: Container, shared: Path) -> None:
    assert ask(shared, FOUR[0]) == socket(0)
    podman("stop", agent.name)
    state = agent.state()
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert not [path for path in shared.rglob("*") if path.is_socket()]
    assert not (shared / "socketList.dat").exists()


def test_a_restart_serves_the_same_sockets(agent: Container, shared: Path) -> None:
    before = [ask(shared, address) for address in FOUR]
    podman("restart", agent.name)
    eventually("the second start", lambda: len(agent.named("listening")) == 2)
    assert [ask(shared, address) for address in FOUR] == before
    with front_end(shared, before[0], "--rate=20000", "--packets=10000") as front:
        assert counts(front)["received"] == 10000


def test_after_a_kill_the_next_start_is_right(agent: Container, shared: Path) -> None:
    before = [ask(shared, address) for address in FOUR]
    (daemon,) = children(agent.pid())
    os.kill(daemon, signal.SIGSTOP)  # or it might still take its sockets away when it finds itself alone
    podman("kill", agent.name)
    assert agent.wait_end() == 128 + signal.SIGKILL
    eventually("the end of the daemon", lambda: not Path(f"/proc/{daemon}").exists())
    left = sorted(path.name for path in shared.rglob("*") if path.is_socket())
    assert left == ["vdpa-0", "vdpa-1", "vdpa-2", "vdpa-3", "vdpa.sock", *(4 * ["vhost.sock"])]

    # Meanwhile one VF left the list: its socket must not stay.
    write_list(shared / "pciList.dat", FOUR[:3])
    podman("start", agent.name)
    eventually("the second start", lambda: len(agent.named("listening")) == 2)
    assert [ask(shared, address) for address in FOUR] == [*before[:3], ""]
    assert not (shared / "vhost" / "vdpa-3").exists()
    with front_end(shared, before[1], "--rate=20000", "--packets=10000") as front:
        assert counts(front)["received"] == 10000


def test_a_front_end_that_opened_the_socket_outlives_the_agents_container(shared: Path) -> None:
    write_list(shared / "pciList.dat", FOUR[:1])
    run = ("run", "--simulate", "--vhost-mode=client", "--log-format=json")
    with (
        container(AGENT, shared, *run) as agent,
        front_end(shared, socket(0), "--server", "--rate=20000", "--interval=0.1", "--queues=2") as front,
    ):
        eventually("packets", lambda: any(line["received"] > 0 for line in front.named("interval")))
        podman("kill", agent.name)
        eventually("the end", lambda: not agent.state()["Running"])
        before = front.named("interval")[-1]["received"]
        podman("start", agent.name)
        eventually("packets again", lambda: front.named("interval")[-1]["received"] > before + 10000)
        podman("stop", front.name)
        passed = counts(front)
    assert passed["sent"] == passed["received"]
    assert (passed["lost"], passed["corrupt"], passed["outages"]) == (0, 0, 1)


def test_a_second_agent_on_the_same_directory_gives_way(agent: Container, shared: Path) -> None:
    assert ask(shared, FOUR[0]) == socket(0)
    with container(AGENT, shared, "run", "--simulate", "--log-format=json") as second:
        assert second.wait_end() == 100
    assert ask(shared, FOUR[0]) == socket(0)
    assert agent.exec("vdpa-agent", "health") == "SERVING\n"
