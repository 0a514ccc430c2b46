"""The examples of docs/api.md, run against an agent."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT, AgentProcess, built

PAGE: Final = (ROOT / "docs" / "api.md").read_text()
SOCKET: Final = "/var/run/vdpa/vdpa.sock"
ANSWER: Final = "/var/run/vdpa/vhost/vdpa-3"


def _examples(language: str, agent: AgentProcess) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return [block.replace(SOCKET, str(agent.listen)) for block in blocks]


def _run(*argv: str, cwd: Path | None = None) -> str:
    result = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_grpcurl(agent: AgentProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = built("go/bin/grpcurl", "interop").parent
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    commands = [line for block in _examples("sh", agent) for line in block.splitlines()]
    socket, devices, health = (_run("sh", "-c", command) for command in commands)
    assert ANSWER in socket
    assert devices.count("pci_address") == 16
    assert "SERVING" in health


@pytest.mark.parametrize("number", [0, 1])
def test_python(agent: AgentProcess, number: int) -> None:
    output = _run(sys.executable, "-c", _examples("python", agent)[number])
    assert output.startswith(ANSWER) if number == 0 else len(output.splitlines()) == 16


def test_go(agent: AgentProcess) -> None:
    (example,) = _examples("go", agent)
    own = ROOT / "build" / "go" / "toolchain" / "bin" / "go"
    go = shutil.which("go") if not own.exists() else str(own)
    assert go, "there is no go: run `make interop`"
    module = ROOT / "tests" / "interop" / "go"
    program = agent.directory / "main.go"
    program.write_text(example)
    binary = agent.directory / "example"
    _run(go, "build", "-mod=readonly", "-buildvcs=false", "-o", str(binary), str(program), cwd=module)
    assert _run(str(binary)) == f"{ANSWER}\n"
