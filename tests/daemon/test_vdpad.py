"""vdpad's command line: what it takes its memory from, on nodes that are files."""

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.trees import VF, Tree
from vdpa_agent.config import DaemonConfig, Memory, SimulatedNetwork
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.names import Names
from vdpa_agent.daemon.vdpad import Vdpad
from vdpa_agent.files.names import NamesFile
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.naming import SocketNaming
from vdpa_agent.model.pci import DeviceList, PciAddress


def _vdpad(config: DaemonConfig, socket_list: Path | None, alone: PciAddress | None = None) -> Vdpad:
    steps = DestructiveSteps()
    wanted: Latest[Loaded[DeviceList]] = Latest(Loaded())
    names = Names(config.socket_naming, wanted=wanted, store=NamesFile(Path("/nowhere/list")), steps=steps)
    directory = SocketDirectory(config.socket_dir, steps, Latest(0))
    devices = Devices(config, wanted=wanted, names=names, directory=directory, repair=None, spread=lambda: 0.0)
    return Vdpad(config, devices=devices, directory=directory, names=names, socket_list=socket_list, alone=alone)


def _argv(config: DaemonConfig, socket_list: Path) -> list[str]:
    return _vdpad(config, socket_list).argv(7)


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
    assert _argv(other, tmp_path / "list")[-4:] == [
        "--socket-owner=me",
        "--socket-group=7",
        "--simulate",
        "--simulate-network=loopback",
    ]
    switched = DaemonConfig(simulate=True, simulate_network=SimulatedNetwork.SWITCH)
    assert _argv(switched, tmp_path / "list")[-1] == "--simulate-network=switch"


@pytest.mark.anyio
async def test_one_that_serves_a_single_device_has_all_for_itself_near_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sys")
    near = max(os.sched_getaffinity(0))
    tree.device(VF, "8086:1889", node=1)
    node = tree.root / "devices/system/node/node1"
    node.mkdir(parents=True)
    (node / "cpulist").write_text(f"{near},{near + 1000}\n")
    config = DaemonConfig(sysfs=tree.root, socket_dir=tmp_path / "vhost", memory=Memory.NONE)
    vdpad = _vdpad(config, None, VF)
    await vdpad.prepare()
    assert vdpad.cpus == frozenset({near})
    argv = vdpad.argv(7)
    assert "--no-socket-list" in argv
    assert argv[-2:] == [f"--lcore={near}", "--file-prefix=vdpad-0000-82-00.2"]


@pytest.mark.anyio
@pytest.mark.parametrize("cpulist", ["", "100000\n", "nonsense\n"])
async def test_one_whose_node_has_no_cpu_for_it_runs_where_it_may(tmp_path: Path, cpulist: str) -> None:
    tree = Tree(tmp_path / "sys")
    tree.device(VF, "8086:1889", node=1)
    if cpulist:
        node = tree.root / "devices/system/node/node1"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(cpulist)
    vdpad = _vdpad(DaemonConfig(sysfs=tree.root, socket_dir=tmp_path / "vhost", memory=Memory.NONE), None, VF)
    await vdpad.prepare()
    assert vdpad.cpus is None
    allowed = sorted(os.sched_getaffinity(0))
    lcores = [word for word in vdpad.argv(7) if word.startswith("--lcore=")]
    assert lcores == [f"--lcore={allowed[2 % len(allowed)]}"]


@pytest.mark.anyio
async def test_a_start_leaves_the_socket_of_a_neighbour_that_does_not_listen_yet(tmp_path: Path) -> None:
    config = DaemonConfig(simulate=True, socket_dir=tmp_path, memory=Memory.NONE)
    for name in ("vdpa-0000:82:00.2", "vdpa-0000:82:00.3"):
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(tmp_path / name))
    steps = DestructiveSteps()
    wanted: Latest[Loaded[DeviceList]] = Latest(Loaded((VF,)))
    names = Names(SocketNaming.PCI, wanted=wanted, store=NamesFile(tmp_path / "list"), steps=steps)
    directory = SocketDirectory(tmp_path, steps, Latest(0))
    devices = Devices(config, wanted=wanted, names=names, directory=directory, repair=None, spread=lambda: 0.0)
    await Vdpad(config, devices=devices, directory=directory, names=names, socket_list=None, alone=VF).prepare()
    assert [path.name for path in tmp_path.glob("vdpa-*")] == ["vdpa-0000:82:00.3"]
