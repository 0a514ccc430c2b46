"""Messages: what may come over vdpad's control channel, each line read once, and with suspicion."""

import json
from enum import IntEnum
from typing import Any, Final, NamedTuple

from vdpa_agent.model.text import printable

LINE_MAX_BYTES: Final = 4 * 1024 * 1024
"""No line is longer: 1,023 devices of `device.list` need less than 512 KiB."""

TEXT_CHARACTERS: Final = 640
"""So much is kept of a text, as a refusal's reason: the size of `struct failure` in native/vdpad/failure.h."""

_MEMBERS_MAX: Final = 128 * 1024
"""The most that a line may hold, by its commas and brackets: reading more would keep the event loop for too long."""

_CODES: Final = range(-(2**31), 2**31)


class ErrorCode(IntEnum):
    """The codes of vdpad's refusals, as in native/vdpad/failure.h; those below -32099 are JSON-RPC's."""

    PARSE = -32700
    INVALID_REQUEST = -32600
    NO_METHOD = -32601
    BAD_PARAMS = -32602
    NO_SUCH_DEVICE = -32001
    """It does not have that device (any more)."""
    DEVICE_EXISTS = -32002
    DPDK = -32003
    SOCKET = -32004
    NOT_SUPPORTED = -32005
    TABLE_FULL = -32006


class Answer(NamedTuple):
    """A request was done.

    Attributes:
        request: its id.
        result: raw JSON, for one of the functions of daemon/answers.py.
    """

    request: int
    result: Any


class Refusal(NamedTuple):
    """A request was refused.

    Attributes:
        request: its id, None where vdpad could not even read it.
        code: one of ErrorCode, or another one.
        reason: why, printable.
    """

    request: int | None
    code: int
    reason: str


class Notification(NamedTuple):
    """Something happened.

    Attributes:
        method: what, printable.
        params: its texts, printable, and its whole numbers of 64 bits; nothing else is handed on.
    """

    method: str
    params: dict[str, Any]


Message = Answer | Refusal | Notification


def parse_message(line: bytes) -> Message:
    """Reads one line.

    Raises:
        ValueError: it is no message of the protocol; the text says what is wrong with it.
    """
    members = sum(map(line.count, (b",", b"[", b"{")))
    if members > _MEMBERS_MAX:
        text = f"a line with {members} members; at most {_MEMBERS_MAX} may be in one"
        raise ValueError(text)
    try:
        message = json.loads(line)
    except RecursionError:
        text = "a line that is nested too deeply"
        raise ValueError(text) from None
    except ValueError as error:
        text = f"a line that is not JSON: {printable(str(error), TEXT_CHARACTERS)}"
        raise ValueError(text) from error
    if not isinstance(message, dict):
        text = "a line that is not an object"
        raise ValueError(text)  # noqa: TRY004 - the type is what is wrong with the value
    if "method" in message:
        return _notification(message)
    return _reply(message)


def _notification(message: dict[str, Any]) -> Notification:
    method, params = message["method"], message.get("params")
    if not isinstance(method, str) or "id" in message:
        text = "a notification whose method is no text, or that has an id"
        raise ValueError(text)
    kept = {}
    for key, value in (params if isinstance(params, dict) else {}).items():
        if isinstance(value, str):
            kept[printable(key, TEXT_CHARACTERS)] = printable(value, TEXT_CHARACTERS)
        elif whole_number(value, bits=64) is not None:
            kept[printable(key, TEXT_CHARACTERS)] = value
    return Notification(printable(method, TEXT_CHARACTERS), kept)


def _reply(message: dict[str, Any]) -> Message:
    identifier = message.get("id")
    request = whole_number(identifier, bits=63)
    if "result" in message and request is not None:
        return Answer(request, message["result"])
    error = message.get("error")
    if not isinstance(error, dict) or (request is None and identifier is not None):
        text = "a line that is neither an answer to a request nor a notification"
        raise ValueError(text)
    code, reason = error.get("code"), error.get("message")
    if type(code) is not int or code not in _CODES or not isinstance(reason, str):
        text = "an error whose code is no whole number of 32 bits, or whose message is no text"
        raise ValueError(text)
    return Refusal(request, code, printable(reason, TEXT_CHARACTERS) or "no reason given")


def whole_number(value: object, *, bits: int) -> int | None:
    """A value if it is a whole number, not negative, of so many bits; None if it is anything else."""
    return value if type(value) is int and 0 <= value < 1 << bits else None
