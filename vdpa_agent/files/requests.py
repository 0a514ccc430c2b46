"""Requests: device lists that were written in the mapping's place."""

from pathlib import Path
from typing import Final

import structlog

from vdpa_agent.config import FilesConfig
from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Content, Found, Unreadable
from vdpa_agent.files.formats import Form, decode_device_list, decode_mapping_file, form_of
from vdpa_agent.files.off_loop import Once

_GRACE_S: Final = 1.0
"""A malformed request is put aside after this time, since it keeps the daemon from writing the mapping."""

log = structlog.get_logger(__name__)


class Requests:
    """Moves them to their own place, or aside; what it does may block."""

    def __init__(self, config: FilesConfig) -> None:
        """Moves nothing yet."""
        self._config = config
        self._since: float | None = None
        self._failures = Once()

    def take(self, found: Found | Unreadable | None, now: float) -> Content:
        """Takes what was read in the mapping's place at `now`; returns what is there then."""
        if not isinstance(found, Found):
            self._since = None
            return found
        if form_of(found.content) is not Form.LINES:
            self._since = None
            return found.content
        if _refusal(found.content):
            self._since = now if self._since is None else self._since
            if now - self._since < _GRACE_S:
                return found.content
        self._since = None
        source = self._config.socket_list
        try:
            _accept(self._config, source, found)
        except FileNotFoundError:
            return None
        except (OSError, FileRefused) as error:
            reason = disk.words(error) if isinstance(error, OSError) else str(error)
            if self._failures.is_new(reason):
                log.error(
                    "device_list_not_moved",
                    file=str(source),
                    to=str(self._config.pci_list),
                    reason=reason,
                    remedy="keep both files in one writable directory",
                )
            return found.content
        self._failures.forget()
        return None


def aside_of(config: FilesConfig) -> Path:
    """Where a mapping is renamed to before it is judged and removed."""
    return config.socket_list.with_name(f".{config.socket_list.name}.retired")


def judge_aside(config: FilesConfig, *, takes_requests: bool) -> None:
    """Removes what is aside if it is a mapping; a device list is accepted, unless the present one was written after it.

    What is neither is kept under another name.

    Raises:
        FileRefused: it cannot be read or moved now.
        OSError: likewise.
    """
    aside = aside_of(config)
    found = disk.find(aside)
    if isinstance(found, Unreadable) and not found.odd:
        raise FileRefused(found.reason)  # it may be a list
    if isinstance(found, Found) and takes_requests and form_of(found.content) is Form.LINES:
        present = disk.find(config.pci_list)
        if not isinstance(present, Found) or present.modified_ns <= found.modified_ns:
            _accept(config, aside, found)
            return
    elif isinstance(found, Found) and (reason := _spoilt(found.content)):
        _refuse(config, aside, found, "mapping_refused", reason)
        return
    if found is not None:
        disk.clear(aside)


def _accept(config: FilesConfig, source: Path, found: Found) -> None:
    """Moves a device list to its place; a malformed one aside.

    Raises:
        FileRefused: something is in the way that is no file.
        OSError: it cannot be moved; a FileNotFoundError if it is not there any more.
    """
    if reason := _refusal(found.content):
        _refuse(config, source, found, "device_list_refused", reason)
        return
    disk.move(source, config.pci_list, only=found)
    log.info(
        "device_list_taken",
        file=str(config.socket_list),
        moved_to=str(config.pci_list),
        devices=len(decode_device_list(found.content)[0]),
    )


def _refuse(config: FilesConfig, source: Path, found: Found, event: str, reason: str) -> None:
    """Keeps what is of no use under a name of its own, for people to look at.

    Raises:
        FileRefused: something is in the way that is no file.
        OSError: it cannot be moved; a FileNotFoundError if it is not there any more.
    """
    refused = config.socket_list.with_name(f"{config.socket_list.name}.refused")
    disk.move(source, refused, only=found)
    log.warning(event, file=str(config.socket_list), reason=reason, moved_to=str(refused))


def _spoilt(content: bytes) -> str:
    """Why what is no device list is not a mapping either; empty if it is one, or nothing at all."""
    if form_of(content) is not Form.JSON:
        return ""
    try:
        decode_mapping_file(content)
    except FileRefused as error:
        return str(error)
    return ""


def _refusal(content: bytes) -> str:
    """Why a device list is refused; empty if it is not."""
    try:
        devices, _ = decode_device_list(content)
    except FileRefused as error:
        return str(error)
    # A stray comment must not take all VFs away.
    return "" if devices else "it names no device; to serve none, empty the device list itself"
