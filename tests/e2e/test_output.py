"""What the daemon prints, and who reads what the agent prints: neither makes the other wait."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.processes import PATIENCE_S, AgentProcess, JsonLines, eventually, running, write_atomically

FAKE: Final = Path(__file__).parent.parent / "daemon" / "fake_vdpad.py"
DEVICE: Final = "0000:82:00.2"
VDPA_AGENT: Final = (sys.executable, "-m", "vdpa_agent")


def _environment(fault: str) -> dict[str, str]:
    return {"FAKE_VDPAD": fault}


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _answers_until_printed(agent: AgentProcess, text: str) -> int:
    """Asks over and over until the daemon has printed something; returns how often it was answered."""
    answers = 0
    while not any(text in event["line"] for event in agent.log.named("daemon_output")):
        agent.ask(DEVICE)
        answers += 1
    return answers


def test_a_burst_of_200_mb_is_counted_and_answers_go_on(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    with running(run_dir, "--simulate", f"--vdpad={FAKE}", environment=_environment("burst")) as agent:
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))
        assert _answers_until_printed(agent, "the burst took") >= 10  # 200 MB take a second or more
        assert _rss_bytes(agent.process.pid) < 100_000_000
        agent.wait_logged("daemon_output_dropped")
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        last_lines = agent.wait_logged("daemon_ended")["last_lines"]
        assert len(last_lines) == 20
        assert last_lines[-1].startswith("warning: the burst took")
        dropped = sum(event["bytes"] for event in agent.log.named("daemon_output_dropped"))
        assert dropped > 195_000_000


def test_the_last_lines_of_a_chatty_daemon_that_is_killed_are_its_very_last(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    with running(run_dir, "--simulate", f"--vdpad={FAKE}", environment=_environment("chatty")) as agent:
        agent.wait_answer(DEVICE, str(run_dir / "vhost" / "vdpa-0"))
        agent.wait_logged("daemon_output_dropped")
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        numbers = [int(line.split()[-1]) for line in agent.wait_logged("daemon_ended")["last_lines"]]
        assert numbers == list(range(numbers[0], numbers[0] + 20))


def test_an_agent_whose_log_nobody_reads_answers_and_keeps_its_daemon_going(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    socket = run_dir / "vdpa.sock"
    process = subprocess.Popen(
        [
            *(*VDPA_AGENT, "run", "--simulate", f"--vdpad={FAKE}", f"--listen={socket}"),
            f"--pci-list={run_dir / 'pciList.dat'}",
            f"--socket-list={run_dir / 'socketList.dat'}",
            f"--socket-dir={run_dir / 'vhost'}",
            "--log-format=json",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **_environment("burst,chatty")},  # noqa: TID251 - what a service manager hands over
    )
    try:
        assert process.stderr is not None
        eventually("the socket", socket.exists)

        def answered() -> bool:
            asked = subprocess.run(
                [*VDPA_AGENT, "get", DEVICE, f"--address={socket}", "--output=json"],
                capture_output=True,
                text=True,
                check=False,
                timeout=20,
            )
            return str(run_dir / "vhost" / "vdpa-0") in asked.stdout

        # A pipe holds 64 KiB: the daemon's first lines have filled it. 1 MiB more are queued after some seconds.
        eventually("an answer", answered)
        for _ in range(10):
            assert answered()
        assert _rss_bytes(process.pid) < 100_000_000
        log = JsonLines(process.stderr)
        log.wait(process, "log_lines_dropped" if log.named("log_lines_dropped") else "daemon_output_dropped")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        log.end()
        assert not log.named("not_json")
        assert log.events[-1]["event"] == "agent_stopped"
    finally:
        process.kill()
        process.wait()


def test_an_agent_whose_log_nobody_reads_stops(run_dir: Path) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    while True:
        try:
            os.write(write_end, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(write_end, True)
    socket = run_dir / "vdpa.sock"
    process = subprocess.Popen(
        [*VDPA_AGENT, "run", "--example-data", f"--listen={socket}"], stderr=write_end, stdout=subprocess.DEVNULL
    )
    os.close(write_end)
    try:
        eventually("the socket", socket.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read_end)


def test_why_the_agent_failed_comes_after_all_log_lines(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    agent = AgentProcess(run_dir, ["--simulate", "--vdpad=no-such-vdpad"], {})
    assert agent.process.wait(20) == 3
    agent.kill()
    assert agent.log.raw[-1].startswith("vdpa-agent: no-such-vdpad is not an executable program")
    assert [event["event"] for event in agent.log.events].count("not_json") == 1


def test_the_output_of_a_command_carries_its_name(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    program = run_dir / "my-daemon"
    program.write_text("#!/bin/sh\necho hello\nexec sleep 1000\n")
    program.chmod(0o755)
    with running(run_dir, f"--daemon-command={program} {{devices}}") as agent:
        assert agent.wait_logged("daemon_output")["source"] == "my-daemon"


def test_lines_that_repeat_of_a_device_are_drawn_together(run_dir: Path) -> None:
    write_atomically(run_dir / "pciList.dat", f"{DEVICE}\n")
    script = f"n=0; while :; do n=$((n+1)); echo {DEVICE}: no room for $n; sleep 0.01; done"
    with running(run_dir, f"--daemon-command=sh -c '{script}'") as agent:
        repeated = agent.wait_logged("daemon_output_repeated", count=2, device=DEVICE)
        assert repeated["lines"] > 1
        logged = len(agent.log.named("daemon_output"))
        assert logged <= 5 * (len(agent.log.named("daemon_output_repeated")) + 1)
