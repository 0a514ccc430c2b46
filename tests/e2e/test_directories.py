"""A device's own directory, as a pod uses it: in both vhost modes, through deaths, restarts and malice."""

import json
import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.processes import AgentProcess, FrontEnd, eventually, front_end, running, write_atomically

A, B = "ffff:00:00.0", "ffff:00:00.1"
ALONE = ("--rate=2000", "--interval=0.1")


def configure(run_dir: Path, **pool: Any) -> str:
    """A resource config of one pool; returns the option that names it."""
    path = run_dir / "config.json"
    write_atomically(path, json.dumps({"resourceList": [{"resourceName": "net", "simulated": 2, **pool}]}))
    return f"--resource-config={path}"


def own(run_dir: Path, address: str) -> Path:
    return run_dir / "devices" / address / "vhost.sock"


def connected(agent: AgentProcess, address: str, *, count: int = 1) -> None:
    agent.wait_logged("front_end_connected", device=address, count=count)


def test_in_server_mode_the_directory_shows_the_new_socket_after_a_death(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    with running(run_dir, *options, configure(run_dir)) as agent:
        eventually("the socket", own(run_dir, A).is_socket)
        directory = own(run_dir, A).parent.stat().st_ino
        for life in range(2):
            with front_end(str(own(run_dir, A)), *ALONE) as front:
                front.wait_passing()
                assert agent.ask(A) == str(run_dir / "vhost" / "vdpa-0")
                counts = front.stop()
            assert (counts["lost"], counts["corrupt"]) == (0, 0)
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            agent.wait_logged("daemon_ended", count=life + 1)
            agent.wait_answer(A, str(run_dir / "vhost" / "vdpa-0"))
            eventually("the new socket", partial(_is_linked, run_dir))
        assert own(run_dir, A).parent.stat().st_ino == directory
        write_atomically(run_dir / "config.json", '{"resourceList": []}')
        eventually("no dead socket", lambda: not own(run_dir, A).exists())
        assert own(run_dir, A).parent.is_dir()  # a pod may have it mounted


def _is_linked(run_dir: Path) -> bool:
    """Whether the device's own name is the socket that is served."""
    with suppress(FileNotFoundError):
        return own(run_dir, A).samefile(run_dir / "vhost" / "vdpa-0")
    return False


def _wait_passing_again(front: FrontEnd) -> None:
    """Waits for packets in an interval that has not begun yet."""
    seen = len(front.lines.events)
    eventually("packets", lambda: any(line.get("received", 0) > 0 for line in front.lines.events[seen + 1 :]))


def test_in_client_mode_traffic_returns_by_itself(run_dir: Path, options: tuple[str, ...]) -> None:
    where = configure(run_dir, vhostMode="client")
    with running(run_dir, *options, where) as agent:
        eventually("the directory", own(run_dir, A).parent.is_dir)
        with front_end(str(own(run_dir, A)), "--server", "--connect-timeout=30", *ALONE) as front:
            front.wait_passing()
            assert agent.ask(A) == str(own(run_dir, A))
            assert json.loads(agent.socket_list.read_text())[0]["socketpath"] == str(own(run_dir, A))
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            connected(agent, A, count=2)
            _wait_passing_again(front)
            agent.stop()
            with running(run_dir, *options, where) as again:
                connected(again, A)
                _wait_passing_again(front)
                counts = front.stop()
    assert counts["corrupt"] == 0
    assert counts["outages"] >= 1


def test_no_link_of_a_front_end_leads_the_daemon_elsewhere(run_dir: Path, options: tuple[str, ...]) -> None:
    """A pod's directory is its own: it puts links to another pod's socket, and to one of the node, there."""
    where = configure(run_dir, vhostMode="client")
    with (
        running(run_dir, *options, where) as agent,
        front_end(str(own(run_dir, B)), "--server", "--connect-timeout=30", *ALONE) as victim,
    ):
        victim.wait_passing()
        connected(agent, B)
        for target in (own(run_dir, B), agent.listen):
            own(run_dir, A).symlink_to(target)
            eventually(
                "vdpad says so",
                lambda: any(
                    f"socket {own(run_dir, A)} of the front end cannot be connected to" in event.get("line", "")
                    for event in agent.log.named("daemon_output")
                ),
            )
            own(run_dir, A).unlink()
        assert not agent.log.named("front_end_connected", device=A)
        # It is only that socket that is not served.
        with front_end(str(own(run_dir, A)), "--server", "--connect-timeout=30", *ALONE) as front:
            front.wait_passing()
            front.stop()
        counts = victim.stop()
    assert (counts["lost"], counts["corrupt"], counts["outages"]) == (0, 0, 0)


@pytest.mark.parametrize("isolation", ["shared", "device"])
def test_a_pool_may_change_its_mode(run_dir: Path, options: tuple[str, ...], isolation: str) -> None:
    with running(run_dir, *options, configure(run_dir), f"--isolation={isolation}") as agent:
        eventually("the socket", own(run_dir, A).is_socket)
        with front_end(str(own(run_dir, A)), *ALONE) as front:
            front.wait_passing()
            configure(run_dir, vhostMode="client")
            agent.wait_answer(B, str(own(run_dir, B)))  # nobody uses it
            assert agent.ask(A) == str(run_dir / "vhost" / "vdpa-0")
            counts = front.stop()
        assert (counts["lost"], counts["outages"]) == (0, 0)
        agent.wait_answer(A, str(own(run_dir, A)))
        with front_end(str(own(run_dir, A)), "--server", "--connect-timeout=30", *ALONE) as front:
            front.wait_passing()
            front.stop()
        configure(run_dir)
        agent.wait_answer(A, str(run_dir / "vhost" / "vdpa-0"))


def test_the_mode_of_other_devices_is_that_of_the_option(run_dir: Path, options: tuple[str, ...]) -> None:
    (run_dir / "pciList.dat").write_text("0000:82:00.2\n")
    where = configure(run_dir, vhostMode="server")
    with running(run_dir, *options, where, "--vhost-mode=client") as agent:
        agent.wait_answer("0000:82:00.2", str(run_dir / "vhost" / "vdpa-0"))
        agent.wait_answer(A, str(run_dir / "vhost" / "vdpa-1"))
        eventually("the socket", own(run_dir, A).is_socket)
        with front_end(str(run_dir / "vhost" / "vdpa-0"), "--server", "--connect-timeout=30", *ALONE) as front:
            front.wait_passing()
            front.stop()
        with front_end(str(own(run_dir, A)), *ALONE) as front:
            front.wait_passing()
            front.stop()
