"""Verdicts about PCI devices, and their device arguments."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.preflight import (
    HugepageFacts,
    NumaFacts,
    PciFacts,
    Severity,
    Verdict,
    assess,
    devargs_of,
    forbidden,
    takes_hugepages,
)

ADDRESS: Final = PciAddress("0000:82:00.2")
IFC: Final = PciFacts(
    address=ADDRESS,
    exists=True,
    vendor=0x1AF4,
    device=0x1041,
    subsystem_vendor=0x8086,
    class_code=0x020000,
    is_vf=True,
    pf=PciAddress("0000:82:00.0"),
    driver="vfio-pci",
    iommu_group=41,
    numa_node=1,
    no_iommu=False,
)
MLX5: Final = IFC._replace(vendor=0x15B3, device=0x101E, subsystem_vendor=0x15B3, driver="mlx5_core", iommu_group=None)
SFC: Final = IFC._replace(vendor=0x10EE, device=0x1100, subsystem_vendor=0x10EE)
NFP: Final = IFC._replace(vendor=0x19EE, device=0x6003, subsystem_vendor=0x19EE)
STRANGER: Final = IFC._replace(vendor=0x8086, device=0x1889)
NOWHERE: Final = NumaFacts()
IOMMU_ON: Final = "turn the IOMMU on in the firmware and boot with intel_iommu=on or amd_iommu=on"


def _blocks(verdict: Verdict) -> list[str]:
    return [str(finding) for finding in verdict.findings if finding.severity is Severity.BLOCKS]


@pytest.mark.parametrize("facts", [IFC, MLX5, SFC, NFP], ids=["ifc", "mlx5", "sfc", "nfp"])
def test_a_device_as_it_should_be_has_no_findings(facts: PciFacts) -> None:
    numa = NumaFacts(cpu_nodes=frozenset({0, 1}), hugepage_nodes=frozenset({1}))
    assert assess(facts, numa, hugepages=True) == Verdict()


@pytest.mark.parametrize(
    ("vendor", "devargs"),
    [
        (0x8086, "vdpa=1"),
        (0x1AF4, "vdpa=1"),
        (0x15B3, "class=vdpa"),
        (0x1924, "class=vdpa"),
        (0x10EE, "class=vdpa"),
        (0x19EE, "class=vdpa"),
        (0x1DA8, "class=vdpa"),
        (0xBEEF, "class=vdpa"),
        (None, "class=vdpa"),
    ],
)
def test_device_arguments_go_by_vendor(vendor: int | None, devargs: str) -> None:
    assert devargs_of(IFC._replace(vendor=vendor), {}) == devargs


@pytest.mark.parametrize("given_devargs", ["vdpa=1,sw-live-migration=1", ""])
def test_device_arguments_that_were_given_win_for_their_device_only(given_devargs: str) -> None:
    other = PciAddress("0000:82:00.3")
    assert devargs_of(IFC, {ADDRESS: given_devargs}) == given_devargs
    assert devargs_of(IFC, {other: given_devargs}) == "vdpa=1"


def test_a_missing_device() -> None:
    verdict = assess(PciFacts(address=ADDRESS, exists=False), NOWHERE, hugepages=True)
    assert verdict.refusal.startswith("0000:82:00.2 is no PCI device of this machine: ")
    assert len(verdict.findings) == 1


@pytest.mark.parametrize(
    ("facts", "refusal"),
    [
        (
            IFC._replace(driver="iavf"),
            "0000:82:00.2 is bound to iavf, not to vfio-pci: driverctl set-override 0000:82:00.2 vfio-pci",
        ),
        (
            IFC._replace(driver=None),
            "0000:82:00.2 is bound to no driver: driverctl set-override 0000:82:00.2 vfio-pci",
        ),
        (
            SFC._replace(driver="sfc_ef100"),
            "0000:82:00.2 is bound to sfc_ef100, not to vfio-pci: driverctl set-override 0000:82:00.2 vfio-pci",
        ),
        (
            NFP._replace(driver="nfp_netvf"),
            "0000:82:00.2 is bound to nfp_netvf, not to vfio-pci: driverctl set-override 0000:82:00.2 vfio-pci",
        ),
        (
            MLX5._replace(driver="vfio-pci"),
            "0000:82:00.2 is bound to vfio-pci, not to mlx5_core: driverctl set-override 0000:82:00.2 mlx5_core",
        ),
        (
            MLX5._replace(driver="uio_pci_generic"),
            "0000:82:00.2 is bound to uio_pci_generic, not to mlx5_core: driverctl set-override 0000:82:00.2 mlx5_core",
        ),
        (
            MLX5._replace(driver=None),
            "0000:82:00.2 is bound to no driver: driverctl set-override 0000:82:00.2 mlx5_core",
        ),
        (
            IFC._replace(vendor=0xBEEF, driver=None),
            "0000:82:00.2 is bound to no driver: driverctl set-override 0000:82:00.2 vfio-pci",
        ),
        (
            IFC._replace(iommu_group=None),
            f"0000:82:00.2 is in no IOMMU group: {IOMMU_ON}",
        ),
    ],
)
def test_what_blocks(facts: PciFacts, refusal: str) -> None:
    verdict = assess(facts, NOWHERE, hugepages=False)
    assert verdict.refusal == refusal
    assert _blocks(verdict) == [refusal]


def test_a_refusal_names_the_cause_before_what_may_follow_from_it() -> None:
    verdict = assess(IFC._replace(driver="iavf", iommu_group=None, is_vf=False), NOWHERE, hugepages=False)
    assert "iavf" in verdict.refusal
    assert len(_blocks(verdict)) == 2
    assert len(verdict.doubts) == 1


@pytest.mark.parametrize(
    ("facts", "doubt"),
    [
        (IFC._replace(driver="igb_uio"), "is bound to igb_uio, not to vfio-pci"),
        (NFP._replace(driver="uio_pci_generic"), "is bound to uio_pci_generic, not to vfio-pci"),
        (IFC._replace(iommu_group=None, no_iommu=True), "runs without IOMMU and may overwrite any memory of the host"),
        (IFC._replace(is_vf=False, pf=None), "is no virtual function"),
        (IFC._replace(subsystem_vendor=0x1AF4), "is 1af4:1041 of subsystem vendor 1af4, of which no vDPA driver"),
        (STRANGER, "is 8086:1889 of subsystem vendor 8086, of which no vDPA driver of DPDK is known"),
        (IFC._replace(vendor=0xBEEF, driver="whatever"), "is beef:1041 of subsystem vendor 8086"),
        (MLX5._replace(device=0x1018), "is 15b3:1018 of subsystem vendor 15b3"),
    ],
)
def test_what_is_only_a_doubt(facts: PciFacts, doubt: str) -> None:
    verdict = assess(facts, NOWHERE, hugepages=False)
    assert verdict.refusal == ""
    assert [text for text in verdict.doubts if doubt in text] == list(verdict.doubts)
    assert len(verdict.doubts) == 1


@pytest.mark.parametrize("name", ["driver", "iommu_group"])
def test_what_could_not_be_read_blocks_nothing(name: str) -> None:
    facts = IFC._replace(**{name: None, "unreadable": (name,)})  # type: ignore[arg-type]
    verdict = assess(facts, NOWHERE, hugepages=False)
    assert verdict.refusal == ""
    assert verdict.doubts == (
        f"sysfs tells nothing readable by {name} of 0000:82:00.2: ls -lL /sys/bus/pci/devices/0000:82:00.2/",
    )


def test_nothing_is_held_against_a_device_that_nobody_can_see() -> None:
    verdict = assess(PciFacts(address=ADDRESS, exists=None, unreadable=("directory",)), NOWHERE, hugepages=True)
    assert verdict.refusal == ""
    assert len(verdict.doubts) == 1


@pytest.mark.parametrize("name", ["vendor", "device"])
def test_an_id_that_is_not_known_is_not_held_against_a_device(name: str) -> None:
    facts = IFC._replace(**{name: None})  # type: ignore[arg-type]
    assert assess(facts, NOWHERE, hugepages=False) == Verdict()


def test_a_subsystem_that_is_not_known_is_not_held_against_a_device() -> None:
    assert assess(IFC._replace(subsystem_vendor=None), NOWHERE, hugepages=False) == Verdict()


def test_cpus_far_from_the_device() -> None:
    verdict = assess(IFC, NumaFacts(cpu_nodes=frozenset({0, 2, 3, 4, 5})), hugepages=False)
    reason = "0000:82:00.2 is on NUMA node 1, the daemon's CPUs are on 0, 2, 3, 4, ..."
    remedy = 'start the agent with taskset -c "$(cat /sys/devices/system/node/node1/cpulist)"'
    assert verdict.doubts == (f"{reason}: {remedy}",)


def test_hugepages_far_from_the_device_matter_to_a_daemon_that_uses_them() -> None:
    numa = NumaFacts(cpu_nodes=frozenset({1}), hugepage_nodes=frozenset({0}))
    assert assess(IFC, numa, hugepages=False) == Verdict()
    reason = "0000:82:00.2 is on NUMA node 1, which has no hugepages"
    remedy = "echo 64 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    assert assess(IFC, numa, hugepages=True).doubts == (f"{reason}: {remedy}",)


@pytest.mark.parametrize("numa", [NOWHERE, NumaFacts(cpu_nodes=frozenset(), hugepage_nodes=frozenset({1}))])
def test_what_is_not_known_of_the_nodes_is_no_doubt(numa: NumaFacts) -> None:
    assert assess(IFC, numa, hugepages=True) == Verdict()


def test_node_0_is_a_node() -> None:
    numa = NumaFacts(cpu_nodes=frozenset({1}), hugepage_nodes=frozenset({1}))
    doubts = assess(IFC._replace(numa_node=0), numa, hugepages=True).doubts
    assert [doubt.partition(":00.2 ")[2].partition(",")[0] for doubt in doubts] == ["is on NUMA node 0"] * 2


def test_a_machine_without_nodes_has_none_that_is_wrong() -> None:
    numa = NumaFacts(cpu_nodes=frozenset({0}), hugepage_nodes=frozenset())
    assert assess(IFC._replace(numa_node=None), numa, hugepages=True) == Verdict()


_IDS = st.none() | st.sampled_from([0x8086, 0x1AF4, 0x15B3, 0x10EE, 0x19EE]) | st.integers(0, 0xFFFF)
_NAMES = ["vendor", "device", "subsystem_vendor", "class", "physfn", "driver", "iommu_group", "numa_node"]
_WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=32)
_FACTS = st.builds(
    PciFacts,
    address=st.sampled_from([ADDRESS, PciAddress("ffffffff:ff:1f.7")]),
    exists=st.none() | st.booleans(),
    vendor=_IDS,
    device=_IDS,
    subsystem_vendor=_IDS,
    is_vf=st.none() | st.booleans(),
    driver=st.none() | st.sampled_from(["vfio-pci", "mlx5_core", "igb_uio", "d" * 32]),
    iommu_group=st.none() | st.integers(0, 10**9 - 1),
    neighbours=st.lists(st.tuples(_WORDS, _WORDS), max_size=9).map(tuple),
    numa_node=st.none() | st.integers(0, 2**31 - 1),
    no_iommu=st.none() | st.booleans(),
    unreadable=st.lists(st.sampled_from(_NAMES), unique=True).map(tuple),
)
_NODES = st.none() | st.frozensets(st.integers(0, 10**9 - 1))


@given(facts=_FACTS, numa=st.builds(NumaFacts, cpu_nodes=_NODES, hugepage_nodes=_NODES), hugepages=st.booleans())
def test_every_finding_is_one_short_line_that_names_the_device(
    facts: PciFacts, numa: NumaFacts, *, hugepages: bool
) -> None:
    verdict = assess(facts, numa, hugepages=hugepages)
    for finding in verdict.findings:
        text = str(finding)
        assert facts.address in text
        assert text.isprintable()
        assert len(text) <= 200, text
        assert finding.reason
        assert finding.remedy
    assert bool(verdict.refusal) == any(finding.severity is Severity.BLOCKS for finding in verdict.findings)
    assert len(verdict.doubts) + len(_blocks(verdict)) == len(verdict.findings)
    assert not (verdict.refusal and facts.exists is None)


@pytest.mark.parametrize(
    "neighbours",
    [
        (("0000:82:00.3", "vfio-pci"), ("0000:80:01.0", "pcieport"), ("0000:82:00.4", "pci-stub")),
        (("0000:82:00.3", "mlx5_vfio_pci"),),
    ],
)
def test_what_may_be_in_the_group(neighbours: tuple[tuple[str, str], ...]) -> None:
    assert assess(IFC._replace(neighbours=neighbours), NOWHERE, hugepages=False) == Verdict()


def test_a_group_that_the_kernel_holds_a_part_of() -> None:
    others = tuple((f"0000:83:00.{number}", "ixgbe") for number in range(6))
    shared = f"{ADDRESS} shares IOMMU group 41 with 0000:83:00.0 on ixgbe"
    one = IFC._replace(neighbours=(others[0], ("0000:82:00.3", "vfio-pci")))
    override = "driverctl set-override 0000:83:00.0 vfio-pci"
    assert _blocks(assess(one, NOWHERE, hugepages=False)) == [f"{shared}: {override}"]
    (many,) = _blocks(assess(IFC._replace(neighbours=others), NOWHERE, hugepages=False))
    assert many == f"{shared} and 5 more: {override}  # so each of them"
    # The VFs would be gone with the driver of their physical function.
    (pf,) = _blocks(assess(IFC._replace(neighbours=(("0000:82:00.0", "ice"),)), NOWHERE, hugepages=False))
    assert pf.endswith("with 0000:82:00.0 on ice: use a slot with ACS, where each device has a group of its own")
    # mlx5 works through the kernel's own driver; without an IOMMU there is no group to share; uio knows no groups.
    for facts in (
        MLX5._replace(iommu_group=41),
        IFC._replace(iommu_group=None, no_iommu=True),
        IFC._replace(driver="uio_pci_generic"),
    ):
        assert not _blocks(assess(facts._replace(neighbours=others), NOWHERE, hugepages=False))


SMALL: Final = HugepageFacts(size_kib=2048, total=64, free=60, forbidden_by="/c/hugetlb.2MB.max")
HUGE: Final = HugepageFacts(size_kib=1048576, total=4, free=4)
V1: Final = "/c/hugetlb.1GB.limit_in_bytes"


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([], None),
        ([HUGE._replace(total=0, free=0, forbidden_by=V1)], None),
        ([SMALL, HUGE], None),
        ([SMALL, HUGE._replace(free=0)], "/c/hugetlb.2MB.max"),
        ([SMALL, HUGE._replace(forbidden_by=V1)], "/c/hugetlb.2MB.max"),
        ([SMALL._replace(free=0)], "/c/hugetlb.2MB.max"),
        ([HUGE._replace(forbidden_by=V1)], V1),
    ],
)
def test_whether_the_cgroup_forbids_every_hugepage(sizes: list[HugepageFacts], told: str | None) -> None:
    finding = forbidden(sizes)
    if told is None:
        assert finding is None
    else:
        value = "max" if told.endswith(".max") else "-1"
        assert finding is not None
        assert finding.reason == f"{told} allows no hugepages"
        assert finding.remedy == f"echo {value} > {told}  # in Kubernetes hugepages.size of the chart"


def test_whether_the_daemon_takes_hugepages() -> None:
    somewhere = NumaFacts(hugepage_nodes=frozenset({0}))
    assert takes_hugepages("auto", somewhere, [HUGE])
    assert not takes_hugepages("auto", somewhere, [SMALL])
    assert not takes_hugepages("auto", NumaFacts(hugepage_nodes=frozenset()), [])
    assert takes_hugepages("hugepages", NumaFacts(), [SMALL])
    assert not takes_hugepages("auto", NOWHERE, [HUGE])
    assert not takes_hugepages("none", somewhere, [HUGE])
    assert not takes_hugepages("none", somewhere, [HUGE])
