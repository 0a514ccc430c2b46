"""VFs of copied sysfs trees, as they come, change and go."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.trees import PF, Tree
from vdpa_agent.latest import Latest
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.pools import Functions, Pool, Pools, ResourceConfig, Selector, VfFacts
from vdpa_agent.node.discovery import Devices, Discovery

pytestmark = pytest.mark.anyio

OTHER_PF = PciAddress("0000:82:00.1")
PATIENCE_S = 20.0


def address(number: int, bus: int = 0x83) -> PciAddress:
    return PciAddress(f"0000:{bus:02x}:{number // 8:02x}.{number % 8}")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two PFs, the first with eight VFs, the second with two."""
    tree = Tree(tmp_path / "sys")
    for pf, name in ((PF, "ens1f0"), (OTHER_PF, "ens1f1")):
        tree.device(pf, "8086:1592", driver="ice", node=0)
        tree.interface(pf, name)
    for number in range(8):
        tree.vf(PF, number, address(number), node=0)
    for number in range(2):
        tree.vf(OTHER_PF, number, address(number, 0x84), driver="iavf")
    return tree


RANGES = Selector(pf_names=(Functions("ens1f0", ((0, 3), (7, 7))),))
ON_VFIO = Selector(drivers=("vfio-pci",))


def config(*selectors: Selector) -> Loaded[ResourceConfig]:
    return Loaded(ResourceConfig((Pool("vdpa.io/net", selectors),)))


class World:
    """A discovery that runs."""

    def __init__(self, tree: Tree, *selectors: Selector) -> None:
        self.tree = tree
        self.config = Latest(config(*selectors))
        self.discovery = Discovery(self.config, tree.root)

    @property
    def pools(self) -> Pools:
        pools = self.discovery.pools.value.value
        assert pools is not None
        return pools

    async def becomes(self, wanted: Callable[[Pools], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.discovery.pools.wait_for(lambda loaded: loaded.value is not None and wanted(loaded.value))


@asynccontextmanager
async def running(tree: Tree, *selectors: Selector) -> AsyncIterator[World]:
    world = World(tree, *selectors)
    await world.discovery.first()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(world.discovery.run())
        yield world
        task.cancel()


def look(
    tree: Tree, *, named: frozenset[PciAddress] = frozenset(), drivers: tuple[str, ...] = ("vfio-pci",)
) -> dict[PciAddress, VfFacts]:
    return dict(Devices(tree.root).look(named, frozenset(drivers)))


def test_what_selectors_go_by_is_read(tree: Tree) -> None:
    vfs = look(tree)
    assert len(vfs) == 10
    assert vfs[address(7)] == VfFacts(
        address(7),
        vendor="8086",
        device="1889",
        driver="vfio-pci",
        pf=PF,
        pf_names=("ens1f0",),
        number=7,
        numa_node=0,
    )
    assert vfs[address(1, 0x84)].driver == "iavf"
    assert vfs[address(1, 0x84)].numa_node == 1


def test_only_what_is_a_vf_or_named_counts(tree: Tree) -> None:
    tree.device(PciAddress("0000:00:1f.0"), "8086:0001")
    vfs = look(tree, named=frozenset({PF}))
    assert PF in vfs
    assert not vfs[PF].is_vf
    assert "0000:00:1f.0" not in vfs


def test_where_no_driver_matters_none_is_read(tree: Tree) -> None:
    assert {facts.driver for facts in look(tree, drivers=()).values()} == {""}


@pytest.mark.parametrize("broken", ["vendor", "numa_node", "physfn", "net"])
def test_whatever_sysfs_says_a_vf_is_nothing_worse_than_unknown(tree: Tree, broken: str) -> None:
    path = tree.root / "devices/pci0000:80" / address(0)
    if broken == "net":
        names = tree.root / "devices/pci0000:80" / PF / "net"
        (names / "\x1b[2J").mkdir()
        (names / ("x" * 200)).mkdir()
    elif broken == "physfn":
        (path / "physfn").unlink()
        (path / "physfn").symlink_to("../nonsense")
    else:
        (path / broken).write_bytes(b"\xff\x00nonsense")
    facts = look(tree)[address(0)]
    assert facts.pf_names == (() if broken == "physfn" else ("ens1f0",))
    assert facts.vendor == ("" if broken == "vendor" else "8086")


async def test_vfs_by_ranges_of_a_pf(tree: Tree) -> None:
    async with running(tree, RANGES) as world:
        assert world.pools.devices == tuple(map(address, (0, 1, 2, 3, 7)))
        assert world.pools.members[0].taken == (5,)


async def test_a_vf_that_is_made_is_found(tree: Tree) -> None:
    async with running(tree, Selector(root_devices=(Functions(OTHER_PF),))) as world:
        tree.vf(OTHER_PF, 2, address(2, 0x84))
        with capture_logs() as logs:
            await world.becomes(lambda pools: len(pools.devices) == 3)
        assert ("vfs_found", ["0000:84:00.2"], 3) in [(log["event"], log["devices"], log["all"]) for log in logs]


async def test_a_vf_whose_links_come_after_its_directory_is_found(tree: Tree) -> None:
    async with running(tree, Selector(root_devices=(Functions(OTHER_PF, ((2, 2),)),))) as world:
        late = address(2, 0x84)
        path = tree.device(late, "8086:1889")
        await asyncio.sleep(0)
        await world.discovery.first()  # it was looked at before the links came
        (path / "physfn").symlink_to(f"../{OTHER_PF}")
        (path.parent / OTHER_PF / "virtfn2").symlink_to(f"../{late}")
        await world.becomes(lambda pools: pools.devices == (late,))


async def test_a_vf_that_is_gone_is_missed(tree: Tree) -> None:
    async with running(tree, RANGES) as world:
        with capture_logs() as logs:
            tree.remove(address(2))
            await world.becomes(lambda pools: pools.devices == tuple(map(address, (0, 1, 3, 7))))
        assert [(log["event"], log["devices"]) for log in logs] == [("vfs_left", [address(2)])]


async def test_a_vf_that_another_one_replaces_is_read_again(tree: Tree) -> None:
    async with running(tree, Selector(vendors=("15b3",))) as world:
        await world.discovery.first()
        await world.discovery.first()  # by now all that never changes is known
        tree.remove(address(2))
        tree.device(address(2), "15b3:101e", pf=PF)
        await world.becomes(lambda pools: pools.devices == (address(2),))


async def test_a_vf_that_is_bound_to_another_driver_comes_and_goes(tree: Tree) -> None:
    async with running(tree, ON_VFIO) as world:
        tree.bind(address(0, 0x84), "vfio-pci")
        await world.becomes(lambda pools: address(0, 0x84) in pools.devices)
        tree.bind(address(0, 0x84), "iavf")
        await world.becomes(lambda pools: address(0, 0x84) not in pools.devices)
        assert world.pools.outside[0][0] == "vdpa.io/net: its driver is iavf, not vfio-pci"


async def test_a_vf_that_is_missed_once_stays(tree: Tree) -> None:
    world = World(tree, ON_VFIO)
    await world.discovery.first()
    tree.bind(address(0), "iavf")
    await world.discovery._look()
    assert address(0) in world.pools.devices
    tree.bind(address(0), "vfio-pci")
    await world.discovery._look()
    tree.bind(address(0), "iavf")
    await world.discovery._look()
    assert address(0) in world.pools.devices
    await world.discovery._look()
    assert address(0) not in world.pools.devices


async def test_an_interface_that_gets_another_name_is_followed(tree: Tree) -> None:
    async with running(tree, Selector(pf_names=(Functions("lan0"),))) as world:
        assert not world.pools.devices
        net = tree.root / "devices/pci0000:80" / PF / "net"
        (net / "ens1f0").rename(net / "lan0")
        await world.becomes(lambda pools: len(pools.devices) == 8)


async def test_another_config_counts_at_once(tree: Tree) -> None:
    async with running(tree, RANGES) as world:
        world.config.set(config(ON_VFIO))
        await world.becomes(lambda pools: len(pools.devices) == 8)
        world.config.set(config(RANGES))
        await world.becomes(lambda pools: len(pools.devices) == 5)


async def test_a_device_of_a_guest_counts_once_it_is_named(tree: Tree) -> None:
    guest = PciAddress("0000:00:05.0")
    tree.device(guest, "1af4:1041", driver="vfio-pci")
    async with running(tree, RANGES) as world:
        await world.discovery.first()
        world.config.set(config(Selector(pci_addresses=(guest,))))
        await world.becomes(lambda pools: pools.devices == (guest,))
        world.config.set(config(Selector(pci_addresses=(guest,), vendors=("8086",))))
        await world.becomes(lambda pools: ("vdpa.io/net: its vendor is 1af4, not 8086", (guest,)) in pools.outside)


async def test_the_problem_of_the_config_is_that_of_the_pools(tree: Tree) -> None:
    async with running(tree, RANGES) as world:
        world.config.set(world.config.value._replace(problem="entry 1: x", refused=True))
        async with asyncio.timeout(PATIENCE_S):
            loaded = await world.discovery.pools.wait_for(lambda loaded: bool(loaded.problem))
        assert (loaded.problem, loaded.refused, len(loaded.value or Pools().members)) == ("entry 1: x", True, 5)
        assert len(world.pools.devices) == 5


async def test_a_sysfs_that_goes_takes_no_vf_along(tree: Tree) -> None:
    async with running(tree, RANGES) as world:
        shutil.rmtree(tree.root)
        async with asyncio.timeout(PATIENCE_S):
            loaded = await world.discovery.pools.wait_for(lambda loaded: bool(loaded.problem))
        assert "the VFs of the last good look count" in loaded.problem
        assert len(world.pools.devices) == 5


async def test_two_pools_that_claim_vfs_are_named_once(tree: Tree) -> None:
    world = World(tree)
    world.config.set(Loaded(ResourceConfig((Pool("a.b/net", (ON_VFIO,)), Pool("a.b/all", (Selector(),))))))
    with capture_logs() as logs:
        await world.discovery.first()
        await world.discovery._look()
        tree.vf(PF, 8, address(8))
        await world.discovery._look()
    warnings = [log for log in logs if log["event"] == "vfs_contested"]
    assert [(log["pool"], log["other"], log["devices"]) for log in warnings] == [
        ("a.b/net", "a.b/all", [*map(address, range(8))]),
        ("a.b/net", "a.b/all", [address(8)]),
    ]
