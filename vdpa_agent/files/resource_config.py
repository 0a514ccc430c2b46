"""Reads the resource config: pools of VFs in the form of the SR-IOV network device plugin's configuration."""

import json
import re
from collections.abc import Callable, Iterator
from collections.abc import Mapping as ReadOnly
from types import MappingProxyType
from typing import Any, Final, TypeVar

from vdpa_agent.errors import AddressError, FileRefused
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.mapping import ENTRIES_MAX, FILE_MAX_BYTES
from vdpa_agent.model.pci import PciAddress, parse_pci_address, shown
from vdpa_agent.model.pools import SIMULATED_MAX, Functions, Pool, ResourceConfig, Selector

DEFAULT_PREFIX: Final = "vdpa.io"
"""The prefix of a resource whose entry gives none; the SR-IOV plugin has one on its command line."""

_POOLS_MAX: Final = 256
_SELECTORS_MAX: Final = 256
"""Of all pools together: each is tried on each VF."""

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_PREFIX: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_PREFIX_MAX: Final = 253
"""A resource's name is a label's with a prefix (kubernetes.io/docs, Labels: Syntax and character set)."""

_ID: Final = re.compile(r"[0-9a-f]{4}", re.ASCII)
_DRIVER: Final = re.compile(r"[!-.0-~]{1,64}", re.ASCII)
_INTERFACE: Final = re.compile(r"[!-\"$-.0-9;-~]{1,15}", re.ASCII)
"""A network interface's name: no blank, slash or colon, at most 15 characters (IFNAMSIZ of linux/if.h); and no #."""

_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)

_NEUTRAL: Final[tuple[Any, ...]] = (None, False, "", [], {})
"""Values that ask for nothing."""

_NOT_HERE: Final = MappingProxyType(
    {
        "isRdma": "RDMA devices are not handed out",
        "needVhostNet": "/dev/vhost-net is not handed out",
        "vdpaType": "it is about the kernel's vDPA devices, and these are DPDK's",
        "linkTypes": "a VF on vfio-pci has no link that could be looked at; name its PF by pfNames or rootDevices",
        "ddpProfiles": "profiles of the NIC's parser are not looked at; name the PF by pfNames or rootDevices",
        "pKeys": "InfiniBand has no vDPA devices",
        "auxTypes": "subfunctions are not served",
        "acpiIndexes": "name the VF by pciAddresses",
    }
)
"""What the SR-IOV plugin knows beside; each with why it cannot count here."""

_TYPES: Final = (None, "", "netDevice")

_INFO_MAX_BYTES: Final = 32 * 1024
"""What a pool may have pods know: Linux takes 128 KiB in an environment variable (MAX_ARG_STRLEN)."""

T = TypeVar("T")


def decode_resource_config(content: bytes, *, simulate: bool) -> ResourceConfig:
    """Reads a resource config.

    Args:
        content: the file.
        simulate: whether pools may have software devices.

    Raises:
        FileRefused: anything is wrong with it; the message names the entry, counted from 1, the key and the value.
    """
    whole = _json(content)
    entries = whole.get("resourceList") if isinstance(whole, dict) else None
    if not isinstance(entries, list):
        message = 'it has no array resourceList; write {"resourceList": [...]}'
        raise FileRefused(message)
    if len(entries) > _POOLS_MAX:
        message = f"resourceList has {len(entries)} entries, at most {_POOLS_MAX} are read"
        raise FileRefused(message)
    _refuse_unknown(whole, {"resourceList"})
    pools: dict[str, Pool] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            pool = _pool(entry, simulate=simulate)
            if pool.resource in pools:
                message = f"{pool.resource} occurs twice; give each entry its own resourceName"
                raise FileRefused(message)
        except (AddressError, FileRefused) as error:
            message = f"entry {number}: {error}"
            raise FileRefused(message) from error
        pools[pool.resource] = pool
    selectors = sum(len(pool.selectors) for pool in pools.values())
    if selectors > _SELECTORS_MAX:
        message = f"it has {selectors} selectors, at most {_SELECTORS_MAX} are read"
        raise FileRefused(message)
    return ResourceConfig(tuple(pools.values()), content)


def _json(content: bytes) -> Any:
    if len(content) > FILE_MAX_BYTES:
        message = f"it is larger than {FILE_MAX_BYTES} bytes, shorten it"
        raise FileRefused(message)
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        message = f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8"
        raise FileRefused(message) from error
    except json.JSONDecodeError as error:
        message = f"line {error.lineno} column {error.colno}: not JSON: {error.msg}"
        raise FileRefused(message) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        message = "a number is too long, or it is nested too deeply"
        raise FileRefused(message) from error


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(members)
    if len(whole) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        message = f"the key {shown(twice)} occurs twice in one object, keep one"
        raise FileRefused(message)
    return whole


def _pool(entry: object, *, simulate: bool) -> Pool:
    if not isinstance(entry, dict):
        message = "it is not an object with resourceName and selectors"
        raise FileRefused(message)
    name = _text(entry, "resourceName", _NAME, "letters, digits, - _ and . inside, at most 63 characters")
    prefix = DEFAULT_PREFIX
    if entry.get("resourcePrefix") not in _NEUTRAL:
        prefix = _text(entry, "resourcePrefix", _PREFIX, "a domain in lower case, such as example.com")
        if len(prefix) > _PREFIX_MAX:
            message = f"resourcePrefix {shown(prefix)} is longer than {_PREFIX_MAX} characters"
            raise FileRefused(message)
    resource = f"{prefix}/{name}"
    try:
        known = {"resourceName", "resourcePrefix", "selectors", "excludeTopology", "additionalInfo", "deviceType"}
        _refuse_unknown(entry, known | {"vhostMode", "simulated"})
        if entry.get("deviceType") not in _TYPES:
            message = f"deviceType {_shown(entry['deviceType'])} is not served here; drop the entry"
            raise FileRefused(message)
        simulated = _simulated(entry, simulate=simulate)
        selectors = entry.get("selectors")
        # Without any selector the SR-IOV plugin takes every device; with software devices nothing else is meant.
        given = selectors if isinstance(selectors, list) else [{} if selectors is None else selectors]
        if selectors is None and simulated:
            given = []
        return Pool(
            resource=resource,
            selectors=tuple(_numbered(given, "selector", _selector)),
            vhost_mode=_vhost_mode(entry),
            exclude_topology=_flag(entry, "excludeTopology"),
            simulated=simulated,
            info=_info(entry),
        )
    except (AddressError, FileRefused) as error:
        message = f"{resource}: {error}"
        raise FileRefused(message) from error


def _selector(selector: object) -> Selector:
    if not isinstance(selector, dict):
        message = 'it is not an object of selectors, such as {"vendors": ["8086"]}'
        raise FileRefused(message)
    _refuse_unknown(selector, {"vendors", "devices", "drivers", "pciAddresses", "pfNames", "rootDevices"})
    return Selector(
        vendors=_entries(selector, "vendors", _id),
        devices=_entries(selector, "devices", _id),
        drivers=_entries(selector, "drivers", _driver),
        pci_addresses=_entries(selector, "pciAddresses", parse_pci_address),
        pf_names=_entries(selector, "pfNames", lambda text: _functions(text, _interface)),
        root_devices=_entries(selector, "rootDevices", lambda text: _functions(text, parse_pci_address)),
    )


def _refuse_unknown(entry: ReadOnly[str, Any], known: set[str]) -> None:
    for key, value in entry.items():
        if key in known or (key in _NOT_HERE and value in _NEUTRAL):
            continue
        why = _NOT_HERE.get(key, f"known are {', '.join(sorted(known))}")
        message = f"{shown(key)} is not known here: {why}"
        raise FileRefused(message)


def _entries(selector: ReadOnly[str, Any], key: str, parse: Callable[[str], T]) -> tuple[T, ...]:
    """The values of one list, each read by `parse`."""
    values = selector.get(key)
    if values in _NEUTRAL:
        return ()
    if not isinstance(values, list):
        message = f"{key} {_shown(values)} is not an array; write [{_shown(values)}]"
        raise FileRefused(message)
    if len(values) > ENTRIES_MAX:
        message = f"{key} has {len(values)} values, at most {ENTRIES_MAX} are read"
        raise FileRefused(message)

    def one(value: object) -> T:
        if not isinstance(value, str):
            message = f"{_shown(value)} is not a text in quotes"
            raise FileRefused(message)
        return parse(value)

    return tuple(_numbered(values, f"{key} value", one))


def _numbered(values: list[Any], what: str, parse: Callable[[Any], T]) -> Iterator[T]:
    """Reads each value of a list; a refusal says which one it is."""
    for number, value in enumerate(values, start=1):
        try:
            yield parse(value)
        except (AddressError, FileRefused) as error:
            message = f"{what} {number}: {error}"
            raise FileRefused(message) from error


def _id(text: str) -> str:
    if _ID.fullmatch(text.lower()) is None:
        message = f"{shown(text)} is not an id of four hexadecimal digits, such as 8086"
        raise FileRefused(message)
    return text.lower()


def _driver(text: str) -> str:
    if _DRIVER.fullmatch(text) is None:
        message = f"{shown(text)} is not the name of a driver, such as vfio-pci"
        raise FileRefused(message)
    return text


def _interface(text: str) -> str:
    if _INTERFACE.fullmatch(text) is None:
        message = f"{shown(text)} is not the name of a network interface, such as ens1f0"
        raise FileRefused(message)
    return text


def _functions(text: str, parse: Callable[[str], str | PciAddress]) -> Functions:
    pf, numbered, numbers = text.partition("#")
    ranges = []
    for part in numbers.split(",") if numbered else ():
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            message = f"{shown(text)}: {shown(part)} is not a number or a range of VFs, such as 0-3"
            raise FileRefused(message)
        ranges.append((first, last))
    return Functions(str(parse(pf)), tuple(ranges))


def _text(entry: ReadOnly[str, Any], key: str, pattern: re.Pattern[str], form: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        what = "is absent" if value is None else f"{_shown(value)} is none"
        message = f"{key} {what}: {form}"
        raise FileRefused(message)
    return value


def _flag(entry: ReadOnly[str, Any], key: str) -> bool:
    value = entry.get(key) or False
    if not isinstance(value, bool):
        message = f"{key} {_shown(value)} is neither true nor false"
        raise FileRefused(message)
    return value


def _vhost_mode(entry: ReadOnly[str, Any]) -> VhostMode | None:
    value = entry.get("vhostMode")
    if value is None:
        return None
    if not isinstance(value, str) or value not in set(VhostMode):
        message = f"vhostMode {_shown(value)} is not known, give one of {', '.join(VhostMode)}"
        raise FileRefused(message)
    return VhostMode(value)


def _simulated(entry: ReadOnly[str, Any], *, simulate: bool) -> int:
    value = entry.get("simulated") or 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= SIMULATED_MAX:
        message = f"simulated {_shown(value)} is not a number from 0 to {SIMULATED_MAX}"
        raise FileRefused(message)
    if value and not simulate:
        message = f"simulated {value} asks for software devices; start the agent with --simulate, or drop it"
        raise FileRefused(message)
    return value


def _info(entry: ReadOnly[str, Any]) -> ReadOnly[str, ReadOnly[str, str]]:
    value = entry.get("additionalInfo")
    if value in _NEUTRAL:
        return MappingProxyType({})
    if len(json.dumps(value)) > _INFO_MAX_BYTES:
        message = f"additionalInfo has more than {_INFO_MAX_BYTES} bytes, shorten it"
        raise FileRefused(message)
    info = {}
    for key, row in value.items() if isinstance(value, dict) else [("*", None)]:
        if not isinstance(row, dict) or not all(isinstance(text, str) for text in row.values()):
            message = 'additionalInfo is not an object of objects of texts, such as {"*": {"token": "x"}}'
            raise FileRefused(message)
        info["*" if key == "*" else parse_pci_address(key)] = MappingProxyType(row)
    return MappingProxyType(info)


def _shown(value: object) -> str:
    return shown(value) if isinstance(value, str) else shown(json.dumps(value)).strip("'")
