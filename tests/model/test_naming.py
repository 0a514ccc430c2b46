"""Socket names."""

from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.model.naming import SocketNaming, assign_names
from vdpa_agent.model.pci import PciAddress

A, B, C, D = (PciAddress(f"0000:82:00.{function}") for function in range(4))


def test_numbers_follow_the_list_at_first() -> None:
    assert assign_names(SocketNaming.INDEX, {}, (B, A)) == {B: "vdpa-0", A: "vdpa-1"}


def test_a_device_keeps_its_number_and_a_new_one_takes_the_lowest_free() -> None:
    taken = {A: "vdpa-0", C: "vdpa-2"}
    assert assign_names(SocketNaming.INDEX, taken, (D, C, B, A)) == {
        D: "vdpa-1",
        C: "vdpa-2",
        B: "vdpa-3",
        A: "vdpa-0",
    }


def test_the_name_of_a_device_that_is_still_leaving_is_not_given_away() -> None:
    assert assign_names(SocketNaming.INDEX, {A: "vdpa-0"}, (B,)) == {B: "vdpa-1"}


def test_names_by_address() -> None:
    assert assign_names(SocketNaming.PCI, {}, (A,)) == {A: "vdpa-0000:82:00.0"}


@given(st.lists(st.lists(st.sampled_from([A, B, C, D]), unique=True)))
def test_names_are_unique_and_kept_over_any_changes(lists: list[list[PciAddress]]) -> None:
    names: dict[PciAddress, str] = {}
    for wanted in lists:
        before = names
        names = assign_names(SocketNaming.INDEX, {a: n for a, n in before.items() if a in wanted}, wanted)
        assert len(set(names.values())) == len(wanted)
        assert all(names[address] == before[address] for address in wanted if address in before)
        assert all(int(name.removeprefix("vdpa-")) < 4 for name in names.values())
