"""Lines of the control channel, sound and unsound."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.daemon.messages import (
    LINE_MAX_BYTES,
    Answer,
    ErrorCode,
    Notification,
    Refusal,
    parse_message,
    whole_number,
)

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_KEYS = st.sampled_from(["id", "result", "error", "method", "params", "code", "message", "device"])


def test_answers_refusals_and_notifications() -> None:
    assert parse_message(b'{"jsonrpc":"2.0","id":7,"result":{"a":1}}') == Answer(7, {"a": 1})
    assert parse_message(b'{"id":7,"error":{"code":-32001,"message":"no device"}}') == Refusal(7, -32001, "no device")
    assert parse_message(b'{"id":null,"error":{"code":-32700,"message":"not JSON"}}') == Refusal(
        None, -32700, "not JSON"
    )
    line = b'{"method":"device.connected","params":{"device":"0000:82:00.2","queue_pairs":2,"odd":[1],"less":-1}}'
    assert parse_message(line) == Notification("device.connected", {"device": "0000:82:00.2", "queue_pairs": 2})
    assert parse_message(b'{"method":"odd","params":7}') == Notification("odd", {})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"no json", "not JSON"),
        (b"\0", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"9" * 10_000, "not JSON"),
        (b"[]", "not an object"),
        (b"1e999", "not an object"),
        (b"{}", "neither"),
        (b'{"id":1}', "neither"),
        (b'{"id":[],"result":1}', "neither"),
        (b'{"id":{},"result":1}', "neither"),
        (b'{"id":true,"result":1}', "neither"),
        (b'{"id":1e999,"result":1}', "neither"),
        (b'{"id":NaN,"error":{"code":1,"message":"x"}}', "neither"),
        (b'{"id":-1,"result":1}', "neither"),
        (b'{"id":%d,"result":1}' % 2**70, "neither"),
        (b'{"id":"1","result":1}', "neither"),
        (b'{"id":1,"error":7}', "neither"),
        (b'{"id":1,"error":{}}', "code"),
        (b'{"id":1,"error":{"code":1e999,"message":"x"}}', "code"),
        (b'{"id":1,"error":{"code":-1e999,"message":"x"}}', "code"),
        (b'{"id":1,"error":{"code":NaN,"message":"x"}}', "code"),
        (b'{"id":1,"error":{"code":true,"message":"x"}}', "code"),
        (b'{"id":1,"error":{"code":%d,"message":"x"}}' % 2**70, "code"),
        (b'{"id":1,"error":{"code":1,"message":["x"]}}', "message"),
        (b'{"method":7}', "method"),
        (b'{"method":["device.connected"]}', "method"),
        (b'{"method":"device.connected","id":1}', "method"),
        (b'{"id":1,"result":' + b"[" * 100_000, "nested too deeply"),
        (b'{"id":1,"result":[' + b"1," * 200_000 + b"1]}", "200003 members"),
        (b'{"id":1,"result":[' + b"{}," * 200_000 + b"1]}", "members"),
    ],
    ids=lambda value: repr(value[:48]) if isinstance(value, bytes) else "",
)
def test_what_is_no_message_is_refused_with_what_is_wrong(line: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refusal:
        parse_message(line)
    assert type(refusal.value) is ValueError
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize(
    "text", ["\ud800", "\x1b]0;x\x07\x1b[2J\n{}\r\n", "\0", "\u202e\u2028\x9b", "x" * 4_000_000, "\x01" * 9999]
)
def test_every_text_comes_printable_and_short(text: str) -> None:
    refusal = parse_message(json.dumps({"id": 1, "error": {"code": 1, "message": text}}).encode())
    notification = parse_message(json.dumps({"method": text, "params": {text: text}}).encode())
    assert isinstance(refusal, Refusal)
    assert isinstance(notification, Notification)
    for shown in (refusal.reason, notification.method, *notification.params, *notification.params.values()):
        assert shown.isprintable()
        assert 0 < len(shown) <= 640


def test_a_refusal_always_has_a_reason() -> None:
    assert parse_message(b'{"id":1,"error":{"code":1,"message":""}}') == Refusal(1, 1, "no reason given")


def test_the_longest_line_holds_1023_devices() -> None:
    device = {"device": "0000:82:00.2", "socket": "/" + "x" * 106, "features": 2**63 - 1, "driver": "d" * 64}
    line = json.dumps({"id": 1, "result": {"devices": [device] * 1023}}).encode()
    assert len(line) < LINE_MAX_BYTES
    assert isinstance(parse_message(line), Answer)


@given(st.binary())
def test_any_bytes_are_a_message_or_refused(line: bytes) -> None:
    _parse(line)


@given(st.dictionaries(_KEYS, _JSON | st.dictionaries(_KEYS, _JSON)))
def test_any_object_is_a_message_or_refused(message: dict[str, Any]) -> None:
    _parse(json.dumps(message).encode())


def _parse(line: bytes) -> None:
    try:
        message = parse_message(line)
    except ValueError:
        return
    if isinstance(message, Notification):
        assert all(isinstance(value, str) or 0 <= value < 2**64 for value in message.params.values())
    assert not isinstance(message, Refusal) or message.reason.isprintable()


def test_whole_numbers() -> None:
    assert [whole_number(value, bits=16) for value in (0, 65535)] == [0, 65535]
    odd: list[object] = [-1, 65536, 1.0, True, None, "1", float("nan"), float("inf"), [], 2**4000]
    assert not any(whole_number(value, bits=16) is not None for value in odd)


def test_the_codes_are_those_of_the_daemon() -> None:
    header = (Path(__file__).parents[2] / "native/vdpad/failure.h").read_text()
    codes = {name: int(code) for name, code in re.findall(r"FAILURE_(\w+) = (-\d+)", header)}
    codes["NO_SUCH_DEVICE"] = codes.pop("NO_DEVICE")
    assert codes == {code.name: code.value for code in ErrorCode}
