"""The lists and pools of this node: as a running agent knows them, or as its files and sysfs say."""

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from vdpa_agent.config import AgentConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files.disk import Content, Unreadable, read
from vdpa_agent.files.formats import Form, decode_device_list, decode_mapping_file, form_of
from vdpa_agent.files.resource_config import decode_resource_config
from vdpa_agent.model.loaded import ABSENT, Loaded
from vdpa_agent.model.mapping import Mapping as SocketMapping
from vdpa_agent.model.node import PoolFacts, PoolsFacts
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Pools, assign, named_addresses, named_drivers
from vdpa_agent.node.discovery import Devices
from vdpa_agent.serve.pb import device_service_pb2 as pb

T = TypeVar("T")


class Sources(NamedTuple):
    """What says which devices there are to be.

    Attributes:
        wanted: the device list.
        mapping: the mapping.
        pools: the pools; None: there is no resource config.
        pooled: the VFs of all pools.
    """

    wanted: Loaded[DeviceList]
    mapping: Loaded[SocketMapping]
    pools: PoolsFacts | None = None
    pooled: DeviceList = ()

    @property
    def has_devices(self) -> bool:
        """Whether an agent would manage a daemon for them."""
        return self.wanted.value is not None or (self.pools is not None and self.pools.is_loaded)


def sources_of_agent(config: AgentConfig, status: pb.GetStatusResponse, devices: Sequence[pb.Device]) -> Sources:
    """What a running agent knows: it may see other files, and keeps the last good ones."""
    role = status.role
    sockets = {PciAddress(device.pci_address): device.socket_path for device in devices}
    pooled = tuple(PciAddress(device.pci_address) for device in devices if device.resource)
    listed = tuple(address for address in sockets if address not in frozenset(pooled))
    wanted = role == pb.ROLE_MANAGING and (listed or not pooled)
    return Sources(
        wanted=Loaded(listed if wanted else None, status.device_list_problem),
        mapping=Loaded(
            SocketMapping(MappingProxyType(sockets)) if role == pb.ROLE_SERVING else None, status.mapping_problem
        ),
        pools=_pools_of_agent(config, status),
        pooled=pooled,
    )


def sources_of_files(config: AgentConfig) -> Sources:
    """What an agent that were started here would find."""
    pci_list, socket_list = read(config.files.pci_list), read(config.files.socket_list)
    if isinstance(socket_list, bytes) and form_of(socket_list) is Form.LINES:
        # An agent would take it as the device list.
        pci_list, socket_list = socket_list, None
    found = _look(config)
    return Sources(
        wanted=_loaded(pci_list, lambda content: decode_device_list(content)[0]),
        mapping=_loaded(socket_list, decode_mapping_file),
        pools=_pools(config, found),
        pooled=found.value.devices if found.value else (),
    )


def _pools_of_agent(config: AgentConfig, status: pb.GetStatusResponse) -> PoolsFacts | None:
    if config.files.resource_config is None:
        return None
    pools = [
        PoolFacts(pool.resource, len(pool.pci_addresses), tuple((one.selector, one.vfs) for one in pool.selectors))
        for pool in status.pools
    ]
    return PoolsFacts(
        path=str(config.files.resource_config),
        problem=status.resource_config_problem,
        is_loaded=bool(pools) or not status.resource_config_problem,
        pools=tuple(pools),
        contested=tuple((vf.pci_address, vf.resource, vf.other_resource) for vf in status.contested_vfs),
        outside=tuple((group.reason, tuple(group.pci_addresses)) for group in status.vfs_outside_pools),
    )


def _pools(config: AgentConfig, found: Loaded[Pools]) -> PoolsFacts | None:
    if config.files.resource_config is None:
        return None
    pools = found.value or Pools()
    return PoolsFacts(
        path=str(config.files.resource_config),
        problem=found.problem,
        is_loaded=found.value is not None,
        pools=tuple(
            PoolFacts(pool.resource, len(devices), tuple(zip(map(str, pool.selectors), taken, strict=True)))
            for pool, devices, taken in pools.members
        ),
        contested=tuple(pools.contested),
        outside=pools.outside,
    )


def _look(config: AgentConfig) -> Loaded[Pools]:
    """What the resource config asks for, and sysfs has."""
    path = config.files.resource_config
    if path is None:
        return Loaded()
    loaded = _loaded(read(path), partial(decode_resource_config, simulate=config.daemon.simulate))
    if loaded.value is None:
        return Loaded(None, loaded.problem, loaded.refused)
    pools, devices = loaded.value.pools, Devices(config.daemon.sysfs)
    try:
        vfs = devices.look(named_addresses(pools), named_drivers(pools))
    except OSError:
        return Loaded(assign(pools, {}), f"{devices.path} cannot be read")
    return Loaded(assign(pools, vfs))


def _loaded(content: Content, decode: Callable[[bytes], T]) -> Loaded[T]:
    if content is None:
        return Loaded(None, ABSENT)
    if isinstance(content, Unreadable):
        return Loaded(None, content.reason, refused=True)
    try:
        return Loaded(decode(content))
    except FileRefused as error:
        return Loaded(None, str(error), refused=True)
