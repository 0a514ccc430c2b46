"""The client commands against a running agent, and without one."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S, eventually, mapping_text, running, write_atomically

_INTERRUPTIBLE = ("env", "--default-signal=INT")
"""Undoes what a shell does to the commands that it starts in the background, such as `make test &`."""


def _command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vdpa_agent", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_get_and_list(run_dir: Path) -> None:
    with running(run_dir) as agent:
        write_atomically(agent.socket_list, mapping_text({"0000:82:00.2": "/v/a", "0000:AF:00.3": "/v/b"}))
        agent.wait_answer("0000:82:00.2", "/v/a")
        where = f"--address={agent.listen}"
        got = _command("get", "AF:00.3", "0000:82:00.2", where)
        assert (got.returncode, got.stderr) == (0, "")
        assert got.stdout == "ADDRESS       SOCKET\n0000:af:00.3  /v/b\n0000:82:00.2  /v/a\n"
        missing = _command("get", "0000:82:00.7", where, "-o", "json")
        assert missing.returncode == 4
        assert json.loads(missing.stdout)[0]["pci_address"] == "0000:82:00.7"
        assert "no live socket for 0000:82:00.7" in missing.stderr
        listed = _command("list", where)
        assert (listed.returncode, listed.stderr) == (0, "")
        assert listed.stdout == (
            "ADDRESS       STATE  SOCKET  FRONT END\n0000:82:00.2  ready  /v/a    -\n0000:af:00.3  ready  /v/b    -\n"
        )
        wide = _command("list", where, "-o", "wide")
        assert "the socket file /v/a is gone" in wide.stdout
        assert [device["pci_address"] for device in json.loads(_command("list", where, "-o", "json").stdout)] == [
            "0000:82:00.2",
            "0000:af:00.3",
        ]


def test_status_and_health(run_dir: Path) -> None:
    with running(run_dir) as agent:
        where = f"--address={agent.listen}"
        waiting = _command("status", where)
        assert (waiting.returncode, waiting.stderr) == (0, "")
        assert re.search(r"^role +waiting$", waiting.stdout, re.MULTILINE)
        assert re.search(r"^ready +yes$", waiting.stdout, re.MULTILINE)
        agent.socket_list.write_text("[{")
        eventually("the refusal", lambda: _command("health", where).returncode == 5)
        refused = f"no mapping is loaded: {agent.socket_list}: line 1 column 3: not JSON"
        assert refused in _command("status", where).stdout
        write_atomically(agent.socket_list, mapping_text({"0000:82:00.2": "/v/a"}))
        agent.wait_answer("0000:82:00.2", "/v/a")
        assert json.loads(_command("status", where, "-o", "json").stdout)["ready"] is True
        assert "--socket-list" in _command("status", where, "-o", "wide").stdout
        ready = _command("health", "vdpadpdk.VdpaDpdk", where, "-o", "json")
        assert (ready.returncode, json.loads(ready.stdout)["status"]) == (0, "SERVING")
        assert _command("health", "nobody", where).returncode == 5


def test_health_waits_for_an_agent_that_is_not_there_yet_or_not_ready(run_dir: Path) -> None:
    where = f"--address={run_dir}/vdpa.sock"
    assert _command("health", where, "--wait=0.2").returncode == 5
    waiting = subprocess.Popen(
        [sys.executable, "-m", "vdpa_agent", "health", where, f"--wait={PATIENCE_S}"], stdout=subprocess.PIPE, text=True
    )
    (run_dir / "socketList.dat").write_text("[{")
    with running(run_dir) as agent:
        eventually("the refusal", lambda: _command("health", where).returncode == 5)
        assert waiting.poll() is None
        write_atomically(agent.socket_list, mapping_text({"0000:82:00.2": "/v/a"}))
        assert waiting.communicate(timeout=PATIENCE_S)[0] == "SERVING\n"
        assert waiting.returncode == 0


def test_watch(run_dir: Path) -> None:
    with running(run_dir) as agent:
        write_atomically(agent.socket_list, mapping_text({"0000:82:00.2": "/v/a"}))
        agent.wait_answer("0000:82:00.2", "/v/a")
        process = subprocess.Popen(
            [*_INTERRUPTIBLE, sys.executable, "-m", "vdpa_agent", "watch", f"--address={agent.listen}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "0000:82:00.2  ready  /v/a\n"
            write_atomically(agent.socket_list, "[]")
            assert process.stdout.readline() == "0000:82:00.2  gone\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, said) == (130, "")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = _command("completion", shell)
    assert (script.returncode, script.stderr) == (0, "")
    assert "--hold-timeout" in script.stdout or "hold-timeout" in script.stdout


def test_no_command_imports_more_than_it_needs() -> None:
    def imported(*arguments: str) -> set[str]:
        program = f"import sys; sys.argv[1:] = {list(arguments)!r}\nfrom vdpa_agent.cli import main\ntry: main()\n"
        program += "finally: print(*sys.modules, file=sys.stderr)"
        words = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        ).stderr.split()
        return {word.partition(".")[0] for word in words}

    heavy = {"asyncio", "grpclib", "google", "structlog", "watchfiles", "json", "shtab"}
    assert not imported("--help") & (heavy - {"json"})
    for command in (["get", "82:00.2"], ["top", "--once"]):
        assert not imported(*command, "--address=/nowhere/s") & {"structlog", "watchfiles", "shtab", "curses", "ssl"}
    agent = imported("run", "--example-data", "--listen=/dev/null/s")
    assert "grpclib" in agent
    assert not agent & {"watchfiles", "prometheus_client", "h11", "opentelemetry", "shtab", "ssl"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "ens1f0"], 2, "'ens1f0' is not a PCI address"),
        (["get", "82:00.2", "--address=relative"], 2, "--address relative is relative"),
        (["status", "--address=/nowhere/s"], 5, "no agent answers at /nowhere/s"),
        (["get", "82:00.2", "--address=/nowhere/s"], 5, "no agent answers at /nowhere/s: no such file or directory"),
        (["doctor", "ens1f0"], 2, "'ens1f0' is not a PCI address"),
        (["doctor", "--sysfs=relative"], 2, "--sysfs relative is relative"),
        (["run", "--socket-dir=/" + "x" * 100], 2, "is too long: a socket in it would exceed the 107 bytes"),
        (["run", "--socket-list=/a", "--pci-list=/a"], 2, "--socket-list and --pci-list are both /a"),
        (["run", "--listen=/a", "--pci-list=/a"], 2, "--listen and --pci-list are both /a, give them two names"),
        (
            ["run", "--kubelet-dir=/a"],
            2,
            "--kubelet-dir offers the pools of --resource-config to the kubelet, give one",
        ),
        (
            ["run", "--device-info-dir=/a"],
            2,
            "--device-info-dir is about the devices that the kubelet hands out, give --kubelet-dir",
        ),
        (["run", "--listen=/a", "--socket-dir=/a"], 2, "--listen and --socket-dir are both /a, give them two names"),
        (["run", "--socket-list=/"], 2, "--socket-list / is a directory, name a file in it"),
        ([], 2, "usage: vdpa-agent"),
        (["run", "--listen=/" + "x" * 110], 2, "is longer than 103 bytes"),
        (["run", "--example-data", "--daemon=vdpad"], 2, "drop it or --daemon vdpad"),
    ],
)
def test_refusals(arguments: list[str], code: int, said: str) -> None:
    result = _command(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_an_agent_that_hangs_is_not_waited_for(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(run_dir / "s"))
        silent.listen()
        result = _command("get", "82:00.2", f"--address={run_dir / 's'}", "--timeout=0.3")
    assert (result.returncode, "did not answer within 0.3 s" in result.stderr) == (5, True)


def test_help_and_version() -> None:
    for command in ((), ("run",), ("get",), ("watch",), ("top",), ("doctor",)):
        result = _command(*command, "--help")
        assert result.returncode == 0
        assert "exit codes:" in result.stdout
    assert _command("--version").stdout == "vdpa-agent 0.1.0\n"
