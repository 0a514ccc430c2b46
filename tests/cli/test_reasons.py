"""Why there is no answer, no socket or no device, in words that say what to do."""

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cli.agents import answering
from tests.processes import mapping_text, running, write_list
from vdpa_agent.serve.pb import device_service_pb2 as pb

_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def _command(*arguments: str, under: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*under, sys.executable, "-m", "vdpa_agent", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _ended(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(path))


def _below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "no such file or directory; is it running? see --address"),
        (_ended, "nobody listens on that socket any more, start the agent again; see its log"),
        (Path.touch, "that is a file and no socket; see --address"),
        (Path.mkdir, "that is a directory, name the socket in it; see --address"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links; is it running? see --address"),
        (_below_a_file, "not a directory; see --address"),
    ],
)
def test_no_agent(run_dir: Path, make: Callable[[Path], None], said: str) -> None:
    path = run_dir / "below" / "s"
    path.parent.mkdir()
    make(path)
    for command in (["health"], ["get", "82:00.2"], ["watch"], ["top", "--once"]):
        result = _command(*command, f"--address={path}")
        assert (result.returncode, result.stdout) == (5, "")
        assert result.stderr == f"vdpa-agent: no agent answers at {path}: {said}\n"


def test_a_socket_of_another_kind(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(run_dir / "s"))
        result = _command("status", f"--address={run_dir / 's'}")
    assert (result.returncode, "that is a socket of another kind; see --address" in result.stderr) == (5, True)


def test_a_user_who_may_not(run_dir: Path) -> None:
    run_dir.chmod(0o755)
    with running(run_dir, "--example-data") as agent:
        closed = _command("health", f"--address={agent.listen}", under=_NOBODY)
    assert closed.returncode == 5
    assert closed.stderr == (
        f"vdpa-agent: {agent.listen}: permission denied: run as root, or have the agent started"
        " with --listen-mode or --listen-group, and --allow-uid or --allow-gid\n"
    )
    with running(run_dir, "--example-data", "--listen-mode=0666") as agent:
        refused = _command("health", f"--address={agent.listen}", under=_NOBODY)
    assert refused.returncode == 5
    assert refused.stderr.startswith(f"vdpa-agent: the agent at {agent.listen} refused: PERMISSION_DENIED: ")
    assert refused.stderr.endswith("; run as root, or have the agent started with --allow-uid or --allow-gid\n")


def test_a_device_that_failed(run_dir: Path) -> None:
    failed = pb.Device(pci_address="0000:82:00.2", state=pb.DEVICE_STATE_FAILED, reason="no driver; bind one")
    starting = pb.Device(pci_address="0000:82:00.3", state=pb.DEVICE_STATE_STARTING)
    with answering(run_dir / "s", [failed, starting], pb.GetStatusResponse(role=pb.ROLE_MANAGING)):
        for output in ("table", "json", "wide"):
            got = _command("get", "82:00.2", "82:00.3", "82:00.7", f"--address={run_dir / 's'}", "-o", output)
            assert got.returncode == 4
            assert got.stderr == (
                "vdpa-agent: no live socket for 0000:82:00.2: it is failed: no driver; bind one;"
                " no live socket for 0000:82:00.3: it is starting;"
                " no live socket for 0000:82:00.7: it is not in the device list; see vdpa-agent status\n"
            )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            pb.GetStatusResponse(
                role=pb.ROLE_WAITING, device_list_problem="it is a FIFO", mapping_problem="it is torn"
            ),
            "no list was read yet: device list: it is a FIFO, mapping: it is torn",
        ),
        (
            pb.GetStatusResponse(role=pb.ROLE_MANAGING, device_list_problem="line 3 is wrong", mapping_problem="no"),
            "it is not in the device list, whose present content does not count: line 3 is wrong",
        ),
        (pb.GetStatusResponse(role=pb.ROLE_SERVING, device_list_problem="no"), "it is not in the mapping"),
    ],
)
def test_a_device_of_no_list(run_dir: Path, status: pb.GetStatusResponse, said: str) -> None:
    with answering(run_dir / "s", [], status):
        got = _command("get", "82:00.2", f"--address={run_dir / 's'}")
    assert (got.returncode, got.stdout) == (4, "ADDRESS       SOCKET\n0000:82:00.2  -\n")
    assert got.stderr == f"vdpa-agent: no live socket for 0000:82:00.2: {said}; see vdpa-agent status\n"


@pytest.mark.parametrize("output", ["table", "json", "wide"])
def test_an_agent_without_a_device_service(run_dir: Path, output: str) -> None:
    with answering(run_dir / "s", [pb.Device(pci_address="0000:82:00.2", socket_path="/v/a")]):
        got = _command("get", "82:00.2", "82:00.3", f"--address={run_dir / 's'}", "-o", output)
    assert (got.returncode, "/v/a" in got.stdout) == (4, True)
    assert got.stderr == "vdpa-agent: no live socket for 0000:82:00.3; see vdpa-agent status\n"


def test_a_real_agent_from_no_list_to_one(run_dir: Path) -> None:
    with running(run_dir) as agent:
        where = f"--address={agent.listen}"
        assert "no list was read yet: device list: the file is not there" in _command("get", "82:00.7", where).stderr
        empty = _command("list", where, "-o", "json")
        assert (empty.returncode, empty.stdout) == (0, "[]\n")
        assert empty.stderr == (
            f"vdpa-agent: no devices: the agent waits for a device list at {agent.pci_list}, or a mapping at"
            f" {agent.socket_list}; see vdpa-agent doctor\n"
        )
        assert f"fix: start the daemon that writes {agent.socket_list}\n" in _command("status", where).stdout
        agent.socket_list.write_text(mapping_text({"0000:82:00.2": "/v/a"}))
        agent.wait_answer("0000:82:00.2", "/v/a")
        assert "82:00.7: it is not in the mapping;" in _command("get", "82:00.7", where).stderr
        assert "fix:" not in _command("status", where).stdout  # that there is no device list is as it should be
        assert _command("list", where).stderr == ""
        agent.socket_list.write_text("{}")
        agent.wait_logged("file_refused")
        assert f"fix: change {agent.socket_list} as the reason says\n" in _command("status", where).stdout


def test_a_list_without_a_device(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", [])
    with running(run_dir, "--simulate") as agent:
        agent.wait_logged("file_loaded")
        said = _command("list", f"--address={agent.listen}").stderr
        assert said == "vdpa-agent: no devices: the device list names none; see vdpa-agent doctor\n"


def test_what_is_degraded_and_what_is_waited_for(run_dir: Path) -> None:
    answer = pb.GetStatusResponse(
        role=pb.ROLE_MANAGING,
        ready=True,
        degraded_reasons=["82:00.2 has no driver", "82:00.3 is away"],
        waiting_for="rain",
    )
    with answering(run_dir / "s", [], answer):
        where = f"--address={run_dir / 's'}"
        status = _command("status", where).stdout.splitlines()
        doctor = _command("doctor", where, "0000:82:00.7").stdout.splitlines()
        none = _command("list", where).stderr
    assert [line.split(None, 1)[1] for line in status if line.startswith("degraded")] == list(answer.degraded_reasons)
    assert [line for line in status if line.startswith("waiting for")] == ["waiting for  rain"]
    agent = [line.split(None, 2) for line in doctor if line.split()[1:2] == ["agent"]]
    assert [words[0] for words in agent] == ["ok", "doubt", "doubt", "doubt"]  # none of it blocks another device
    assert [words[2] for words in agent[1:]] == [*answer.degraded_reasons, "it waits for rain"]
    assert none == "vdpa-agent: no devices: the agent waits for rain; see vdpa-agent doctor\n"


@pytest.mark.parametrize(("option", "value"), [((), "running"), (("--ready-when=all-devices",), "all-devices")])
def test_what_readiness_takes_is_a_setting(run_dir: Path, option: tuple[str, ...], value: str) -> None:
    with running(run_dir, "--example-data", *option) as agent:
        shown = _command("status", "-o", "wide", f"--address={agent.listen}").stdout
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("--ready-when")] == [value]
