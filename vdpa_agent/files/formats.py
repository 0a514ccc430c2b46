"""The two list formats on disk: the mapping (JSON) and the device list (one PCI address a line)."""

import json
from collections.abc import Iterable
from collections.abc import Mapping as ReadOnly
from enum import Enum
from math import isinf
from types import MappingProxyType
from typing import Any, Final, NoReturn

from vdpa_agent.errors import AddressError, FileRefused
from vdpa_agent.model.mapping import ENTRIES_MAX, FILE_MAX_BYTES, SOCKET_PATH_MAX_BYTES, Mapping
from vdpa_agent.model.pci import PciAddress, parse_pci_address, shown

_JSON_SPACE: Final = b" \t\r\n"
_JSON_WORDS: Final = frozenset((b"null", b"true", b"false"))
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Form(Enum):
    """What a file's content is meant to be, judged by its first bytes, or by its only word."""

    NOTHING = "nothing"
    JSON = "json"
    LINES = "lines"


def form_of(content: bytes) -> Form:
    """Tells a mapping from a device list; a file of blanks is neither, but a torn write or an empty file."""
    text = content.removeprefix(_BYTE_ORDER_MARK).strip(_JSON_SPACE)
    if not text:
        return Form.NOTHING
    return Form.JSON if text[:1] in b'[{"' or text in _JSON_WORDS else Form.LINES


def decode_mapping(content: bytes) -> Mapping:
    """Reads a mapping: an array of objects with `pciAddress` and `socketpath`; other keys are ignored.

    Raises:
        FileRefused: anything is wrong with it; the message names the entry, counted from 1.
    """
    sockets: dict[PciAddress, str] = {}
    for number, entry in enumerate(_entries(content), start=1):
        try:
            address, path = _entry(entry)
            if address in sockets:
                message = f"pciAddress {address} occurs twice, keep one of the entries"
                raise FileRefused(message)
        except (AddressError, FileRefused) as error:
            message = f"entry {number}: {error}"
            raise FileRefused(message) from error
        sockets[address] = path
    return Mapping(MappingProxyType(sockets))


def encode_mapping(sockets: ReadOnly[PciAddress, str]) -> bytes:
    """A mapping file's content, an entry a line, as vdpad writes it."""
    entries = [json.dumps({"pciAddress": address, "socketpath": path}) for address, path in sockets.items()]
    return ("[\n" + ",\n".join(entries) + "\n]\n" if entries else "[]\n").encode()


def decode_mapping_file(content: bytes) -> Mapping:
    """Reads what stands where a mapping should, and tells what it is instead.

    Raises:
        FileRefused: it is no mapping, or anything is wrong with it.
    """
    form = form_of(content)
    if form is Form.NOTHING:
        message = "it is empty; a mapping of nothing is []"
        raise FileRefused(message)
    if form is Form.LINES:
        message = (
            "it is not JSON; a list of PCI addresses belongs into --pci-list, which counts with --daemon auto or vdpad"
        )
        raise FileRefused(message)
    return decode_mapping(content)


def decode_device_list(content: bytes) -> tuple[tuple[PciAddress, ...], int]:
    """Reads a device list: one PCI address a line, blank lines and `#` comments allowed.

    Returns:
        The addresses in order, each once, and how many duplicates were merged.

    Raises:
        FileRefused: a line is not an address; the message names it, counted from 1.
    """
    _refuse_large(content)
    addresses: dict[PciAddress, None] = {}
    duplicates = 0
    for number, line in enumerate(_lines(content), start=1):
        text = line.partition("#")[0].strip(" \t\r")
        if not text:
            continue
        try:
            address = parse_pci_address(text)
        except AddressError as error:
            message = f"line {number}: {error}; write one address a line"
            raise FileRefused(message) from error
        duplicates += address in addresses
        addresses[address] = None
        if len(addresses) > ENTRIES_MAX:
            message = f"line {number}: more than {ENTRIES_MAX} addresses, shorten the list"
            raise FileRefused(message)
    return tuple(addresses), duplicates


def _refuse_large(content: bytes) -> None:
    if len(content) > FILE_MAX_BYTES:
        message = f"it is larger than {FILE_MAX_BYTES} bytes, shorten it"
        raise FileRefused(message)


def _lines(content: bytes) -> Iterable[str]:
    try:
        return content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        message = f"line {number}: byte 0x{content[error.start]:02x} is not UTF-8, write plain PCI addresses"
        raise FileRefused(message) from error


def _entries(content: bytes) -> list[Any]:
    _refuse_large(content)
    try:
        entries = json.loads(
            content.decode("utf-8"), parse_constant=_refuse_constant, parse_int=_finite, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        message = f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8"
        raise FileRefused(message) from error
    except json.JSONDecodeError as error:
        message = f"line {error.lineno} column {error.colno}: not JSON: {error.msg}"
        raise FileRefused(message) from error
    except RecursionError as error:
        message = "it is nested too deeply to be a mapping"
        raise FileRefused(message) from error
    if not isinstance(entries, list):
        hint = "; a mapping of nothing is []" if entries is None else ""  # as Go writes a list that it never made
        message = f"it is not an array of entries, but one JSON value{hint}"
        raise FileRefused(message)
    if len(entries) > ENTRIES_MAX:
        message = f"it has {len(entries)} entries, at most {ENTRIES_MAX} are read"
        raise FileRefused(message)
    return entries


# Of the keys that nobody reads, Python and C (jansson) refuse the same numbers: those that a double cannot hold.
def _refuse_constant(text: str) -> NoReturn:
    message = f"{text} is not JSON"
    raise FileRefused(message)


def _finite(text: str) -> float:
    value = float(text)
    if isinf(value):
        message = f"the number {shown(text)} is too large"
        raise FileRefused(message)
    return value


def _entry(entry: object) -> tuple[PciAddress, str]:
    if not isinstance(entry, dict):
        message = "not an object with pciAddress and socketpath"
        raise FileRefused(message)
    address = entry.get("pciAddress")
    path = entry.get("socketpath")
    if not isinstance(address, str):
        message = "pciAddress is absent or not a string"
        raise FileRefused(message)
    if not isinstance(path, str):
        hint = " (dpdkIndex is an older form, no longer read)" if "dpdkIndex" in entry else ""
        message = f"socketpath of {shown(address)} is absent or not a string{hint}"
        raise FileRefused(message)
    _check_path(path)
    return parse_pci_address(address), path


def _check_path(path: str) -> None:
    if not path.startswith("/"):
        message = f"socketpath {shown(path)} is not absolute, write it from the root"
        raise FileRefused(message)
    try:
        length = len(path.encode("utf-8"))
    except UnicodeEncodeError as error:
        message = f"socketpath {shown(path)} holds half of a surrogate pair"
        raise FileRefused(message) from error
    if length > SOCKET_PATH_MAX_BYTES:
        message = (
            f"socketpath {shown(path)} has {length} bytes, a unix socket's path at most"
            f" {SOCKET_PATH_MAX_BYTES}: choose a shorter --socket-dir"
        )
        raise FileRefused(message)
    if any(character < " " or character == "\x7f" for character in path):
        message = f"socketpath {shown(path)} holds a control character"
        raise FileRefused(message)
