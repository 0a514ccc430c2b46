"""Options, environment and their errors."""

import argparse
from pathlib import Path

import pytest

from vdpa_agent.cli.parser import build_parser
from vdpa_agent.config import DaemonMode, HostPort, Memory


def _refusal(capsys: pytest.CaptureFixture[str], argv: list[str], environment: dict[str, str]) -> str:
    with pytest.raises(SystemExit) as end:
        build_parser(environment).parse_args(argv)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_the_command_line_wins_over_the_environment_over_the_default() -> None:
    environment = {"VDPA_AGENT_MEMORY": "none", "VDPA_AGENT_PCI_LIST": "/e", "VDPA_AGENT_SIMULATE": "1"}
    options = build_parser(environment).parse_args(["run", "--pci-list=/c"])
    assert (options.memory, options.pci_list, options.simulate) == (Memory.NONE, Path("/c"), True)
    assert (options.daemon, options.socket_mode, options.stop_grace) == (DaemonMode.AUTO, 0o660, 5.0)


def _options(command: str) -> list[argparse.Action]:
    commands = next(action for action in build_parser({})._actions if isinstance(action, argparse._SubParsersAction))
    return [action for action in commands.choices[command]._actions if action.option_strings and action.dest != "help"]


@pytest.mark.parametrize("command", ["run", "get", "list", "watch", "status", "health", "top", "doctor"])
def test_an_empty_variable_is_none(command: str) -> None:
    empty = {f"VDPA_AGENT_{action.dest.upper()}": "" for action in _options(command)}
    words = [command, *(["82:00.2"] if command == "get" else [])]
    assert build_parser(empty).parse_args(words) == build_parser({}).parse_args(words)


@pytest.mark.parametrize("text", ["660", "0660", "0o660", "0777", "600"])
def test_modes(text: str) -> None:
    assert build_parser({}).parse_args(["run", f"--listen-mode={text}"]).listen_mode == int(text, 8)


def test_users_and_groups_may_be_named() -> None:
    options = build_parser({"VDPA_AGENT_ALLOW_UID": "root 7"}).parse_args(["run", "--allow-gid=root", "--allow-gid=9"])
    assert (options.allow_uid, options.allow_gid) == ([0, 7], [0, 9])


@pytest.mark.parametrize("text", ["/s", "unix:/s", "unix:///s"])
def test_a_socket_may_be_written_as_an_address(text: str) -> None:
    assert build_parser({}).parse_args(["run", f"--listen={text}"]).listen == Path("/s")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9917", "127.0.0.1", 9917),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
    ],
)
def test_where_http_is_served(text: str, host: str, port: int) -> None:
    listen = build_parser({"VDPA_AGENT_HTTP_LISTEN": text}).parse_args(["run"]).http_listen
    assert listen == HostPort(host, port)
    assert str(listen) == text


def test_http_is_not_served_unless_that_is_asked_for() -> None:
    for environment in ({}, {"VDPA_AGENT_HTTP_LISTEN": ""}):
        assert build_parser(environment).parse_args(["run"]).http_listen is None


@pytest.mark.parametrize(
    "text", ["9917", ":9917", "::1:9917", "[::1]", "a:b", "127.0.0.1:65536", "http://a:1", "a b:1"]
)
def test_where_http_cannot_be_served(capsys: pytest.CaptureFixture[str], text: str) -> None:
    said = _refusal(capsys, ["run", f"--http-listen={text}"], {})
    assert f"argument --http-listen: '{text}' is not HOST:PORT such as 127.0.0.1:9917 or [::1]:9917" in said


@pytest.mark.parametrize(
    ("argv", "environment", "said"),
    [
        (["run", "--daemon=foo"], {}, "argument --daemon: 'foo' is not known, give one of auto, none, vdpad"),
        (["run"], {"VDPA_AGENT_MEMORY": "x"}, "VDPA_AGENT_MEMORY in the environment"),
        (["run"], {"VDPA_AGENT_SIMULATE": "x"}, "VDPA_AGENT_SIMULATE: 'x' is neither true nor false"),
        (["run", "--socket-mode=888"], {}, "'888' is not a mode such as 0660 (or"),
        (["run", "--socket-mode=432"], {}, "'432' is mode 0432, which keeps the owner itself from reading or writing;"),
        (["run", "--listen-mode=432"], {}, "432 is 0660 in decimal, write 0660, in YAML in quotes"),
        (["run", "--listen-mode=384"], {}, "'384' is not a mode such as 0660; 384 is 0600 in decimal"),
        (["run"], {"VDPA_AGENT_SOCKET_MODE": "511"}, "511 is 0777 in decimal"),
        (["run", "--socket-mode=0460"], {}, "'0460' is mode 0460, which keeps the owner itself"),
        (["run", "--socket-mode=0"], {}, "'0' is mode 0000, which keeps the owner itself from reading or writing (or"),
        (["run", "--socket-mode=1777"], {}, "'1777' is not a mode such as 0660 (or"),
        (["run", "--socket-mode=-1"], {}, "'-1' is not a mode such as 0660 (or"),
        (["run", "--stop-grace=-1"], {}, "'-1' is not a number of seconds"),
        (["run", "--max-connections=0"], {}, "'0' is not a whole number from 1 to 1000000000"),
        (["run", "--allow-uid=nobody-at-all"], {}, "there is no user 'nobody-at-all' here, give a number"),
        (["run", "--allow-uid=4294967295"], {}, "4294967295 is not the number of a user, which is at most 4294967294"),
        (["run", "--hold-timeout=-1"], {}, "'-1' is not a number of seconds from 0 to 86400"),
        (["run", "--drain-timeout=0"], {}, "'0' is not a number of seconds above 0 and up to 86400"),
        (["run", "--listen="], {}, "the path is empty, give one from the root"),
        (["run", "--pci-list="], {}, "the path is empty, give one from the root"),
        (["--nonsense"], {}, "unrecognized arguments: --nonsense"),
        (["run"], {"VDPA_AGENT_ALLOW_GID": "0 x y"}, "VDPA_AGENT_ALLOW_GID: there is no group 'x' here"),
        (["run", "--sim"], {}, "unrecognized arguments: --sim"),
        (["get"], {}, "the following arguments are required: ADDRESS"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], argv: list[str], environment: dict[str, str], said: str) -> None:
    assert said in _refusal(capsys, argv, environment)
