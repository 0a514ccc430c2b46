"""Devices that nobody lists: found in sysfs by the resource config, and served."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.processes import AgentProcess, eventually, running, write_atomically, write_list
from tests.trees import PF, Tree
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.serve.pb import device_service_pb2 as pb

VFS = tuple(PciAddress(f"0000:83:00.{number}") for number in range(6))


@pytest.fixture
def tree(run_dir: Path) -> Tree:
    tree = Tree(run_dir / "sys")
    tree.device(PF, "8086:1592", driver="ice", node=0)
    tree.interface(PF, "ens1f0")
    for number in range(5):
        tree.vf(PF, number, VFS[number], node=0)
    return tree


def configure(run_dir: Path, *pools: dict[str, Any]) -> None:
    text = json.dumps({"resourceList": [{"resourceName": f"pool{n}", **pool} for n, pool in enumerate(pools)]})
    write_atomically(run_dir / "config.json", text)


def status(agent: AgentProcess) -> pb.GetStatusResponse:
    ask = agent.channel.unary_unary(
        "/vdpa_agent.v1.DeviceService/GetStatus",
        request_serializer=pb.GetStatusRequest.SerializeToString,
        response_deserializer=pb.GetStatusResponse.FromString,
    )
    answer: pb.GetStatusResponse = ask(pb.GetStatusRequest(), timeout=20)
    return answer


def say(run_dir: Path, command: str, *arguments: str) -> str:
    argv = [sys.executable, "-m", "vdpa_agent", command, f"--address={run_dir / 'vdpa.sock'}", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stdout


def served(agent: AgentProcess, *addresses: str) -> None:
    for address in addresses:
        eventually(f"{address} is served", partial(agent.ask, address))


RANGES = {"selectors": [{"vendors": ["8086"], "pfNames": ["ens1f0#0-1,4-5"]}]}
REST = {"selectors": {"drivers": ["vfio-pci"], "rootDevices": [f"{PF}#0-3"]}, "vhostMode": "server"}


def test_vfs_are_found_beside_those_of_the_list(run_dir: Path, tree: Tree, options: tuple[str, ...]) -> None:
    listed = "0000:99:00.1"
    write_list(run_dir / "pciList.dat", [listed])
    configure(run_dir, RANGES, REST, {"simulated": 2})
    where = (f"--resource-config={run_dir / 'config.json'}", f"--sysfs={tree.root}")
    with running(run_dir, *options, *where) as agent:
        served(agent, listed, *VFS[:5], "ffff:02:00.0", "ffff:02:00.1")
        agent.wait_logged("vfs_contested", pool="vdpa.io/pool0", other="vdpa.io/pool1", devices=[VFS[0], VFS[1]])
        pools = status(agent).pools
        assert [(pool.resource, list(pool.pci_addresses)) for pool in pools] == [
            ("vdpa.io/pool0", [VFS[0], VFS[1], VFS[4]]),
            ("vdpa.io/pool1", [VFS[2], VFS[3]]),
            ("vdpa.io/pool2", ["ffff:02:00.0", "ffff:02:00.1"]),
        ]
        told = say(run_dir, "status")
        assert "vdpa.io/pool0: 3 VFs, vhost mode server\n" in told
        assert " 3 by vendors 8086; pfNames ens1f0#0-1,4-5\n" in told
        assert f"{VFS[0]} is in vdpa.io/pool0, and vdpa.io/pool1 asks for it too\n" in told
        devices = json.loads(say(run_dir, "list", "-o", "json"))
        resources = {device["pci_address"]: device.get("resource") for device in devices}
        expected: dict[str, str] = {
            listed: "",
            **dict.fromkeys((VFS[0], VFS[1], VFS[4]), "vdpa.io/pool0"),
            **dict.fromkeys((VFS[2], VFS[3]), "vdpa.io/pool1"),
            "ffff:02:00.0": "vdpa.io/pool2",
            "ffff:02:00.1": "vdpa.io/pool2",
        }
        assert resources == expected
        # A VF that is created, one that is gone, and one that another selector lets go.
        tree.vf(PF, 5, VFS[5], node=0)
        served(agent, VFS[5])
        tree.remove(VFS[4])
        eventually("the VF is gone", lambda: not agent.ask(VFS[4]))
        tree.bind(VFS[3], "iavf")
        eventually("the VF is gone", lambda: not agent.ask(VFS[3]))
        ranges = "vdpa.io/pool0: it is VF 3 of ens1f0, not of ens1f0#0-1,4-5"
        outside = f"{ranges}; vdpa.io/pool1: its driver is iavf, not vfio-pci"
        assert f"{VFS[3]}: {outside}\n" in say(run_dir, "status")
        doctor = say(run_dir, "doctor")
        assert f"{VFS[3]}: {outside}\n" in doctor
        assert "3 VFs: 3 by vendors 8086; pfNames ens1f0#0-1,4-5\n" in doctor
        assert "1 by drivers vfio-pci; rootDevices 0000:82:00.0#0-3" in doctor
        assert agent.ask(listed)
        assert len(agent.log.named("daemon_started")) == 1


def test_the_config_is_followed_and_a_bad_one_changes_nothing(run_dir: Path, options: tuple[str, ...]) -> None:
    configure(run_dir, {"simulated": 1})
    where = f"--resource-config={run_dir / 'config.json'}"
    with running(run_dir, *options, where) as agent:
        served(agent, "ffff:00:00.0")
        configure(run_dir, {"simulated": 2})
        served(agent, "ffff:00:00.0", "ffff:00:00.1")
        configure(run_dir, {"simulated": 1, "selectors": {"acpiIndexes": ["1"]}})
        reason = "entry 1: vdpa.io/pool0: selector 1: 'acpiIndexes' is not known here: name the VF by pciAddresses"
        agent.wait_logged("file_refused", file=str(run_dir / "config.json"), reason=reason, last_good_kept=True)
        served(agent, "ffff:00:00.0", "ffff:00:00.1")
        eventually("status says so", lambda: status(agent).resource_config_problem == reason)
        told = say(run_dir, "status")
        assert f"resource config  {reason}\n" in told
        assert f"fix: change {run_dir / 'config.json'} as the reason says\n" in told
        assert status(agent).ready
    # The last good one outlives the agent.
    with running(run_dir, *options, where) as agent:
        served(agent, "ffff:00:00.0", "ffff:00:00.1")
        assert agent.log.named("kept_list_used")
        (run_dir / "config.json").unlink()
        agent.wait_logged("file_absent", file=str(run_dir / "config.json"), last_good_kept=True)
        served(agent, "ffff:00:00.0", "ffff:00:00.1")
        configure(run_dir)
        eventually("all is gone", lambda: not agent.ask("ffff:00:00.0") and not agent.ask("ffff:00:00.1"))


def test_without_any_good_config_the_agent_is_not_ready_and_says_why(run_dir: Path, options: tuple[str, ...]) -> None:
    where = f"--resource-config={run_dir / 'config.json'}"
    with running(run_dir, *options, where) as agent:
        assert "a resource config at" in status(agent).waiting_for
        assert status(agent).ready
        (run_dir / "config.json").write_text("{}")
        reason = f"no resource config is loaded: {run_dir / 'config.json'}: it has no array resourceList"
        eventually("it is not ready", lambda: status(agent).not_ready_reasons[:1])
        assert status(agent).not_ready_reasons[0].startswith(reason)
        configure(run_dir, {"simulated": 1})
        served(agent, "ffff:00:00.0")
        assert status(agent).ready


def test_doctor_finds_the_same_without_an_agent(run_dir: Path, tree: Tree) -> None:
    configure(run_dir, RANGES, {"selectors": {"vendors": ["15b3"]}})
    told = say(
        run_dir,
        "doctor",
        f"--resource-config={run_dir / 'config.json'}",
        f"--sysfs={tree.root}",
        f"--pci-list={run_dir / 'pciList.dat'}",
        f"--socket-list={run_dir / 'socketList.dat'}",
    )
    assert "3 VFs: 3 by vendors 8086; pfNames ens1f0#0-1,4-5\n" in told
    assert "0 VFs: 0 by vendors 15b3\n" in told
    assert f"{VFS[2]}: vdpa.io/pool0: it is VF 2 of ens1f0" in told
    assert "device list" not in told
    configure(run_dir, {"selectors": {"x": []}})
    told = say(run_dir, "doctor", f"--resource-config={run_dir / 'config.json'}", f"--sysfs={tree.root}")
    assert "no resource config is loaded: entry 1: vdpa.io/pool0: selector 1: 'x' is not known here" in told


def test_who_asks_before_a_vf_is_ready_waits_for_it(run_dir: Path, options: tuple[str, ...]) -> None:
    with running(run_dir, *options, f"--resource-config={run_dir / 'config.json'}", "--hold-timeout=15") as agent:
        configure(run_dir, {"simulated": 1})
        assert agent.ask("ffff:00:00.0") == str(run_dir / "vhost" / "vdpa-0")
