"""Socket names."""

from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.model.naming import Names, SocketNaming, assign_names
from vdpa_agent.model.pci import PciAddress

A, B, C, D, E = (PciAddress(f"0000:82:00.{function}") for function in range(5))
INDEX = SocketNaming.INDEX


def test_numbers_follow_the_list_at_first() -> None:
    assert assign_names(INDEX, {}, (B, A)) == Names({B: "vdpa-0", A: "vdpa-1"})


def test_a_device_keeps_its_number_and_a_new_one_takes_the_lowest_free() -> None:
    kept = {A: "vdpa-0", C: "vdpa-2"}
    assert assign_names(INDEX, kept, (D, C, B, A)).names == {D: "vdpa-1", C: "vdpa-2", B: "vdpa-3", A: "vdpa-0"}


def test_the_number_of_a_device_off_the_list_is_given_to_no_other() -> None:
    names = assign_names(INDEX, {A: "vdpa-0", C: "vdpa-1"}, (C, B)).names
    assert names == {A: "vdpa-0", C: "vdpa-1", B: "vdpa-2"}
    assert assign_names(INDEX, names, (A,)).names[A] == "vdpa-0"


def test_only_when_no_number_is_left_the_longest_unused_one_is_given_away() -> None:
    names: dict[PciAddress, str] = {}
    for wanted in ((A, B, C), (B, C), (C,)):
        names = assign_names(INDEX, names, wanted, most=3).names
    assert list(names) == [A, B, C]
    assert assign_names(INDEX, names, (C, D), most=3) == Names({B: "vdpa-1", C: "vdpa-2", D: "vdpa-0"}, taken_over=(A,))
    assert assign_names(INDEX, names, (C, B, D), most=3).names[D] == "vdpa-0"


def test_names_by_address() -> None:
    assert assign_names(SocketNaming.PCI, {}, (A,)).names == {A: "vdpa-0000:82:00.0"}


@given(st.lists(st.lists(st.sampled_from([A, B, C, D, E]), unique=True, max_size=4)))
def test_names_are_unique_and_kept_over_any_changes(lists: list[list[PciAddress]]) -> None:
    names: dict[PciAddress, str] = {}
    for wanted in lists:
        before = names
        names, taken_over = assign_names(INDEX, before, wanted, most=4)
        assert len(set(names.values())) == len(names) <= 4
        assert set(wanted) <= names.keys()
        assert all(names[address] == before[address] for address in before if address not in taken_over)
        assert not set(taken_over) & set(wanted)
        assert all(int(name.removeprefix("vdpa-")) < 4 for name in names.values())
