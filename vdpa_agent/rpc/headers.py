"""Headers of requests and answers: whether a request is well-formed, and what a call's headers say."""

import base64
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from google.rpc.status_pb2 import Status as StatusMessage  # type: ignore[import-untyped]
from grpclib.const import Status

from vdpa_agent.rpc.nghttp2 import Headers

Fields = dict[bytes, bytes]

_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_NEEDED: Final = (b":method", b":scheme", b":path")
_OF_A_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_USUAL: Final = frozenset(
    {
        *(b"content-type", b"user-agent", b"grpc-timeout", b"grpc-accept-encoding", b"grpc-encoding"),
        *(b"accept-encoding", b"traceparent", b"tracestate", b"grpc-trace-bin"),
    }
)
_BAD_VALUE: Final = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?(;.*)?")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_TRACE: Final = (b"traceparent", b"tracestate")
"""The headers of W3C's Trace Context."""

_UNTRACED: Final[Mapping[str, str]] = MappingProxyType({})


def fields_of(headers: Headers) -> Fields | None:
    """The headers of a request by name; None: they are malformed (RFC 9113, 8.2 and 8.3).

    In place of the library's own check, since it refuses a request that names no host, and an authority that is a path:
    clients of grpc-go up to 1.24 send the socket's.
    """
    fields: Fields = {}
    regular = False
    for name, value in headers:
        if name[:1] == b":":
            if regular or name not in _PSEUDO or name in fields:
                return None
        else:
            regular = True
            if name not in _USUAL and not _is_allowed(name, value, fields):
                return None
        if _BAD_VALUE.search(value):
            return None
        fields[name] = value
    if fields.get(b":method") == b"CONNECT":
        return fields if b":authority" in fields and b":scheme" not in fields and b":path" not in fields else None
    return fields if all(map(fields.get, _NEEDED)) else None


def are_trailers(headers: Headers) -> bool:
    """Whether the headers after a request are well-formed."""
    return all(_is_allowed(name, value, {}) and not _BAD_VALUE.search(value) for name, value in headers)


def length_of(fields: Fields) -> int | None:
    """How much data a request said that it has, in bytes; None: it did not say."""
    length = fields.get(b"content-length")
    return None if length is None else int(length)


def is_grpc(fields: Fields) -> bool:
    """Whether a request's content is gRPC's."""
    return _CONTENT_TYPE.fullmatch(fields.get(b"content-type", b"")) is not None


def timeout_of(fields: Fields) -> float | None:
    """How long a call may take, in seconds; None: it did not say.

    Raises:
        ValueError: what it said is malformed.
    """
    timeout = fields.get(b"grpc-timeout")
    if timeout is None:
        return None
    if not _TIMEOUT.fullmatch(timeout):
        raise ValueError(timeout)
    return int(timeout[:-1]) * _UNIT_S[timeout[-1:]]


def trace_of(fields: Fields) -> Mapping[str, str]:
    """The headers that place a call in a trace, by their W3C names."""
    if _TRACE[0] not in fields and _TRACE[1] not in fields:
        return _UNTRACED
    return {name.decode(): fields[name].decode("latin-1") for name in _TRACE if name in fields}


def status_headers(code: Status, message: str | None, details: Any = None) -> Headers:
    """The headers that carry a status.

    Args:
        code: the status.
        message: what it says to people; None: nothing.
        details: messages of protobuf that it carries.
    """
    headers: Headers = [(b"grpc-status", b"%d" % code.value)]
    if message is not None:
        headers.append((b"grpc-message", quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}").encode()))
    if details:
        status = StatusMessage(code=code.value, message=message or "")
        for detail in details:
            status.details.add().Pack(detail)
        encoded = base64.b64encode(status.SerializeToString()).rstrip(b"=")
        headers.append((b"grpc-status-details-bin", encoded))
    return headers


def _is_allowed(name: bytes, value: bytes, before: Fields) -> bool:
    if not _NAME.fullmatch(name) or name in _OF_A_CONNECTION:
        return False
    if name == b"te":
        return value == b"trailers"
    if name == b"content-length":
        return _LENGTH.fullmatch(value) is not None and before.get(name, value) == value
    return True
