"""The client commands against a running agent, and without one."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import mapping_text, running, write_atomically


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
        assert json.loads(missing.stdout) == [{"pciAddress": "0000:82:00.7", "socketpath": ""}]
        assert "no live socket for 0000:82:00.7" in missing.stderr
        listed = _command("list", where, f"--socket-list={agent.socket_list}", "-o", "json")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert json.loads(listed.stdout) == [
            {"pciAddress": "0000:82:00.2", "socketpath": "/v/a"},
            {"pciAddress": "0000:af:00.3", "socketpath": "/v/b"},
        ]
        agent.socket_list.write_text("[{")
        torn = _command("list", where, f"--socket-list={agent.socket_list}")
        assert torn.returncode == 1
        assert torn.stderr.startswith(f"vdpa-agent: {agent.socket_list}: line 1 column")


def test_list_of_nothing(run_dir: Path) -> None:
    with running(run_dir) as agent:
        listed = _command("list", f"--address={agent.listen}", f"--socket-list={agent.socket_list}")
        assert (listed.returncode, listed.stdout) == (0, "ADDRESS  SOCKET\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "ens1f0"], 2, "'ens1f0' is not a PCI address"),
        (["get", "82:00.2", "--address=relative"], 2, "--address relative is relative"),
        (["get", "82:00.2", "--address=/nowhere/s"], 5, "no agent answers at /nowhere/s: no such file or directory"),
        (["run", "--socket-dir=/" + "x" * 100], 2, "is too long: a socket in it would exceed the 107 bytes"),
        (["run", "--socket-list=/a", "--pci-list=/a"], 2, "--socket-list and --pci-list are both /a"),
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
    for arguments in (["--help"], ["run", "--help"], ["get", "--help"], ["list", "--help"]):
        result = _command(*arguments)
        assert result.returncode == 0
        assert "exit codes:" in result.stdout
    assert _command("--version").stdout == "vdpa-agent 0.1.0\n"
