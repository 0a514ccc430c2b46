"""Trees of files such as the kernel shows in sysfs."""

import shutil
from pathlib import Path
from typing import Final

from vdpa_agent.model.pci import PciAddress

PF: Final = PciAddress("0000:82:00.0")
VF: Final = PciAddress("0000:82:00.2")


class Tree:
    """A sysfs with PCI devices: links into /devices, as the kernel's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bus/pci/devices").mkdir(parents=True)
        self.parameter("N")

    def parameter(self, text: str) -> None:
        path = self.root / "module/vfio/parameters/enable_unsafe_noiommu_mode"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def device(
        self,
        address: PciAddress,
        ids: str,
        *,
        subsystem: str = "8086",
        driver: str = "",
        group: int | None = None,
        pf: PciAddress | None = None,
        node: int = 1,
    ) -> Path:
        """Adds a device; `ids` is as lspci -n shows it."""
        vendor, device = ids.split(":")
        path = self.root / "devices/pci0000:80" / address
        path.mkdir(parents=True)
        (self.root / "bus/pci/devices" / address).symlink_to(f"../../../devices/pci0000:80/{address}")
        files = {"vendor": f"0x{vendor}", "device": f"0x{device}", "subsystem_vendor": f"0x{subsystem}"}
        for name, text in {**files, "class": "0x020000", "numa_node": str(node)}.items():
            (path / name).write_text(f"{text}\n")
        if driver:
            self.bind(address, driver)
        if group is not None:
            (self.root / "kernel/iommu_groups" / str(group)).mkdir(parents=True, exist_ok=True)
            (path / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
            members = self.root / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(exist_ok=True)
            (members / address).symlink_to(f"../../../../devices/pci0000:80/{address}")
        if pf is not None:
            (path / "physfn").symlink_to(f"../{pf}")
        return path

    def bind(self, address: PciAddress, driver: str) -> None:
        """Binds a device to a driver, in place of the one that it is bound to."""
        link = self.root / "devices/pci0000:80" / address / "driver"
        if link.is_symlink():
            (link.resolve() / address).unlink()
            link.unlink()
        devices = self.root / "bus/pci/drivers" / driver
        devices.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../bus/pci/drivers/{driver}")
        (devices / address).symlink_to(f"../../../../devices/pci0000:80/{address}")

    def interface(self, pf: PciAddress, name: str) -> None:
        """Gives a PF a network interface."""
        (self.root / "devices/pci0000:80" / pf / "net" / name).mkdir(parents=True)

    def vf(self, pf: PciAddress, number: int, address: PciAddress, *, driver: str = "vfio-pci", node: int = 1) -> None:
        """Adds a VF of a PF, one of Intel's."""
        self.device(address, "8086:1889", driver=driver, pf=pf, node=node)
        (self.root / "devices/pci0000:80" / pf / f"virtfn{number}").symlink_to(f"../{address}")

    def remove(self, address: PciAddress) -> None:
        """Takes a device away, as the kernel does with a VF."""
        path = self.root / "devices/pci0000:80" / address
        # It keeps its inode: the kernel gives a number again only after all others.
        gone = self.root / "gone"
        gone.mkdir(exist_ok=True)
        (self.root / "bus/pci/devices" / address).rename(gone / f"{address}-{len(list(gone.iterdir()))}")
        for link in (self.root / "bus/pci/drivers").glob(f"*/{address}"):
            link.unlink()
        for link in path.parent.glob("*/virtfn*"):
            if link.readlink().name == address:
                link.unlink()
        shutil.rmtree(path)

    def hugepages(self, size_kib: int, total: int, free: int) -> None:
        path = self.root / f"kernel/mm/hugepages/hugepages-{size_kib}kB"
        path.mkdir(parents=True)
        (path / "nr_hugepages").write_text(f"{total}\n")
        (path / "free_hugepages").write_text(f"{free}\n")

    def hugetlb(self, file: str, limit: str, cgroup: str = "") -> Path:
        """Limits the hugepages of a cgroup: `file` is as in hugetlb.2MB.max."""
        path = self.root / "fs/cgroup" / cgroup / f"hugetlb.{file}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
        return path

    def selinux(self, enforce: str) -> None:
        path = self.root / "fs/selinux/enforce"
        path.parent.mkdir(parents=True)
        path.write_text(enforce)

    def cpus(self, node: int, cpus: str, *, hugepages: int = 0) -> None:
        path = self.root / f"devices/system/node/node{node}"
        sizes = {"hugepages-2048kB": hugepages, "hugepages-1048576kB": 0}
        for size, pages in sizes.items():
            (path / "hugepages" / size).mkdir(parents=True)
            (path / "hugepages" / size / "nr_hugepages").write_text(f"{pages}\n")
        (path / "cpulist").write_text(f"{cpus}\n")
