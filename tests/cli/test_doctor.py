"""What doctor finds on trees of files, on this machine, and beside a running agent."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.nodes import NOBODY, OTHER, Findings, Node, findings
from tests.processes import AgentProcess, built, mapping_text, running, write_list
from tests.trees import PF, VF

IOMMU_ON: Final = "turn the IOMMU on in the firmware and boot with intel_iommu=on or amd_iommu=on"


def test_a_node_as_it_should_be(node: Node) -> None:
    node.vf()
    node.vf(OTHER)
    node.tree.hugepages(2048, 64, 60)
    node.tree.cpus(0, "0-4095", hugepages=64)
    found = node.doctor()
    assert (found.code, found.told["devices"], found.told["could_be_served"]) == (0, 2, 2)
    assert found.results() == {"ok"}
    assert found.of(VF) == [f"VF of {PF}, driver vfio-pci, IOMMU group 41, NUMA node 0"]
    assert found.of("memory") == ["hugepages: 60 of 64 free, 2048 KiB each"]
    assert found.of("device list") == [f"{node.pci_list} names 2 devices"]
    assert "vdpad 0.1.0" in found.of("daemon")[0]
    assert found.of("agent", "doubt")[0].startswith(f"no agent answers at {node.directory / 'vdpa.sock'}: no such file")


def test_one_vf_is_enough_and_what_is_wrong_with_another_is_told(node: Node) -> None:
    node.vf()
    node.vf(OTHER, driver="iavf", group=None)
    found = node.doctor()
    assert (found.code, found.told["could_be_served"]) == (0, 1)
    assert found.of(OTHER, "blocks") == [
        f"{OTHER} is bound to iavf, not to vfio-pci => driverctl set-override {OTHER} vfio-pci",
        f"{OTHER} is in no IOMMU group => {IOMMU_ON}",
    ]
    assert found.of(VF, "ok")


@pytest.mark.parametrize(
    ("changes", "result", "told"),
    [
        ({"driver": ""}, "blocks", f"{VF} is bound to no driver => driverctl set-override {VF} vfio-pci"),
        ({"pf": None}, "doubt", f"{VF} is no virtual function"),
        ({"subsystem": "1af4"}, "doubt", f"{VF} is 1af4:1041 of subsystem vendor 1af4, of which no vDPA driver"),
        ({"node": 3}, "doubt", f"{VF} is on NUMA node 3, the daemon's CPUs are on 0"),
    ],
)
def test_what_is_wrong_with_a_device(node: Node, changes: dict[str, Any], result: str, told: str) -> None:
    node.vf(**changes)
    node.tree.cpus(0, "0-4095")
    found = node.doctor()
    assert any(said.startswith(told) for said in found.of(VF, result))
    assert found.code == (1 if result == "blocks" else 0)


def test_a_listed_device_that_is_not_there(node: Node) -> None:
    write_list(node.pci_list, [VF])
    found = node.doctor()
    assert found.code == 1
    assert found.of(VF, "blocks")[0].startswith(f"{VF} is no PCI device of this machine => take it off the list")


def test_no_list(node: Node) -> None:
    found = node.doctor()
    assert (found.code, found.told["devices"]) == (1, 0)
    listing = f"ls -d /sys/bus/pci/devices/*/physfn | cut -d/ -f6 > {node.pci_list}  # all VFs of this machine"
    assert found.of("device list", "blocks") == [
        f"no device list is loaded: {node.pci_list}: the file is not there => {listing}"
    ]
    write_list(node.pci_list, [])
    assert node.doctor().of("device list", "blocks") == [f"{node.pci_list} names no device => {listing}"]
    node.pci_list.write_text("82:00.2\nens1f0\n")
    refused = "line 2: 'ens1f0' is not a PCI address such as 0000:82:00.2; write one address a line"
    assert node.doctor().of("device list", "blocks") == [
        f"no device list is loaded: {node.pci_list}: {refused} => change {node.pci_list} as the reason says"
    ]


def test_a_device_list_in_the_mappings_place_counts(node: Node) -> None:
    node.vf()
    node.pci_list.rename(node.socket_list)
    found = node.doctor()
    assert (found.code, len(found.of(VF, "ok"))) == (0, 1)


def test_devices_may_be_named_before_they_are_listed(node: Node) -> None:
    node.vf()
    node.pci_list.unlink()
    found = node.doctor("82:00.2", VF.upper())
    assert (found.code, found.told["devices"]) == (0, 1)
    assert found.of(VF, "doubt") == [f"{VF} is not in {node.pci_list} => echo {VF} >> {node.pci_list}"]


def test_a_mapping_of_somebody_elses(node: Node) -> None:
    node.sockets.mkdir()
    live = node.sockets / "live"
    node.socket_list.write_text(mapping_text({VF: str(live), OTHER: str(node.sockets / "dead")}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(live))
        listener.listen()
        found = node.doctor()
    start = f"start the daemon that writes {node.socket_list}"
    assert (found.code, found.told["could_be_served"]) == (0, 1)
    assert found.of("mapping", "ok") == [f"{node.socket_list}, which somebody else writes, has 2 entries"]
    assert found.of(VF, "ok")[0].startswith(f"socket {live} (mode ")
    assert found.of(OTHER, "blocks") == [f"the socket file {node.sockets / 'dead'} is gone => {start}"]
    assert found.of("daemon") == []
    assert (
        node.doctor("82:00.7").of("0000:82:00.7", "blocks")[0].startswith(f"0000:82:00.7 is not in {node.socket_list}")
    )
    node.socket_list.write_text("[{")
    assert (
        node.doctor()
        .of("mapping", "blocks")[0]
        .startswith(f"no mapping is loaded: {node.socket_list}: line 1 column 3: not JSON")
    )


def test_the_daemons_program(node: Node) -> None:
    node.vf()
    missing = node.doctor("--vdpad=/nowhere/vdpad")
    assert missing.code == 1
    wrong = "/nowhere/vdpad is not an executable program; install vdpad or name it with --vdpad"
    assert missing.of("daemon", "blocks") == [f"{wrong} => vdpa-agent run --vdpad=/path/to/vdpad"]
    program = node.directory / "vdpad"
    program.write_text("#!/bin/sh\necho error while loading shared libraries: librte_eal.so >&2\nexit 127\n")
    program.chmod(0o755)
    broken = node.doctor(f"--vdpad={program}")
    assert broken.code == 1
    assert "librte_eal.so" in broken.of("daemon", "blocks")[0]


def test_a_user_who_may_not_write(node: Node) -> None:
    node.vf()
    found = node.doctor(under=NOBODY)
    assert found.code == 1
    wrong = f"nobody may not write to {node.directory}, mode 0755 of root:root"
    assert found.of("directory", "blocks") == [
        f"{wrong} => chown nobody {node.directory}  # as root",
        f"{wrong} => install -d -o nobody {node.sockets}  # as root",
    ]


def test_a_directory_that_anybody_may_write_to(node: Node) -> None:
    node.vf()
    node.directory.chmod(0o777)
    found = node.doctor()
    assert found.of("directory", "doubt")[0].endswith(f"=> chmod o-w {node.directory}")
    assert found.code == 0


@pytest.mark.parametrize(
    ("memory", "pages", "result", "told"),
    [
        ("hugepages", (), "blocks", "--memory hugepages, but there are none => echo 64 > "),
        ("hugepages", ((2048, 8, 0),), "blocks", "--memory hugepages, but none is free: 0 of 8 free, 2048 KiB each"),
        ("auto", (), "ok", "ordinary: there are no hugepages"),
        ("auto", ((2048, 8, 0), (1048576, 0, 0)), "ok", "ordinary: no hugepage is free: 0 of 8 free, 2048 KiB each"),
        ("none", ((2048, 8, 8),), "ok", "ordinary, as --memory none wants it"),
    ],
)
def test_memory(node: Node, memory: str, pages: tuple[tuple[int, int, int], ...], result: str, told: str) -> None:
    node.vf()
    for size in pages:
        node.tree.hugepages(*size)
    found = node.doctor(f"--memory={memory}")
    assert found.of("memory", result)[0].startswith(told)
    assert found.code == (1 if result == "blocks" else 0)


@pytest.mark.parametrize(
    ("memory", "result", "told"),
    [
        ("hugepages", "blocks", "--memory hugepages, but {} allows no hugepages => {}, or --memory none"),
        ("auto", "doubt", "ordinary: {} allows no hugepages => {}"),
        ("none", "ok", "ordinary, as --memory none wants it"),
    ],
)
def test_a_cgroup_that_allows_no_hugepages(node: Node, memory: str, result: str, told: str) -> None:
    node.vf()
    node.tree.hugepages(2048, 64, 60)
    node.tree.hugepages(1048576, 0, 0)
    node.tree.cpus(0, "0-4095")
    node.tree.cpus(1, "", hugepages=64)
    limit = node.tree.hugetlb("2MB.max", "0")
    found = node.doctor(f"--memory={memory}")
    mend = f"echo max > {limit}  # in Kubernetes hugepages.size of the chart"
    assert found.of("memory", result) == [told.format(limit, mend)]
    assert found.code == (1 if result == "blocks" else 0)
    # That the VF's node has no hugepages matters only where the daemon takes some.
    assert bool(found.of(VF, "doubt")) == (memory == "hugepages")
    limit.write_text("max\n")
    found = node.doctor(f"--memory={memory}")
    assert found.of("memory", "ok")
    assert bool(found.of(VF, "doubt")) == (memory != "none")


def test_limits(node: Node) -> None:
    node.vf()
    limited = ("prlimit", "--nofile=70:70", "--memlock=8388608:8388608", "setpriv", "--bounding-set=-ipc_lock")
    found = node.doctor(under=(*limited, "--inh-caps=-ipc_lock"))
    assert found.of("open files", "doubt") == [
        "a daemon started here may have 70 files open, fewer than 80 for 1 devices => ulimit -n 80"
    ]
    wrong = "a daemon started here may lock 8192 KiB of memory, and no front end may have more"
    mend = "ulimit -l unlimited  # for a systemd unit LimitMEMLOCK=infinity"
    assert found.of("locked memory", "doubt") == [f"{wrong} => {mend}"]
    assert found.code == 0
    assert node.doctor("--simulate", under=limited[:3]).of("locked memory") == []


def test_selinux(node: Node) -> None:
    node.vf()
    node.sockets.mkdir()
    node.tree.selinux("1")
    chcon = f"chcon -R -t container_file_t {node.sockets}"
    assert node.doctor().of("selinux", "doubt") == [
        f"enforced, and {node.sockets} is without a label: pods may be kept from its sockets => {chcon}"
    ]
    os.setxattr(node.sockets, "security.selinux", b"system_u:object_r:var_run_t:s0\0")
    assert node.doctor().of("selinux", "doubt")[0].startswith(f"enforced, and {node.sockets} is var_run_t: pods may")
    os.setxattr(node.sockets, "security.selinux", b"system_u:object_r:container_file_t:s0\0")
    assert node.doctor().of("selinux", "ok") == [f"enforced, {node.sockets} is container_file_t"]


def test_an_agent_that_hangs(node: Node) -> None:
    node.vf()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(node.directory / "vdpa.sock"))
        silent.listen()
        found = node.doctor("--timeout=0.3")
    assert found.code == 1
    assert "did not answer within 0.3 s" in found.of("agent", "blocks")[0]


def test_an_agent_that_is_not_for_this_user(node: Node) -> None:
    node.vf()
    vdpad = built("native/vdpad/vdpad", "native")
    arguments = ("--simulate", "--memory=none", f"--vdpad={vdpad}", "--listen-mode=0666")
    with running(node.directory, *arguments) as agent:
        agent.wait_answer(VF, str(node.directory / "vhost" / "vdpa-0"))
        for refused in ("refused: PERMISSION_DENIED: this user may not call", "permission denied"):
            found = node.doctor(under=NOBODY)
            assert refused in found.of("agent", "doubt")[0]
            assert "=> sudo vdpa-agent doctor" in found.of("agent", "doubt")[0]
            assert found.of("directory", "blocks") == []
            agent.listen.chmod(0o600)


def _beside(agent: AgentProcess, *arguments: str) -> Findings:
    """What doctor says when it is told nothing but where the agent is."""
    command = [sys.executable, "-m", "vdpa_agent", "doctor", f"--address={agent.listen}", *arguments]
    return findings([*command, "--output=json"])


def _status(agent: AgentProcess) -> dict[str, Any]:
    command = [sys.executable, "-m", "vdpa_agent", "status", f"--address={agent.listen}", "--output=json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_beside_an_agent_on_simulated_devices(run_dir: Path) -> None:
    vdpad = built("native/vdpad/vdpad", "native")
    write_list(run_dir / "pciList.dat", [VF, OTHER])
    with running(run_dir, "--simulate", "--memory=none", f"--vdpad={vdpad}") as agent:
        sockets = [str(run_dir / "vhost" / f"vdpa-{number}") for number in range(2)]
        agent.wait_answer(VF, sockets[0])
        agent.wait_answer(OTHER, sockets[1])
        found = _beside(agent)
        assert (found.code, found.told["could_be_served"]) == (0, 2)
        assert found.results() | {"ok"} == {"ok"}, found.told
        assert found.of("agent") == [f"version 0.1.0 answers at {agent.listen} and is managing"]
        assert found.of("daemon")[0].startswith(f"process {agent.daemon_pid()} runs; {vdpad}, vdpad 0.1.0 (DPDK ")
        gone = _beside(agent, "--vdpad=/nowhere/vdpad")
        assert gone.code == 0
        assert "runs; /nowhere/vdpad is not an executable program" in gone.of("daemon", "doubt")[0]
        assert found.of(VF) == [f"ready, socket {sockets[0]} (mode 0660 of root:root)"]
        Path(sockets[0]).chmod(0o666)
        os.chown(sockets[1], 0, 1)
        found = _beside(agent)
        assert found.of(VF, "doubt") == [f"{sockets[0]} has mode 0666, not 0660 => chmod 0660 {sockets[0]}"]
        assert found.of(OTHER, "ok")  # whose group nobody asked for
        table = subprocess.run(
            [sys.executable, "-m", "vdpa_agent", "doctor", f"--address={agent.listen}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert table[-1] == "2 of 2 devices could be served"
        assert any(line.split()[:2] == ["fix:", "chmod"] for line in table)
        assert any(line.startswith(f"doubt   {VF}  ") for line in table)


def test_beside_an_agent_whose_daemon_is_short_of_files_and_whose_list_is_broken(run_dir: Path) -> None:
    vdpad = built("native/vdpad/vdpad", "native")
    write_list(run_dir / "pciList.dat", [VF])
    with running(run_dir, "--simulate", "--memory=none", f"--vdpad={vdpad}") as agent:
        agent.wait_answer(VF, str(run_dir / "vhost" / "vdpa-0"))
        pid = agent.daemon_pid()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (70, 70))
        agent.pci_list.write_text("ens1f0\n")
        agent.wait_logged("file_refused")
        found = _beside(agent)
        problem = _status(agent)["device_list_problem"]
    assert found.code == 0
    assert found.of("open files", "doubt") == [
        f"the daemon may have 70 files open, fewer than 80 for 1 devices => prlimit --pid {pid} --nofile=80"
    ]
    assert problem.startswith("line 1: 'ens1f0' is not a PCI address")
    assert found.of("device list", "doubt") == [
        f"its last good content counts: {problem} => change {agent.pci_list} as the reason says"
    ]


def test_the_same_words_as_status(node: Node) -> None:
    node.vf()
    node.vf(OTHER, driver="virtio-pci", group=42)
    vdpad = built("native/vdpad/vdpad", "native")
    arguments = ("--memory=none", f"--vdpad={vdpad}", f"--sysfs={node.tree.root}")
    with running(node.directory, *arguments) as agent:
        agent.wait_logged("device_failed", device=OTHER)
        agent.wait_logged("device_failed", device=VF)
        reasons = _status(agent)["degraded_reasons"]
        found = _beside(agent)
    assert found.code == 1
    # What sysfs rules out is told with its remedy apart; what vdpad refuses, as it stands.
    (wrong,) = found.of(OTHER, "blocks")
    assert f"{OTHER} is failed: {wrong.replace(' => ', ': ')}" in reasons
    refused = found.of(VF, "blocks")[0].partition(" => ")[0]
    assert refused in reasons
    assert refused.startswith(f"{VF} is failed: DPDK refused to plug {VF}")
    assert found.of("agent", "blocks") == []


def test_an_agent_without_any_list_says_the_same_as_status(run_dir: Path) -> None:
    with running(run_dir) as agent:
        reasons = _status(agent)["degraded_reasons"]
        found = _beside(agent)
    assert found.code == 1
    assert [told.partition(" => ")[0] for told in found.of("agent", "blocks")] == reasons
