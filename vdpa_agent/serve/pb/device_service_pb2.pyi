import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_WAITING: _ClassVar[Role]
    ROLE_MANAGING: _ClassVar[Role]
    ROLE_SERVING: _ClassVar[Role]

class DaemonState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DAEMON_STATE_UNSPECIFIED: _ClassVar[DaemonState]
    DAEMON_STATE_IDLE: _ClassVar[DaemonState]
    DAEMON_STATE_STARTING: _ClassVar[DaemonState]
    DAEMON_STATE_RUNNING: _ClassVar[DaemonState]
    DAEMON_STATE_BACKOFF: _ClassVar[DaemonState]
    DAEMON_STATE_STOPPING: _ClassVar[DaemonState]
    DAEMON_STATE_STOPPED: _ClassVar[DaemonState]

class DeviceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_STATE_UNSPECIFIED: _ClassVar[DeviceState]
    DEVICE_STATE_WANTED: _ClassVar[DeviceState]
    DEVICE_STATE_STARTING: _ClassVar[DeviceState]
    DEVICE_STATE_READY: _ClassVar[DeviceState]
    DEVICE_STATE_CONNECTED: _ClassVar[DeviceState]
    DEVICE_STATE_FAILED: _ClassVar[DeviceState]
    DEVICE_STATE_REMOVING: _ClassVar[DeviceState]

class VhostMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VHOST_MODE_UNSPECIFIED: _ClassVar[VhostMode]
    VHOST_MODE_SERVER: _ClassVar[VhostMode]
    VHOST_MODE_CLIENT: _ClassVar[VhostMode]
ROLE_UNSPECIFIED: Role
ROLE_WAITING: Role
ROLE_MANAGING: Role
ROLE_SERVING: Role
DAEMON_STATE_UNSPECIFIED: DaemonState
DAEMON_STATE_IDLE: DaemonState
DAEMON_STATE_STARTING: DaemonState
DAEMON_STATE_RUNNING: DaemonState
DAEMON_STATE_BACKOFF: DaemonState
DAEMON_STATE_STOPPING: DaemonState
DAEMON_STATE_STOPPED: DaemonState
DEVICE_STATE_UNSPECIFIED: DeviceState
DEVICE_STATE_WANTED: DeviceState
DEVICE_STATE_STARTING: DeviceState
DEVICE_STATE_READY: DeviceState
DEVICE_STATE_CONNECTED: DeviceState
DEVICE_STATE_FAILED: DeviceState
DEVICE_STATE_REMOVING: DeviceState
VHOST_MODE_UNSPECIFIED: VhostMode
VHOST_MODE_SERVER: VhostMode
VHOST_MODE_CLIENT: VhostMode

class ListDevicesRequest(_message.Message):
    __slots__ = ("include_statistics",)
    INCLUDE_STATISTICS_FIELD_NUMBER: _ClassVar[int]
    include_statistics: bool
    def __init__(self, include_statistics: _Optional[bool] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class GetDeviceRequest(_message.Message):
    __slots__ = ("pci_address",)
    PCI_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    pci_address: str
    def __init__(self, pci_address: _Optional[str] = ...) -> None: ...

class GetDeviceResponse(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: Device
    def __init__(self, device: _Optional[_Union[Device, _Mapping]] = ...) -> None: ...

class WatchDevicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchDevicesResponse(_message.Message):
    __slots__ = ("initial", "devices", "removed_pci_addresses")
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_PCI_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    initial: bool
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    removed_pci_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, initial: _Optional[bool] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., removed_pci_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "uptime", "role", "daemon", "live", "ready", "not_ready_reasons", "device_list_problem", "mapping_problem", "settings", "degraded_reasons", "waiting_for", "daemons", "resource_config_problem", "pools", "vfs_outside_pools", "contested_vfs", "front_ends")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class DaemonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: DaemonStatus
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[DaemonStatus, _Mapping]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DAEMON_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    NOT_READY_REASONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_LIST_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    MAPPING_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASONS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    DAEMONS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_CONFIG_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    VFS_OUTSIDE_POOLS_FIELD_NUMBER: _ClassVar[int]
    CONTESTED_VFS_FIELD_NUMBER: _ClassVar[int]
    FRONT_ENDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    uptime: _duration_pb2.Duration
    role: Role
    daemon: DaemonStatus
    live: bool
    ready: bool
    not_ready_reasons: _containers.RepeatedScalarFieldContainer[str]
    device_list_problem: str
    mapping_problem: str
    settings: _containers.ScalarMap[str, str]
    degraded_reasons: _containers.RepeatedScalarFieldContainer[str]
    waiting_for: str
    daemons: _containers.MessageMap[str, DaemonStatus]
    resource_config_problem: str
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    vfs_outside_pools: _containers.RepeatedCompositeFieldContainer[VfsOutsidePools]
    contested_vfs: _containers.RepeatedCompositeFieldContainer[ContestedVf]
    front_ends: FrontEnds
    def __init__(self, version: _Optional[str] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., role: _Optional[_Union[Role, str]] = ..., daemon: _Optional[_Union[DaemonStatus, _Mapping]] = ..., live: _Optional[bool] = ..., ready: _Optional[bool] = ..., not_ready_reasons: _Optional[_Iterable[str]] = ..., device_list_problem: _Optional[str] = ..., mapping_problem: _Optional[str] = ..., settings: _Optional[_Mapping[str, str]] = ..., degraded_reasons: _Optional[_Iterable[str]] = ..., waiting_for: _Optional[str] = ..., daemons: _Optional[_Mapping[str, DaemonStatus]] = ..., resource_config_problem: _Optional[str] = ..., pools: _Optional[_Iterable[_Union[Pool, _Mapping]]] = ..., vfs_outside_pools: _Optional[_Iterable[_Union[VfsOutsidePools, _Mapping]]] = ..., contested_vfs: _Optional[_Iterable[_Union[ContestedVf, _Mapping]]] = ..., front_ends: _Optional[_Union[FrontEnds, _Mapping]] = ...) -> None: ...

class FrontEnds(_message.Message):
    __slots__ = ("connected", "configured", "refused", "last_refused_pci_address", "last_refusal", "last_refusal_age")
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    CONFIGURED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LAST_REFUSED_PCI_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAST_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    LAST_REFUSAL_AGE_FIELD_NUMBER: _ClassVar[int]
    connected: int
    configured: int
    refused: int
    last_refused_pci_address: str
    last_refusal: str
    last_refusal_age: _duration_pb2.Duration
    def __init__(self, connected: _Optional[int] = ..., configured: _Optional[int] = ..., refused: _Optional[int] = ..., last_refused_pci_address: _Optional[str] = ..., last_refusal: _Optional[str] = ..., last_refusal_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("resource", "vhost_mode", "pci_addresses", "selectors")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    VHOST_MODE_FIELD_NUMBER: _ClassVar[int]
    PCI_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    resource: str
    vhost_mode: VhostMode
    pci_addresses: _containers.RepeatedScalarFieldContainer[str]
    selectors: _containers.RepeatedCompositeFieldContainer[Selector]
    def __init__(self, resource: _Optional[str] = ..., vhost_mode: _Optional[_Union[VhostMode, str]] = ..., pci_addresses: _Optional[_Iterable[str]] = ..., selectors: _Optional[_Iterable[_Union[Selector, _Mapping]]] = ...) -> None: ...

class Selector(_message.Message):
    __slots__ = ("selector", "vfs")
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    VFS_FIELD_NUMBER: _ClassVar[int]
    selector: str
    vfs: int
    def __init__(self, selector: _Optional[str] = ..., vfs: _Optional[int] = ...) -> None: ...

class VfsOutsidePools(_message.Message):
    __slots__ = ("reason", "pci_addresses")
    REASON_FIELD_NUMBER: _ClassVar[int]
    PCI_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    pci_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reason: _Optional[str] = ..., pci_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class ContestedVf(_message.Message):
    __slots__ = ("pci_address", "resource", "other_resource")
    PCI_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    OTHER_RESOURCE_FIELD_NUMBER: _ClassVar[int]
    pci_address: str
    resource: str
    other_resource: str
    def __init__(self, pci_address: _Optional[str] = ..., resource: _Optional[str] = ..., other_resource: _Optional[str] = ...) -> None: ...

class DaemonStatus(_message.Message):
    __slots__ = ("state", "pid", "restarts", "crash_loop", "last_exit", "unhealthy")
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    CRASH_LOOP_FIELD_NUMBER: _ClassVar[int]
    LAST_EXIT_FIELD_NUMBER: _ClassVar[int]
    UNHEALTHY_FIELD_NUMBER: _ClassVar[int]
    state: DaemonState
    pid: int
    restarts: int
    crash_loop: bool
    last_exit: str
    unhealthy: str
    def __init__(self, state: _Optional[_Union[DaemonState, str]] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ..., crash_loop: _Optional[bool] = ..., last_exit: _Optional[str] = ..., unhealthy: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("pci_address", "socket_path", "state", "reason", "vhost_mode", "front_end_connected", "queue_pairs", "features", "protocol_features", "driver", "numa_node", "type", "statistics", "front_end_configured", "queue_pairs_in_use", "front_ends_refused", "resource", "remark", "owner")
    class FrontEndsRefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PCI_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VHOST_MODE_FIELD_NUMBER: _ClassVar[int]
    FRONT_END_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PAIRS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FEATURES_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    NUMA_NODE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    FRONT_END_CONFIGURED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PAIRS_IN_USE_FIELD_NUMBER: _ClassVar[int]
    FRONT_ENDS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    REMARK_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    pci_address: str
    socket_path: str
    state: DeviceState
    reason: str
    vhost_mode: VhostMode
    front_end_connected: bool
    queue_pairs: int
    features: int
    protocol_features: int
    driver: str
    numa_node: int
    type: str
    statistics: _containers.RepeatedCompositeFieldContainer[QueueStatistics]
    front_end_configured: bool
    queue_pairs_in_use: int
    front_ends_refused: _containers.ScalarMap[str, int]
    resource: str
    remark: str
    owner: Owner
    def __init__(self, pci_address: _Optional[str] = ..., socket_path: _Optional[str] = ..., state: _Optional[_Union[DeviceState, str]] = ..., reason: _Optional[str] = ..., vhost_mode: _Optional[_Union[VhostMode, str]] = ..., front_end_connected: _Optional[bool] = ..., queue_pairs: _Optional[int] = ..., features: _Optional[int] = ..., protocol_features: _Optional[int] = ..., driver: _Optional[str] = ..., numa_node: _Optional[int] = ..., type: _Optional[str] = ..., statistics: _Optional[_Iterable[_Union[QueueStatistics, _Mapping]]] = ..., front_end_configured: _Optional[bool] = ..., queue_pairs_in_use: _Optional[int] = ..., front_ends_refused: _Optional[_Mapping[str, int]] = ..., resource: _Optional[str] = ..., remark: _Optional[str] = ..., owner: _Optional[_Union[Owner, _Mapping]] = ...) -> None: ...

class Owner(_message.Message):
    __slots__ = ("namespace", "pod", "container")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    container: str
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ..., container: _Optional[str] = ...) -> None: ...

class QueueStatistics(_message.Message):
    __slots__ = ("queue", "counters")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    queue: int
    counters: _containers.ScalarMap[str, int]
    def __init__(self, queue: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ...) -> None: ...
