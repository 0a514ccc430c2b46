"""Reads the values of options and environment variables; one that it cannot read is a ValueError in words."""

import grp
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vdpa_agent.errors import AddressError
from vdpa_agent.model.pci import PciAddress, parse_pci_address, shown

if TYPE_CHECKING:
    from vdpa_agent.config import HostPort

_ALL_BITS: Final = 0o777
_OWNERS_BITS: Final = 0o600

_OCTAL: Final = re.compile(r"(?:0o)?[0-7]{1,4}")
_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,3}")

_ID_MAX: Final = 2**32 - 2
"""The highest user or group of Linux; the number above it stands for none in its calls."""

_HOST_PORT: Final = re.compile(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([\w.-]+)):(\d{1,5})", re.ASCII)


class Mode(int):
    """Permission bits, which are shown in octal."""

    def __str__(self) -> str:
        return f"{self:04o}"


def utf8(text: str) -> str:
    """Reads any text; Python stands lone surrogates in for bytes that are not UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{text!r} is not UTF-8"
            raise ValueError(message) from error
    return text


def permission_bits(text: str) -> int:
    """Reads permission bits in octal, up to 0777, that let the owner read and write."""
    bits = int(text, 8) if _OCTAL.fullmatch(text) else -1
    if 0 <= bits <= _ALL_BITS and bits & _OWNERS_BITS == _OWNERS_BITS:
        return bits
    message = f"{text!r} is not a mode such as 0660"
    if 0 <= bits <= _ALL_BITS:
        message = f"{text!r} is mode {bits:04o}, which keeps the owner itself from reading or writing"
    # A number that went through YAML or JSON comes out in decimal.
    meant = int(text) if _DECIMAL.fullmatch(text) else 0
    if meant <= _ALL_BITS and meant & _OWNERS_BITS == _OWNERS_BITS:
        message += f"; {text} is {meant:04o} in decimal, write {meant:04o}, in YAML in quotes"
    raise ValueError(message)


def count(text: str) -> int:
    """Reads a whole number from 1 to a billion."""
    if not (text.isdecimal() and 1 <= int(text) <= 1_000_000_000):  # noqa: PLR2004
        message = f"{text!r} is not a whole number from 1 to 1000000000"
        raise ValueError(message)
    return int(text)


def user(text: str) -> int:
    """Reads a user, by name or number."""
    return _id("user", text, lambda name: pwd.getpwnam(name).pw_uid)


def group(text: str) -> int:
    """Reads a group, by name or number."""
    return _id("group", text, lambda name: grp.getgrnam(name).gr_gid)


def seconds(text: str) -> float:
    """Reads a positive number of seconds, at most a day."""
    return _seconds(text, lambda value: value > 0, "a number of seconds above 0 and up to 86400")


def seconds_or_none(text: str) -> float:
    """Reads a number of seconds that may be 0, at most a day."""
    return _seconds(text, lambda value: value >= 0, "a number of seconds from 0 to 86400")


def device_arguments(text: str) -> tuple[PciAddress, str]:
    """Reads `ADDRESS=ARGUMENTS`, the arguments as DPDK has them: 0000:82:00.2=vdpa=1."""
    address, equals, arguments = text.partition("=")
    if not equals:
        message = f"{text!r} has no =, write ADDRESS=ARGUMENTS such as 0000:82:00.2=vdpa=1"
        raise ValueError(message)
    try:
        return parse_pci_address(address), arguments
    except AddressError as error:
        raise ValueError(str(error)) from error


def listen_path(text: str) -> Path:
    """Reads the path of a unix socket, with or without `unix:` or `unix://` before it."""
    for prefix in ("unix://", "unix:"):
        if text.startswith(prefix):
            return path(text.removeprefix(prefix))
    return path(text)


def host_port(text: str) -> "HostPort | None":
    """Reads `HOST:PORT`, an IPv6 address in brackets; empty: nowhere."""
    from vdpa_agent.config import HostPort  # noqa: PLC0415

    if not text:
        return None
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[3]) >= 2**16:
        message = f"{shown(text)} is not HOST:PORT such as 127.0.0.1:9917 or [::1]:9917"
        raise ValueError(message)
    return HostPort(match[1] or match[2], int(match[3]))


def path(text: str) -> Path:
    """Reads a path; an empty one would be the working directory."""
    if not text:
        message = "the path is empty, give one from the root"
        raise ValueError(message)
    return Path(text)


def _seconds(text: str, fits: Callable[[float], bool], meant: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (fits(value) and value <= 86400):  # noqa: PLR2004 - a day
        message = f"{text!r} is not {meant}"
        raise ValueError(message)
    return value


def _id(kind: str, text: str, look_up: Callable[[str], int]) -> int:
    if text.isdecimal():
        if int(text) > _ID_MAX:
            message = f"{text} is not the number of a {kind}, which is at most {_ID_MAX}"
            raise ValueError(message)
        return int(text)
    try:
        return look_up(text)
    except KeyError:
        message = f"there is no {kind} {text!r} here, give a number"
        raise ValueError(message) from None
