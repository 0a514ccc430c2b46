"""Who root of the node is, where the agent runs in a user namespace."""

import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vdpa_agent.cli.commands import warn_of_user_namespace
from vdpa_agent.config import LimitsConfig
from vdpa_agent.node.process import uid_of_root

_OVERFLOW = 65534


def _proc(directory: Path, uid_map: str) -> Path:
    for name, text in (("self/uid_map", uid_map), ("sys/kernel/overflowuid", f"{_OVERFLOW}\n")):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize(
    ("uid_map", "uid"),
    [
        ("         0          0 4294967295\n", 0),
        ("         0     100000      65536\n", _OVERFLOW),
        ("         0     100000      65536\n     70000          0          1\n", 70000),
        ("         0          1          1\n", _OVERFLOW),
        ("", _OVERFLOW),
    ],
)
def test_the_number_of_root(tmp_path: Path, uid_map: str, uid: int) -> None:
    assert uid_of_root(_proc(tmp_path, uid_map)) == uid


def test_a_map_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="self/uid_map"):
        uid_of_root(_proc(tmp_path, "0 1\n"))


def test_a_real_namespace() -> None:
    program = "from vdpa_agent.node.process import uid_of_root; print(uid_of_root())"
    for option, uid in (("--map-user=7", 7), ("--user", _OVERFLOW)):
        assert int(subprocess.check_output(["unshare", "--user", option, sys.executable, "-c", program])) == uid


def test_root_as_a_stranger_is_a_warning_unless_it_is_let_in(tmp_path: Path) -> None:
    strange = _proc(tmp_path, "0 100000 65536\n")
    with capture_logs() as events:
        warn_of_user_namespace(LimitsConfig(), strange)
        warn_of_user_namespace(LimitsConfig(allow_uids=frozenset({_OVERFLOW})), strange)
        warn_of_user_namespace(LimitsConfig(), _proc(tmp_path / "usual", "0 0 4294967295\n"))
        warn_of_user_namespace(LimitsConfig(), tmp_path / "nowhere")
    assert [(event["event"], event["uid"]) for event in events] == [("root_is_a_stranger", _OVERFLOW)]
    assert f"--allow-uid {_OVERFLOW}" in events[0]["remedy"]
