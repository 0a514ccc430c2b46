"""A VF that cannot be served says why, and vdpad is asked for the others."""

import os
import signal
from pathlib import Path

from tests.processes import built, running, write_atomically
from tests.trees import Tree


def _vf(sysfs: Path, address: str, driver: str | None) -> None:
    """A VF of Intel's IFC as sysfs shows it, in an IOMMU group."""
    device = sysfs / "bus" / "pci" / "devices" / address
    device.mkdir(parents=True)
    for name, content in {"vendor": "0x1af4", "device": "0x1041", "subsystem_vendor": "0x8086"}.items():
        (device / name).write_text(f"{content}\n")
    (device / "physfn").symlink_to("../0000:82:00.0")
    group = sysfs / "kernel" / "iommu_groups" / "7"
    group.mkdir(parents=True, exist_ok=True)
    (device / "iommu_group").symlink_to(group)
    if driver is not None:
        bound = sysfs / "bus" / "pci" / "drivers" / driver
        bound.mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(bound)


def test_why_a_vf_fails(run_dir: Path) -> None:
    sysfs = run_dir / "sys"
    _vf(sysfs, "0000:82:00.2", "virtio-pci")
    _vf(sysfs, "0000:82:00.3", "vfio-pci")
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n0000:82:00.3\n0000:82:00.4\n")
    vdpad = built("native/vdpad/vdpad", "native")
    with running(run_dir, "--memory=none", f"--vdpad={vdpad}", f"--sysfs={sysfs}") as agent:
        wrong = agent.wait_logged("device_failed", device="0000:82:00.2")
        assert wrong["reason"] == (
            "0000:82:00.2 is bound to virtio-pci, not to vfio-pci: driverctl set-override 0000:82:00.2 vfio-pci"
        )
        absent = agent.wait_logged("device_failed", device="0000:82:00.4")
        assert absent["reason"].startswith("0000:82:00.4 is no PCI device of this machine")
        # This one passes, so vdpad is asked: DPDK finds that the machine has no such device.
        asked = agent.wait_logged("device_failed", device="0000:82:00.3")
        assert asked["reason"].startswith("DPDK refused to plug 0000:82:00.3")
        assert agent.ask("0000:82:00.3") == ""


def test_memory_of_the_daemon_where_the_cgroup_allows_no_hugepages(run_dir: Path) -> None:
    tree = Tree(run_dir / "sys")
    tree.hugepages(2048, 64, 60)
    limit = tree.hugetlb("2MB.max", "0")
    write_atomically(run_dir / "pciList.dat", "0000:82:00.2\n")
    vdpad = built("native/vdpad/vdpad", "native")
    options = ("--simulate", f"--vdpad={vdpad}", f"--sysfs={tree.root}")
    with running(run_dir, *options, "--memory=auto") as agent:
        told = agent.wait_logged("hugepages_forbidden")
        assert (told["level"], told["reason"]) == ("warning", f"{limit} allows no hugepages")
        assert "--memory=none" in _command_line(agent.daemon_pid())
        # Once it may have some, vdpad goes by what is free again.
        limit.write_text("max\n")
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        agent.wait_logged("daemon_started", count=2)
        assert "--memory=auto" in _command_line(agent.daemon_pid())


def _command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
