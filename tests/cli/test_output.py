"""What commands print: nothing that a terminal would obey, and one line where it cannot be written."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.cli.agents import answering
from vdpa_agent.serve.pb import device_service_pb2 as pb

_BAD = "x\x1b[2J\x1b]0;t\x07\nforged\r \u202e \x85 \u2028\u2029 \x9b31m \x7f \u200b"
_SHOWN = r"x\x1b[2J\x1b]0;t\x07\nforged\r \u202e \x85 \u2028\u2029 \x9b31m \x7f \u200b"

_COMMANDS = [
    (["get", "82:00.2"], 0),
    (["get", "82:00.2", "-o", "wide"], 0),
    (["get", "82:00.3"], 4),
    (["list", "-o", "wide"], 0),
    (["watch"], 5),
    (["status", "-o", "wide"], 0),
    (["health", _BAD], 5),
    (["top", "--once", "--interval=0.01"], 0),
    (["doctor"], 1),
]
_OF_NO_AGENT = [["--help"], ["run", "--help"], ["--version"], ["completion", "bash"]]


def _command(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vdpa_agent", *arguments],
        stdout=stdout,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=60,
        # As for users: what is printed waits for the end in a buffer.
        env={**os.environ, "PYTHONUNBUFFERED": "", **(environment or {})},  # noqa: TID251 - what a shell would hand over
    )


@pytest.fixture
def hostile(run_dir: Path) -> Iterator[str]:
    """The option that names an agent whose every word is hostile."""
    devices = [
        pb.Device(pci_address=address, socket_path=path, state=pb.DEVICE_STATE_FAILED, reason=_BAD, driver=_BAD)
        for address, path in (("0000:82:00.2", _BAD), ("0000:82:00.3", ""))
    ]
    status = pb.GetStatusResponse(
        version=_BAD,
        role=pb.ROLE_MANAGING,
        daemon=pb.DaemonStatus(last_exit=_BAD, unhealthy=_BAD),
        not_ready_reasons=[_BAD],
        device_list_problem=_BAD,
        mapping_problem=_BAD,
        settings={_BAD: _BAD, "pci-list": "/" + _BAD},
    )
    with answering(run_dir / "s", devices, status):
        yield f"--address={run_dir / 's'}"


def _is_plain(text: str) -> bool:
    return text.replace("\n", "").isprintable() and not any(line.startswith("forged") for line in text.split("\n"))


@pytest.mark.parametrize(
    ("arguments", "code"), _COMMANDS, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_no_word_of_an_agent_moves_the_cursor(hostile: str, arguments: list[str], code: int) -> None:
    result = _command([*arguments, hostile])
    assert (result.returncode, "Traceback" in result.stderr) == (code, False), result.stderr
    assert _SHOWN in result.stdout + result.stderr
    assert _is_plain(result.stdout)
    assert _is_plain(result.stderr)


@pytest.mark.parametrize("command", ["list", "status", "doctor", "watch"])
def test_json_says_the_same_in_printable_ascii(hostile: str, command: str) -> None:
    said = _command([command, "-o", "json", hostile]).stdout
    assert said.isascii()
    assert _is_plain(said)
    assert _BAD in json.dumps(json.loads(said.splitlines()[0] if command == "watch" else said), ensure_ascii=False) or (
        json.dumps(_BAD)[1:-1] in said
    )


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["run", f"--memory={_BAD}"], {}),
        (["run", f"--socket-mode={_BAD}"], {}),
        (["run", f"--devargs={_BAD}"], {}),
        (["run", f"--listen=/{_BAD}{'x' * 100}"], {}),
        (["run", f"--{_BAD}"], {}),
        (["run"], {"VDPA_AGENT_SIMULATE": _BAD}),
        (["run"], {"VDPA_AGENT_ALLOW_UID": _BAD.replace(" ", "")}),
        (["run"], {"VDPA_AGENT_STOP_GRACE": _BAD}),
        ([_BAD], {}),
        (["list", "-o", _BAD], {}),
        (["completion", _BAD], {}),
        (["get", _BAD], {}),
        (["get", "82:00.2", f"--address={_BAD}"], {}),
        (["health", "x", f"--{_BAD}"], {}),
        (["list", "\udcff", "--address=/nowhere/s"], {}),
        (["list", "--address=/nowhere/\udcff"], {}),
        (["health", "\udcff", "--address=/nowhere/s"], {}),
        (["run"], {"VDPA_AGENT_PCI_LIST": "/\udcff"}),
    ],
)
def test_no_argument_moves_the_cursor(arguments: list[str], environment: dict[str, str]) -> None:
    result = _command(arguments, environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert _is_plain(result.stderr)
    assert "Traceback" not in result.stderr


def test_an_encoding_without_a_letter_gets_an_escape(run_dir: Path) -> None:
    device = pb.Device(pci_address="0000:82:00.2", socket_path="/läuft")
    with answering(run_dir / "s", [device], pb.GetStatusResponse()):
        result = _command(["list", f"--address={run_dir / 's'}"], {"PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert r"/l\xe4uft" in result.stdout


@pytest.mark.parametrize(
    "arguments", [*(command for command, _ in _COMMANDS), *_OF_NO_AGENT, ["list", "-o", "json"]], ids=" ".join
)
def test_a_full_disk_is_one_line(hostile: str, arguments: list[str]) -> None:
    of_an_agent = arguments not in _OF_NO_AGENT
    with Path("/dev/full").open("w") as full:
        result = _command([*arguments, *([hostile] if of_an_agent else [])], stdout=full.fileno())
    assert (result.returncode, result.stderr) == (
        1,
        "vdpa-agent: standard output cannot be written: no space left on device\n",
    )


def test_a_reader_that_went_away_is_no_word_worth(hostile: str) -> None:
    for arguments in (["list", hostile], ["watch", hostile], ["run", "--help"]):
        read_end, write_end = os.pipe()
        os.close(read_end)
        result = _command(arguments, stdout=write_end)
        os.close(write_end)
        assert (result.returncode, result.stderr) == (1, ""), arguments


def test_complaints_that_cannot_be_written_change_no_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        assert _command(["list", "--address=/nowhere/s"], stderr=full.fileno()).returncode == 5
        assert _command(["list", "--no-such-option"], stderr=full.fileno()).returncode == 2


@pytest.mark.parametrize(("closed", "code"), [(">&-", 1), ("2>&-", 0), ("<&- 2>&-", 0), ("<&- >&- 2>&-", 1)])
def test_standard_descriptors_may_be_closed(hostile: str, closed: str, code: int) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "vdpa_agent", "list", hostile]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == code
    assert (_SHOWN[:5] in result.stdout) == (code == 0)
    assert "Traceback" not in result.stderr
