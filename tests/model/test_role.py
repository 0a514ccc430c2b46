"""The role, by what is there."""

from pathlib import PurePath
from types import MappingProxyType

import pytest

from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.role import is_own, role_after

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
LISTED, EMPTY, NO_LIST = Loaded[DeviceList]((A,)), Loaded[DeviceList](()), Loaded[DeviceList]()
MAPPED, UNMAPPED = Loaded(Mapping(MappingProxyType({A: "/v/vdpa-0"}))), Loaded[Mapping]()


@pytest.mark.parametrize(
    ("before", "wanted", "mapping", "may_manage", "leftover", "after"),
    [
        (Role.WAITING, NO_LIST, UNMAPPED, True, False, Role.WAITING),
        (Role.WAITING, LISTED, MAPPED, True, False, Role.MANAGING),
        (Role.WAITING, EMPTY, MAPPED, True, False, Role.MANAGING),
        (Role.WAITING, LISTED, MAPPED, False, False, Role.SERVING),
        (Role.WAITING, NO_LIST, MAPPED, True, False, Role.SERVING),
        (Role.WAITING, NO_LIST, MAPPED, True, True, Role.WAITING),
        (Role.SERVING, NO_LIST, UNMAPPED, True, False, Role.WAITING),
        (Role.SERVING, LISTED, MAPPED, True, False, Role.MANAGING),
        (Role.MANAGING, NO_LIST, MAPPED, False, False, Role.MANAGING),
    ],
)
def test_role(
    before: Role,
    wanted: Loaded[DeviceList],
    mapping: Loaded[Mapping],
    *,
    may_manage: bool,
    leftover: bool,
    after: Role,
) -> None:
    assert role_after(before, wanted, mapping, may_manage=may_manage, leftover=leftover) is after


def test_a_mapping_is_own_only_if_every_entry_is() -> None:
    directory, names = PurePath("/v"), {A: "vdpa-0", B: "vdpa-1"}

    def of(**sockets: str) -> Mapping:
        return Mapping(MappingProxyType({{"a": A, "b": B}[name]: path for name, path in sockets.items()}))

    assert is_own(of(a="/v/vdpa-0", b="/v/vdpa-1"), names, directory, PurePath("/d"))
    assert is_own(of(b="/v/vdpa-1"), names, directory, PurePath("/d"))
    assert is_own(Mapping(), names, directory, PurePath("/d"))
    assert is_own(of(a=f"/d/{A}/vhost.sock", b="/v/vdpa-1"), names, directory, PurePath("/d"))
    assert not is_own(of(a=f"/d/{B}/vhost.sock"), names, directory, PurePath("/d"))
    assert not is_own(Mapping(), {}, directory, PurePath("/d"))
    assert not is_own(of(a="/v/vdpa-1"), names, directory, PurePath("/d"))
    assert not is_own(of(a="/v/vdpa-0", b="/other/vdpa-1"), names, directory, PurePath("/d"))
    assert not is_own(of(a="/v/vdpa-0", b="/v/vdpa-1"), {A: "vdpa-0"}, directory, PurePath("/d"))
