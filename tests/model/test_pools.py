"""Which VF belongs to which pool, and why another one does not."""

import pytest

from vdpa_agent.model.loaded import ABSENT, Loaded
from vdpa_agent.model.mapping import ENTRIES_MAX
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Contested, Functions, Pool, Pools, Selector, VfFacts, assign, together

PF = PciAddress("0000:82:00.0")
INTERFACE = "ens1f0"


def vf(number: int, /, **changes: object) -> VfFacts:
    """A VF of the PF."""
    facts = VfFacts(
        PciAddress(f"0000:82:{1 + number // 8:02x}.{number % 8}"),
        vendor="8086",
        device="1889",
        driver="vfio-pci",
        pf=PF,
        pf_names=(INTERFACE,),
        number=number,
    )
    return facts._replace(**changes)  # type: ignore[arg-type]


def vfs(*facts: VfFacts) -> dict[PciAddress, VfFacts]:
    return {one.address: one for one in facts}


EIGHT = vfs(*map(vf, range(8)))


def numbers(pools: Pools, pool: int = 0) -> list[int | None]:
    return [pools.vfs[address].number for address in pools.members[pool].devices]


@pytest.mark.parametrize(
    ("selector", "refused", "why"),
    [
        (Selector(vendors=("15b3",)), {}, "its vendor is 8086, not 15b3"),
        (Selector(devices=("154c", "10ed")), {}, "its device is 1889, not 154c, 10ed"),
        (Selector(drivers=("vfio-pci",)), {"driver": "iavf"}, "its driver is iavf, not vfio-pci"),
        (Selector(drivers=("vfio-pci",)), {"driver": ""}, "its driver is not known, not vfio-pci"),
        (Selector(vendors=("8086",)), {"vendor": ""}, "its vendor is not known, not 8086"),
        (Selector(pci_addresses=(PciAddress("0000:82:05.0"),)), {}, "its address is not 0000:82:05.0"),
        (
            Selector(pf_names=(Functions("ens1f0", ((0, 3), (7, 7))),)),
            {"number": 4},
            "it is VF 4 of ens1f0, not of ens1f0#0-3,7",
        ),
        (Selector(pf_names=(Functions("ens1f1"),)), {}, "it is a VF of ens1f0, not of ens1f1"),
        (
            Selector(pf_names=(Functions("ens1f0"),)),
            {"pf_names": ()},
            "its PF 0000:82:00.0 has no network interface that is seen here; rootDevices goes by address",
        ),
        (
            Selector(root_devices=(Functions("0000:82:00.0", ((1, 2),)),)),
            {},
            "it is VF 0 of 0000:82:00.0, not of 0000:82:00.0#1-2",
        ),
        (
            Selector(root_devices=(Functions("0000:82:00.1"),)),
            {"pf": None},
            "it is a VF of a PF that is not known, not of 0000:82:00.1",
        ),
        (Selector(), {"is_vf": False}, "it is not a VF, and pciAddresses does not name it"),
    ],
)
def test_each_selector_says_why_a_vf_is_not_what_it_asks_for(
    selector: Selector, refused: dict[str, object], why: str
) -> None:
    assert selector.why_not(vf(0, **refused)) == why


@pytest.mark.parametrize(
    "selector",
    [
        Selector(),
        Selector(vendors=("15b3", "8086")),
        Selector(devices=("1889",), drivers=("iavf", "vfio-pci")),
        Selector(pci_addresses=(vf(0).address,)),
        Selector(pf_names=(Functions("ens1f1"), Functions("ens1f0", ((0, 0),)))),
        Selector(root_devices=(Functions("0000:82:00.0"),)),
    ],
)
def test_a_vf_is_what_is_asked_for_if_every_list_names_it(selector: Selector) -> None:
    assert selector.why_not(vf(0)) == ""


def test_the_vfs_of_some_ranges_are_those_of_that_number() -> None:
    pool = Pool("vdpa.io/net", (Selector(pf_names=(Functions(INTERFACE, ((0, 3), (7, 7))),)),))
    assert numbers(assign((pool,), EIGHT)) == [0, 1, 2, 3, 7]


def test_the_first_selector_that_matches_counts() -> None:
    selectors = (Selector(pf_names=(Functions(INTERFACE, ((0, 1),)),)), Selector(vendors=("8086",)))
    assert assign((Pool("vdpa.io/net", selectors),), EIGHT).members[0].taken == (2, 6)


def test_of_two_pools_that_claim_a_vf_the_first_has_it() -> None:
    first = Pool("vdpa.io/first", (Selector(pf_names=(Functions(INTERFACE, ((2, 3),)),)),))
    pools = assign((first, Pool("vdpa.io/all", (Selector(),)), Pool("vdpa.io/none", (Selector(),))), EIGHT)
    assert numbers(pools, 0) == [2, 3]
    assert numbers(pools, 1) == [0, 1, 4, 5, 6, 7]
    assert not pools.members[2].devices
    assert pools.contested[:3] == (
        Contested(vf(0).address, "vdpa.io/all", "vdpa.io/none"),
        Contested(vf(1).address, "vdpa.io/all", "vdpa.io/none"),
        Contested(vf(2).address, "vdpa.io/first", "vdpa.io/all"),
    )
    assert len(set(pools.devices)) == len(pools.devices) == 8


def test_vfs_outside_are_grouped_by_the_reason() -> None:
    other = [vf(number, driver="iavf") for number in (8, 9)]
    pool = Pool("vdpa.io/net", (Selector(drivers=("vfio-pci",)),))
    outside = assign((pool,), EIGHT | vfs(*other)).outside
    assert outside == (("vdpa.io/net: its driver is iavf, not vfio-pci", tuple(one.address for one in other)),)


def test_many_selectors_are_not_all_named_in_a_reason() -> None:
    pool = Pool("vdpa.io/net", tuple(Selector(devices=(f"{n:04x}",)) for n in range(9)))
    ((reason, _),) = assign((pool,), vfs(vf(0))).outside
    assert reason.count("vdpa.io/net") == 4
    assert reason.endswith("; and 5 selectors more")


def test_a_guests_device_counts_only_where_its_address_is_named() -> None:
    guest = vf(0, is_vf=False, pf=None, number=None, pf_names=())
    named = Pool("vdpa.io/named", (Selector(pci_addresses=(guest.address,)),))
    pools = assign((Pool("vdpa.io/all", (Selector(),)), named), vfs(guest))
    assert pools.members[0].devices == ()
    assert pools.members[1].devices == (guest.address,)


def test_simulated_vfs_have_addresses_of_their_own_that_stay() -> None:
    one, two = Pool("vdpa.io/one", simulated=9), Pool("vdpa.io/two", (Selector(),), simulated=1)
    pools = assign((one, two), EIGHT)
    assert pools.members[0].devices[7:] == ("ffff:00:00.7", "ffff:00:01.0")
    assert pools.members[1].devices == (*EIGHT, "ffff:01:00.0")
    assert assign((one._replace(simulated=2), two), EIGHT).members[1].devices == pools.members[1].devices


def test_a_node_has_no_more_devices_than_a_list_may_name() -> None:
    many = {
        PciAddress(f"{domain:04x}:82:{n >> 3:02x}.{n & 7}"): VfFacts(
            PciAddress(f"{domain:04x}:82:{n >> 3:02x}.{n & 7}")
        )
        for domain in range(17)
        for n in range(256)
    }
    pools = assign((Pool("vdpa.io/all", (Selector(),), simulated=3),), many)
    assert len(pools.devices) == ENTRIES_MAX
    assert pools.left_out == len(many) + 3 - ENTRIES_MAX


def test_the_devices_of_list_and_pools_count_together() -> None:
    pools = assign((Pool("vdpa.io/net", (Selector(),)),), EIGHT)
    mine = PciAddress("0000:99:00.1")
    devices: DeviceList = (mine, vf(3).address)
    listed = Loaded(devices, "line 9", refused=True)
    others = [address for address in EIGHT if address != vf(3).address]
    assert together(listed, Loaded(pools)) == Loaded((*devices, *others), "line 9", refused=True)
    assert together(Loaded(None, ABSENT), Loaded(pools)) == Loaded(tuple(EIGHT))
    assert together(listed, Loaded(None, "not JSON", refused=True)) is listed
    assert together(Loaded(), Loaded(Pools())) == Loaded(())
