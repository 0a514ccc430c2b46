"""vdpad's command line: what it takes its memory from, on nodes that are files."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.trees import Tree
from vdpa_agent.config import DaemonConfig, Memory
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.daemon.vdpad import Vdpad
from vdpa_agent.files.names import NamesFile
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.loaded import Loaded


def _argv(config: DaemonConfig, socket_list: Path) -> list[str]:
    steps = DestructiveSteps()
    devices = Devices(
        config,
        wanted=Latest(Loaded()),
        mapping=Latest(Loaded()),
        names=NamesFile(socket_list),
        steps=steps,
        spread=lambda: 0.0,
    )
    return Vdpad(config, socket_list, devices, steps).argv(7)


@pytest.mark.parametrize("memory", list(Memory))
@pytest.mark.parametrize("limit", ["max", "0", ""])
def test_what_it_takes_its_memory_from_is_what_was_asked_for(tmp_path: Path, memory: Memory, limit: str) -> None:
    tree = Tree(tmp_path / "sys")
    if limit:
        tree.hugepages(2048, total=64, free=64)
        tree.hugetlb("2MB.max", limit)
    config = DaemonConfig(memory=memory, sysfs=tree.root, socket_dir=tmp_path / "vhost")
    with capture_logs() as events:
        argv = _argv(config, tmp_path / "socketList.dat")
    # By itself vdpad does not see what the cgroup allows; what a person wants is never changed.
    overridden = memory is Memory.AUTO and limit == "0"
    assert [word for word in argv if word.startswith("--memory")] == [f"--memory={'none' if overridden else memory}"]
    assert [event["event"] for event in events] == (["hugepages_forbidden"] if overridden else [])


def test_what_it_is_told(tmp_path: Path) -> None:
    plain = DaemonConfig(sysfs=tmp_path, socket_dir=tmp_path / "vhost", memory=Memory.NONE, program="/bin/vdpad")
    argv = _argv(plain, tmp_path / "list")
    assert argv == [
        "/bin/vdpad",
        "--control-fd=7",
        f"--socket-list={tmp_path}/list",
        f"--socket-dir={tmp_path}/vhost",
        "--socket-mode=0660",
        "--vhost-mode=server",
        "--memory=none",
        "--log-level=info",
    ]
    other = DaemonConfig(socket_owner="me", socket_group="7", simulate=True, memory=Memory.NONE)
    assert _argv(other, tmp_path / "list")[-3:] == ["--socket-owner=me", "--socket-group=7", "--simulate"]
