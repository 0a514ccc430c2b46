"""--isolation device with real daemons and front ends: what happens to one device is that device's alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import FOUR
from tests.processes import (
    WITH_HTTP,
    AgentProcess,
    eventually,
    front_end,
    processes_of,
    running,
    write_atomically,
    write_list,
)

NEW = "0000:83:00.0"
DEVICE = "--isolation=device"


def _pid(agent: AgentProcess, address: str) -> int:
    """The newest process that was started for a device."""
    return int(agent.log.named("daemon_started", device=address)[-1]["pid"])


def _socket(agent: AgentProcess, number: int) -> str:
    return str(agent.directory / "vhost" / f"vdpa-{number}")


def _mapping(agent: AgentProcess) -> dict[str, str]:
    try:
        entries = json.loads(agent.socket_list.read_text())
    except FileNotFoundError:
        return {}
    return {entry["pciAddress"]: entry["socketpath"] for entry in entries}


@pytest.fixture
def alone(run_dir: Path, options: tuple[str, ...]) -> Iterator[AgentProcess]:
    """An agent that serves four software devices, each by a daemon of its own."""
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *options, DEVICE, WITH_HTTP) as agent:
        for number, address in enumerate(FOUR):
            agent.wait_answer(address, _socket(agent, number))
        yield agent


def test_five_deaths_of_one_daemon_cost_its_neighbours_nothing(alone: AgentProcess) -> None:
    """Packets, attaches and hot changes of the others go on; pause and crash loop are the one device's."""
    victim, *others = FOUR
    pids = {address: _pid(alone, address) for address in FOUR}
    assert len(set(pids.values())) == len(FOUR)
    with ExitStack() as stack:
        fronts = [
            stack.enter_context(front_end(alone.ask(address), "--rate=5000", "--interval=0.1"))
            for address in others[:2]
        ]
        for front in fronts:
            front.wait_passing()
        for death in range(1, 6):
            os.kill(_pid(alone, victim), signal.SIGKILL)
            alone.wait_logged("daemon_ended", count=death, device=victim)
            # While it is dead: an attach to another device, and another one comes and goes.
            with front_end(alone.ask(others[2]), "--packets=1000") as attached:
                assert attached.result()["lost"] == 0
            write_list(alone.pci_list, [*FOUR, NEW])
            alone.wait_answer(NEW, _socket(alone, 4))
            write_list(alone.pci_list, FOUR)
            alone.wait_logged("device_removed", count=death, device=NEW)
            alone.wait_logged("daemon_started", count=death + 1, device=victim)
            alone.wait_answer(victim, _socket(alone, 0))
        passed = [len(front.lines.named("interval")) for front in fronts]
        for front, before in zip(fronts, passed, strict=True):
            eventually("more packets", lambda f=front, b=before: len(f.lines.named("interval")) > b + 2)  # type: ignore[misc]
        counts = [front.stop() for front in fronts]
    assert [(count["exit_code"], count["lost"]) for count in counts] == [(0, 0), (0, 0)]
    assert all(count["received"] > 0 for count in counts)
    assert {address: _pid(alone, address) for address in others} == {address: pids[address] for address in others}
    assert {event["device"] for event in alone.log.named("daemon_restart_waits")} == {victim}
    assert [event["device"] for event in alone.log.named("daemon_crash_loop")] == [victim]
    with front_end(alone.ask(victim), "--packets=1000") as front:
        assert front.result()["lost"] == 0


def test_a_dead_daemon_degrades_its_device_and_only_all_of_them_make_the_agent_unready(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:2])
    vdpad = next(word.removeprefix("--vdpad=") for word in options if word.startswith("--vdpad="))
    broken, program = run_dir / "broken", run_dir / "program"
    program.write_text(
        "#!/bin/sh\n"
        f'for device in $(cat {broken} 2>/dev/null); do case "$*" in *"$device"*) exit 1;; esac; done\n'
        f'exec {vdpad} "$@"\n'
    )
    program.chmod(0o755)
    others = [word for word in options if not word.startswith("--vdpad=")]
    with running(run_dir, *others, f"--vdpad={program}", DEVICE, WITH_HTTP) as agent:
        for number, address in enumerate(FOUR[:2]):
            agent.wait_answer(address, _socket(agent, number))
        broken.write_text("82-00.2")
        os.kill(_pid(agent, FOUR[0]), signal.SIGKILL)
        agent.wait_answer(FOUR[0], "")
        agent.wait_logged("daemon_restart_waits", device=FOUR[0])
        assert agent.ask(FOUR[1]) == _socket(agent, 1)
        status = eventually("degraded", lambda: _degraded(agent))
        assert status["ready"] is True
        assert status["degraded_reasons"][0].startswith(f"{FOUR[0]} is wanted: the daemon is in state ")
        assert agent.get("/readyz")[0] == 200
        assert agent.metric("vdpa_agent_daemons", state="running") == 1
        assert agent.metric("vdpa_agent_daemon_ready") == 1
        broken.write_text("82-00.2 82-00.3")
        os.kill(_pid(agent, FOUR[1]), signal.SIGKILL)
        eventually("unready", lambda: agent.get("/readyz")[0] == 503)
        assert "none of 2 daemons serves" in agent.get("/readyz?verbose")[1]
        broken.unlink()
        for number, address in enumerate(FOUR[:2]):
            agent.wait_answer(address, _socket(agent, number))
        eventually("ready", lambda: agent.get("/readyz")[0] == 200)


def _degraded(agent: AgentProcess) -> dict[str, Any] | None:
    """What `vdpa-agent status` shows, once a device is degraded."""
    command = [sys.executable, "-m", "vdpa_agent", "status", f"--address={agent.listen}", "--output=json"]
    status: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return status if status.get("degraded_reasons") else None


def test_a_daemon_ends_with_its_device_after_its_drain(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:2])
    with running(run_dir, *options, DEVICE, "--drain-timeout=600") as agent:
        agent.wait_logged("device_ready", count=2)
        first, second = _pid(agent, FOUR[0]), _pid(agent, FOUR[1])
        with front_end(agent.ask(FOUR[0]), "--rate=5000", "--interval=0.1") as front:
            front.wait_passing()
            write_list(agent.pci_list, FOUR[1:2])
            agent.wait_logged("device_drains", device=FOUR[0])
            assert agent.ask(FOUR[0]) == ""
            assert FOUR[0] in _mapping(agent)
            passed = len(front.lines.named("interval"))
            eventually("packets", lambda: len(front.lines.named("interval")) > passed + 3)
            assert front.stop()["lost"] == 0
        agent.wait_logged("daemon_ended", device=FOUR[0], reason="exit code 0")
        eventually("the end of the process", lambda: not Path(f"/proc/{first}").exists())
        eventually("the mapping", lambda: list(_mapping(agent)) == [FOUR[1]])
        write_list(agent.pci_list, FOUR[:2])
        agent.wait_answer(FOUR[0], _socket(agent, 0))
        assert _pid(agent, FOUR[1]) == second
        assert not agent.log.named("daemon_restart_waits")


def test_the_mapping_says_what_is_served_and_is_written_again(alone: AgentProcess) -> None:
    everything = {address: _socket(alone, number) for number, address in enumerate(FOUR)}
    eventually("the mapping", lambda: _mapping(alone) == everything)
    alone.socket_list.unlink()
    eventually("the mapping again", lambda: _mapping(alone) == everything)
    write_atomically(alone.socket_list, '[{"pciAddress": "0000:82:00.2", "socketpath": "/tmp/other"}]')
    eventually("the mapping once more", lambda: _mapping(alone) == everything)
    alone.wait_logged("mapping_repaired")
    # What is not a mapping is kept under another name, and a list is taken.
    write_atomically(alone.socket_list, '{"not": "ours"}')
    alone.wait_logged("mapping_refused")
    assert alone.socket_list.with_name("socketList.dat.refused").read_text() == '{"not": "ours"}'
    eventually("the mapping in its place", lambda: _mapping(alone) == everything)
    write_atomically(alone.socket_list, "".join(f"{address}\n" for address in (*FOUR, NEW)))
    alone.wait_answer(NEW, _socket(alone, 4))
    eventually("the mapping of the new list", lambda: set(_mapping(alone)) == {*FOUR, NEW})
    assert len(alone.log.named("daemon_started", device=FOUR[1])) == 1
    assert alone.stop() == 0
    assert not alone.socket_list.exists()


def test_numbers_stay_with_their_devices(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *options, DEVICE) as agent:
        agent.wait_answer(FOUR[3], _socket(agent, 3))
    for mode in ("shared", "device"):
        write_list(run_dir / "pciList.dat", [FOUR[3], NEW, FOUR[1]])
        with running(run_dir, *options, f"--isolation={mode}") as agent:
            agent.wait_answer(FOUR[3], _socket(agent, 3))
            agent.wait_answer(FOUR[1], _socket(agent, 1))
            agent.wait_answer(NEW, _socket(agent, 4))


def _packets(agent: AgentProcess, address: str) -> float | None:
    return agent.metric("vdpa_agent_device_statistic_total", pciAddr=address, queue="0", statistic="packets")


def test_a_hung_daemon_is_unhealthy_alone(alone: AgentProcess) -> None:
    hung = _pid(alone, FOUR[0])
    os.kill(hung, signal.SIGSTOP)
    # The agent does not know it yet: the others' counters are there all the same.
    assert _packets(alone, FOUR[0]) is None
    assert _packets(alone, FOUR[3]) == 0
    alone.wait_logged("daemon_unhealthy", device=FOUR[0])
    assert alone.ask(FOUR[0]) == ""
    for number, address in enumerate(FOUR[1:], start=1):
        assert alone.ask(address) == _socket(alone, number)
    assert alone.get("/readyz")[0] == 200
    os.kill(hung, signal.SIGCONT)
    alone.wait_answer(FOUR[0], _socket(alone, 0))
    assert len(alone.log.named("daemon_unhealthy")) == 1


def test_few_daemons_start_at_the_same_time_and_one_that_hangs_keeps_none_from_it(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    devices = [f"0000:84:00.{number}" for number in range(8)] + [f"0000:84:01.{number}" for number in range(4)]
    vdpad = next(word.removeprefix("--vdpad=") for word in options if word.startswith("--vdpad="))
    program = run_dir / "program"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *84-00.[0-3]) [ -e {run_dir}/go ] || exec sleep 1000;; esac\nexec {vdpad} "$@"\n'
    )
    program.chmod(0o755)
    write_list(run_dir / "pciList.dat", devices)
    others = [word for word in options if not word.startswith("--vdpad=")]
    with running(run_dir, *others, f"--vdpad={program}", DEVICE) as agent:
        agent.wait_logged("daemon_started", count=4)
        assert {event["device"] for event in agent.log.named("daemon_started")} == set(devices[:4])
        for number, address in enumerate(devices[4:], start=4):
            agent.wait_answer(address, _socket(agent, number))
        most = running_now = 0
        for event in agent.log.events:
            running_now += {"daemon_started": 1, "daemon_running": -1}.get(event["event"], 0)
            most = max(most, running_now)
        assert 4 <= most <= 8  # four that hang, and four more
        (run_dir / "go").touch()
        for address in devices[:4]:
            os.kill(_pid(agent, address), signal.SIGKILL)
        for number, address in enumerate(devices[:4]):
            agent.wait_answer(address, _socket(agent, number))


def test_a_program_that_goes_away_stops_no_neighbour(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:2])
    vdpad = next(word.removeprefix("--vdpad=") for word in options if word.startswith("--vdpad="))
    program = run_dir / "vdpad"
    program.symlink_to(vdpad)
    others = [word for word in options if not word.startswith("--vdpad=")]
    with running(run_dir, *others, f"--vdpad={program}", DEVICE) as agent:
        agent.wait_logged("device_ready", count=2)
        second = _pid(agent, FOUR[1])
        program.unlink()
        os.kill(_pid(agent, FOUR[0]), signal.SIGKILL)
        agent.wait_logged("daemon_not_started", device=FOUR[0])
        assert agent.ask(FOUR[1]) == _socket(agent, 1)
        program.symlink_to(vdpad)
        agent.wait_answer(FOUR[0], _socket(agent, 0))
        assert _pid(agent, FOUR[1]) == second


def test_a_program_that_was_never_there_ends_the_agent(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    agent = AgentProcess(run_dir, ["--simulate", f"--vdpad={run_dir}/absent", DEVICE], {})
    try:
        assert agent.process.wait(20) == 3
    finally:
        agent.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_daemon_outlives_the_agent(run_dir: Path, options: tuple[str, ...], number: signal.Signals) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    agent = AgentProcess(run_dir, [*options, DEVICE], {})
    try:
        agent.wait_logged("device_ready", count=4)
        if number is signal.SIGTERM:
            assert agent.stop() == 0
            assert {event["reason"] for event in agent.log.named("daemon_ended")} == {"exit code 0"}
            assert not list((run_dir / "vhost").iterdir())
            assert not processes_of(run_dir)
    finally:
        agent.kill()
    eventually("the end of all daemons", lambda: not processes_of(run_dir))
    with running(run_dir, *options, DEVICE) as again:
        again.wait_answer(FOUR[3], _socket(again, 3))


def test_status_top_and_doctor_speak_of_each_daemon(alone: AgentProcess) -> None:
    def shown(*words: str) -> str:
        command = [sys.executable, "-m", "vdpa_agent", *words, f"--address={alone.listen}"]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout

    assert "daemon      running, 4 of 4 run, one for each device" in shown("status")
    status = json.loads(shown("status", "--output=json"))
    assert {address: daemon["pid"] for address, daemon in status["daemons"].items()} == {
        address: _pid(alone, address) for address in FOUR
    }
    assert "daemon running, 4 of 4 run, one for each device, 0 restarts" in shown("top", "--once")
    assert "runs, one of 4, one for each device; " in shown("doctor")
    assert alone.metric("vdpa_agent_daemons", state="running") == 4
    assert alone.metric("vdpa_agent_daemon_up") == alone.metric("vdpa_agent_daemon_ready") == 1


def test_any_other_program_serves_all_devices_and_says_so(run_dir: Path) -> None:
    command = [sys.executable, "-m", "vdpa_agent", "run", DEVICE, "--daemon-command=sleep 1", f"--listen={run_dir}/s"]
    refused = subprocess.run(command, stderr=subprocess.PIPE, check=False, text=True)
    assert refused.returncode == 2
    assert "--isolation device is a way to run vdpad, drop it or --daemon-command" in refused.stderr
