"""Facts of PCI devices, read from trees of files such as the kernel shows."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trees import PF, VF, Tree
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.preflight import NumaFacts, PciFacts, Verdict, assess, devargs_of
from vdpa_agent.node.sysfs import read_facts, read_hugepages, read_numa

NOBODY: Final = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "sys")


def _verdict(tree: Tree, address: PciAddress = VF) -> Verdict:
    return assess(read_facts(address, tree.root), NumaFacts(), hugepages=False)


def test_an_ifc_vf_on_vfio_pci(tree: Tree) -> None:
    tree.device(PF, "1af4:1041", driver="virtio-pci", group=40)
    tree.device(VF, "1af4:1041", driver="vfio-pci", group=41, pf=PF)
    facts = read_facts(VF, tree.root)
    assert facts == PciFacts(
        address=VF,
        exists=True,
        vendor=0x1AF4,
        device=0x1041,
        subsystem_vendor=0x8086,
        class_code=0x020000,
        is_vf=True,
        pf=PF,
        driver="vfio-pci",
        iommu_group=41,
        numa_node=1,
        no_iommu=False,
    )
    assert devargs_of(facts, {}) == "vdpa=1"
    assert _verdict(tree) == Verdict()


def test_the_other_devices_of_the_group(tree: Tree) -> None:
    tree.device(PF, "1af4:1041", driver="virtio-pci", group=41)
    tree.device(VF, "1af4:1041", driver="vfio-pci", group=41, pf=PF)
    tree.device(PciAddress("0000:82:00.3"), "1af4:1041", group=41)
    tree.device(PciAddress("0000:82:00.4"), "1af4:1041", driver="iavf", group=42)
    assert read_facts(VF, tree.root).neighbours == ((PF, "virtio-pci"),)
    assert _verdict(tree).refusal.startswith("0000:82:00.2 shares IOMMU group 41 with 0000:82:00.0 on virtio-pci: ")


def test_an_mlx5_vf_on_the_kernels_own_driver(tree: Tree) -> None:
    tree.device(VF, "15b3:101e", subsystem="15b3", driver="mlx5_core", pf=PF)
    facts = read_facts(VF, tree.root)
    assert (facts.driver, facts.iommu_group, devargs_of(facts, {})) == ("mlx5_core", None, "class=vdpa")
    assert _verdict(tree) == Verdict()


def test_a_physical_function(tree: Tree) -> None:
    tree.device(PF, "1af4:1041", driver="vfio-pci", group=40)
    facts = read_facts(PF, tree.root)
    assert (facts.is_vf, facts.pf) == (False, None)
    verdict = _verdict(tree, PF)
    assert verdict.refusal == ""
    assert len(verdict.doubts) == 1
    assert "0000:82:00.0 is no virtual function" in verdict.doubts[0]


@pytest.mark.parametrize(
    ("driver", "refusal"),
    [
        ("", "0000:82:00.2 is bound to no driver: driverctl set-override 0000:82:00.2 vfio-pci"),
        ("iavf", "0000:82:00.2 is bound to iavf, not to vfio-pci: driverctl set-override 0000:82:00.2 vfio-pci"),
    ],
)
def test_a_vf_on_no_driver_or_the_wrong_one(tree: Tree, driver: str, refusal: str) -> None:
    tree.device(VF, "1af4:1041", driver=driver, group=41, pf=PF)
    assert read_facts(VF, tree.root).driver == (driver or None)
    assert _verdict(tree).refusal == refusal


def test_a_driver_that_has_just_gone_is_still_named(tree: Tree) -> None:
    path = tree.device(VF, "1af4:1041", group=41, pf=PF)
    (path / "driver").symlink_to("../../../bus/pci/drivers/gone")
    assert read_facts(VF, tree.root).driver == "gone"


def test_no_iommu_group(tree: Tree) -> None:
    tree.device(VF, "1af4:1041", driver="vfio-pci", pf=PF)
    assert _verdict(tree).refusal.startswith("0000:82:00.2 is in no IOMMU group")


def test_a_group_that_vfio_made_up_is_none(tree: Tree) -> None:
    path = tree.device(VF, "1af4:1041", driver="vfio-pci", group=0, pf=PF)
    (path / "iommu_group" / "name").write_text("vfio-noiommu\n")
    assert _verdict(tree).refusal.startswith("0000:82:00.2 is in no IOMMU group")
    tree.parameter("Y")
    facts = read_facts(VF, tree.root)
    assert (facts.iommu_group, facts.no_iommu) == (None, True)
    verdict = _verdict(tree)
    assert verdict.refusal == ""
    assert "0000:82:00.2 runs without IOMMU" in verdict.doubts[0]


def test_a_group_with_a_name_of_its_own_is_one(tree: Tree) -> None:
    path = tree.device(VF, "1af4:1041", driver="vfio-pci", group=7, pf=PF)
    (path / "iommu_group" / "name").write_text("mine\n")
    assert read_facts(VF, tree.root).iommu_group == 7


def test_a_missing_device(tree: Tree) -> None:
    assert read_facts(VF, tree.root) == PciFacts(address=VF, exists=False)
    assert "0000:82:00.2 is no PCI device of this machine" in _verdict(tree).refusal


def test_a_device_that_has_just_gone_is_missing(tree: Tree) -> None:
    (tree.root / "bus/pci/devices" / VF).symlink_to("../../../devices/pci0000:80/gone")
    assert read_facts(VF, tree.root).exists is False


@pytest.mark.parametrize("root", ["nothing", "a\0b"])
def test_where_there_is_no_sysfs_nothing_is_known(tmp_path: Path, root: str) -> None:
    facts = read_facts(VF, tmp_path / root)
    assert facts == PciFacts(address=VF, exists=None, unreadable=("directory",))
    assert assess(facts, NumaFacts(), hugepages=True).refusal == ""
    assert read_numa({0}, tmp_path / root) == NumaFacts()


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may read everything; for a moment this process is not root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_permission_denied(tree: Tree) -> None:
    tree.device(VF, "1af4:1041", driver="vfio-pci", group=41, pf=PF)
    devices = tree.root / "bus/pci/devices"
    devices.chmod(0)
    try:
        with _as_nobody():
            facts = read_facts(VF, tree.root)
    finally:
        devices.chmod(0o755)
    assert facts == PciFacts(address=VF, exists=None, unreadable=("directory",))


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("vendor", b"", "vendor"),
        ("vendor", b"\xff\xfe", "vendor"),
        ("vendor", b"0x1af41af4\n", "vendor"),
        ("device", b"virtio\n", "device"),
        ("device", b"0x" + b"1" * 100_000, "device"),
        ("subsystem_vendor", b"-1\n", "subsystem_vendor"),
        ("class", b"0x1000000\n", "class_code"),
        ("numa_node", b"99999999999999999999\n", "numa_node"),
        ("numa_node", b"-2\n", "numa_node"),
    ],
)
def test_garbage_in_a_file_is_unknown_and_told(tree: Tree, name: str, content: bytes, field: str) -> None:
    path = tree.device(VF, "1af4:1041", driver="vfio-pci", group=41, pf=PF)
    (path / name).write_bytes(content)
    facts = read_facts(VF, tree.root)
    assert getattr(facts, field) is None
    assert facts.unreadable == (name,)
    verdict = _verdict(tree)
    assert verdict.refusal == ""
    assert name in verdict.doubts[0]


@pytest.mark.parametrize(
    ("name", "target", "field"),
    [
        ("driver", "../drivers/two words", "driver"),
        ("driver", "../drivers/" + "d" * 33, "driver"),
        ("iommu_group", "../../kernel/iommu_groups/x", "iommu_group"),
        ("physfn", "../ens1f0", "pf"),
    ],
)
def test_a_link_to_garbage_is_unknown_and_told(tree: Tree, name: str, target: str, field: str) -> None:
    path = tree.device(VF, "1af4:1041", driver="vfio-pci", group=41, pf=PF)
    (path / name).unlink()
    (path / name).symlink_to(target)
    facts = read_facts(VF, tree.root)
    assert getattr(facts, field) is None
    assert facts.unreadable == (name,)
    assert _verdict(tree).refusal == ""


def test_things_of_the_wrong_kind_are_unknown_and_keep_nobody_waiting(tree: Tree) -> None:
    path = tree.device(VF, "1af4:1041")
    for name in ("vendor", "device", "subsystem_vendor"):
        (path / name).unlink()
    os.mkfifo(path / "vendor")
    (path / "device").mkdir()
    (path / "subsystem_vendor").symlink_to("subsystem_vendor")
    (path / "driver").mkdir()
    (path / "physfn").mkdir()
    (path / "iommu_group").write_text("41\n")
    facts = read_facts(VF, tree.root)
    assert set(facts.unreadable) == {"vendor", "device", "subsystem_vendor", "driver", "iommu_group", "physfn"}
    assert facts.is_vf is None
    assert _verdict(tree).refusal == ""


def test_a_machine_without_numa(tree: Tree) -> None:
    path = tree.device(VF, "1af4:1041", driver="vfio-pci", group=41, pf=PF, node=-1)
    assert read_facts(VF, tree.root).numa_node is None
    (path / "numa_node").unlink()
    facts = read_facts(VF, tree.root)
    assert (facts.numa_node, facts.unreadable) == (None, ())


def test_without_vfio_there_is_no_mode_of_it(tree: Tree) -> None:
    tree.device(VF, "1af4:1041", driver="vfio-pci", group=41, pf=PF)
    parameter = tree.root / "module/vfio/parameters/enable_unsafe_noiommu_mode"
    parameter.write_text("maybe\n")
    assert read_facts(VF, tree.root).no_iommu is None
    parameter.unlink()
    assert read_facts(VF, tree.root).no_iommu is False


def test_the_nodes_of_cpus_and_hugepages(tree: Tree) -> None:
    tree.cpus(0, "0-3,8")
    tree.cpus(1, "4-7,9-10", hugepages=64)
    tree.cpus(2, "")  # a node of memory only
    (tree.root / "devices/system/node/node3").mkdir()
    (tree.root / "devices/system/node/possible").write_text("0-3\n")
    on = {cpu: set(read_numa({cpu}, tree.root).cpu_nodes or ()) for cpu in (0, 3, 4, 8, 9, 10, 11)}
    assert on == {0: {0}, 3: {0}, 4: {1}, 8: {0}, 9: {1}, 10: {1}, 11: set()}
    assert read_numa({3, 10}, tree.root) == NumaFacts(cpu_nodes=frozenset({0, 1}), hugepage_nodes=frozenset({1}))


def _process(tree: Tree, text: str) -> Path:
    """A directory such as a process has in /proc, with what the kernel says of its cgroups."""
    directory = tree.root.parent / "process"
    directory.mkdir()
    (directory / "cgroup").write_text(text)
    return directory


POD: Final = "kubepods/pod1/agent"


@pytest.mark.parametrize(
    ("cgroup", "file", "limit", "text"),
    [
        ("", "2MB.max", "0", "0::/\n"),
        ("", "2MB.max", "2097151", "0::/\n"),
        ("", "2MB.rsvd.max", "0", "0::/\n"),
        (POD, "2MB.max", "0", f"0::/{POD}\n"),
        ("kubepods", "2MB.max", "0", f"0::/{POD}\n"),
        ("", "2MB.max", "0", "0::/elsewhere\n"),  # in a container, which sees its own cgroup as the root
        ("", "2MB.max", "0", "0::/../../sibling\n"),
        ("", "2MB.max", "0", "nonsense\n::\n"),
        (f"hugetlb/{POD}", "2MB.limit_in_bytes", "0", f"5:devices:/\n4:hugetlb:/{POD}\n0::/\n"),
        (f"hugetlb/{POD}", "2MB.rsvd.limit_in_bytes", "0", f"4:cpu,hugetlb:/{POD}\n"),
    ],
)
def test_a_cgroup_that_forbids_hugepages(tree: Tree, cgroup: str, file: str, limit: str, text: str) -> None:
    assert _forbidden_by(tree, tree.hugetlb(file, limit, cgroup), text)


@pytest.mark.parametrize(
    ("cgroup", "file", "limit", "text"),
    [
        ("", "2MB.max", "2097152", "0::/\n"),
        ("", "2MB.max", "max", "0::/\n"),
        ("", "2MB.max", "9223372036854771712", "0::/\n"),
        ("", "1GB.max", "0", "0::/\n"),
        ("kubepods/pod1/other", "2MB.max", "0", f"0::/{POD}\n"),
        ("hugetlb", "2MB.limit_in_bytes", "9223372036854771712", "4:hugetlb:/\n"),
        (f"hugetlb/{POD}", "2MB.limit_in_bytes", "0", "5:devices:/\n4:cpu,hugetlb:/kubepods\n0::/\n"),
    ],
)
def test_a_cgroup_that_allows_hugepages(tree: Tree, cgroup: str, file: str, limit: str, text: str) -> None:
    assert not _forbidden_by(tree, tree.hugetlb(file, limit, cgroup), text)


def _forbidden_by(tree: Tree, limit: Path, text: str) -> bool:
    """Whether this limit, and no other, forbids hugepages to a process of which the kernel says this."""
    tree.hugepages(2048, 64, 60)
    (tree.root / "fs/cgroup" / POD).mkdir(parents=True, exist_ok=True)
    (size,) = read_hugepages(tree.root, _process(tree, text))
    assert (size.size_kib, size.total, size.free) == (2048, 64, 60)
    assert size.forbidden_by in {"", str(limit)}
    return bool(size.forbidden_by)


def test_a_process_that_is_gone_has_the_limits_of_the_root(tree: Tree) -> None:
    tree.hugepages(1048576, 1, 1)
    path = tree.hugetlb("1GB.max", "0")
    assert [size.forbidden_by for size in read_hugepages(tree.root, tree.root / "nowhere")] == [str(path)]


def test_this_machine() -> None:
    for path in Path("/sys/bus/pci/devices").glob("*"):
        facts = read_facts(PciAddress(path.name), Path("/sys"))
        assert facts.exists
        assert facts.unreadable == ()
        assert facts.vendor == int((path / "vendor").read_text(), 16)
    if (nodes := read_numa(os.sched_getaffinity(0), Path("/sys")).cpu_nodes) is not None:
        assert nodes


_FILES: Final = ("vendor", "device", "subsystem_vendor", "class", "numa_node", "driver", "iommu_group", "physfn")
_NUMBERS = st.integers(-(2**70), 2**70).map(str) | st.integers(0, 2**70).map(hex)
_CONTENT = st.binary(max_size=40) | _NUMBERS.map(str.encode)
_TARGET = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
_ENTRY = st.one_of(
    _CONTENT.map(lambda content: ("file", content)),
    (_TARGET | st.just("driver") | _NUMBERS).map(lambda target: ("link", target.encode())),
    st.sampled_from([("directory", b""), ("fifo", b"")]),
)


def _make(path: Path, kind: str, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "file":
            path.write_bytes(content)
        case "link":
            path.symlink_to(os.fsdecode(content))
        case "directory":
            path.mkdir()
        case _:
            os.mkfifo(path)


@given(_ENTRY, _ENTRY, st.sampled_from(["2MB", "0KB", "1GB"]), st.sampled_from([2048, 0, 1048576]))
def test_no_tree_of_cgroups_raises(
    process: tuple[str, bytes], limit: tuple[str, bytes], name: str, size_kib: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="va-") as directory:
        root = Path(directory)
        (root / f"kernel/mm/hugepages/hugepages-{size_kib}kB").mkdir(parents=True)
        _make(root / "process/cgroup", *process)
        _make(root / f"fs/cgroup/hugetlb.{name}.max", *limit)
        assert [size.size_kib for size in read_hugepages(root, root / "process")] == [size_kib]


@given(
    st.dictionaries(st.sampled_from(_FILES), _ENTRY),
    st.dictionaries(st.sampled_from(["cpulist", "hugepages", "hugepages/a/nr_hugepages"]), _ENTRY),
    st.none() | _ENTRY,
)
def test_no_tree_of_files_raises(
    device: dict[str, tuple[str, bytes]],
    node: dict[str, tuple[str, bytes]],
    parameter: tuple[str, bytes] | None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="va-") as directory:
        root = Path(directory)
        (root / "bus/pci/devices" / VF).mkdir(parents=True)
        for name, (kind, content) in device.items():
            _make(root / "bus/pci/devices" / VF / name, kind, content)
        for name, (kind, content) in node.items():
            if not ("/" in name and "hugepages" in node):
                _make(root / "devices/system/node/node0" / name, kind, content)
        if parameter is not None:
            _make(root / "module/vfio/parameters/enable_unsafe_noiommu_mode", *parameter)
        facts = read_facts(VF, root)
        numa = read_numa({0, 1}, root)
    assert facts.exists
    for value, most in ((facts.vendor, 0xFFFF), (facts.class_code, 0xFFFFFF), (facts.numa_node, 2**31 - 1)):
        assert value is None or 0 <= value <= most
    for finding in assess(facts, numa, hugepages=True).findings:
        assert str(finding).isprintable()
        assert len(str(finding)) <= 200
