"""What vdpad says of front ends, well or badly, is read as far as it can be relied on."""

from typing import Any

import pytest

from vdpa_agent.daemon.answers import parse_front_end, parse_front_ends
from vdpa_agent.model.front_end import (
    CONNECTED,
    NEVER_REFUSED,
    NO_FRONT_END,
    FrontEnd,
    LastRefusal,
    configured,
    last_refusal,
)

A = "0000:82:00.2"


@pytest.mark.parametrize(
    ("method", "params", "front_end"),
    [
        ("device.connected", {}, CONNECTED),
        ("device.disconnected", {"queue_pairs": 3}, NO_FRONT_END),
        ("device.configured", {"queue_pairs": 3}, configured(3)),
        ("device.configured", {"queue_pairs": 0}, configured(0)),
        *(("device.configured", {"queue_pairs": odd}, configured(0)) for odd in (-1, "2", True, 2**16, None)),
        ("device.configured", {}, configured(0)),
        ("device.painted", {"queue_pairs": 3}, None),
    ],
)
def test_notifications(method: str, params: dict[str, Any], front_end: FrontEnd | None) -> None:
    assert parse_front_end(method, params) == front_end


@pytest.mark.parametrize(
    ("device", "front_end"),
    [
        ({"connected": False, "configured": False, "queue_pairs_in_use": 0}, NO_FRONT_END),
        ({"connected": True, "configured": False, "queue_pairs_in_use": 0}, CONNECTED),
        ({"connected": True, "configured": True, "queue_pairs_in_use": 2}, configured(2)),
        ({"connected": True, "configured": True}, configured(0)),  # an early vdpad
        ({"connected": True, "configured": 1, "queue_pairs_in_use": 2}, CONNECTED),
    ],
)
def test_lists(device: dict[str, Any], front_end: FrontEnd) -> None:
    told = parse_front_ends({"devices": [7, {"device": A, **device}]})
    assert {address: said.front_end for address, said in told.items()} == {A: front_end}
    assert told[A].refusals == {}


def test_reasons_are_bounded() -> None:
    refusals = {f"{number}\n" + "x" * 1000: number for number in range(1000)}
    told = parse_front_ends({"devices": [{"device": A, "connected": False, "refusals": refusals}]})
    assert len(told[A].refusals) == 64
    assert all(len(reason) <= 70 and reason.isprintable() for reason in told[A].refusals)


@pytest.mark.parametrize(
    ("before", "now", "last"),
    [
        ({}, {}, NEVER_REFUSED),
        ({}, {"form": 1}, LastRefusal("form", 7.0)),
        ({"form": 9}, {"form": 9, "ring": 1}, LastRefusal("ring", 7.0)),
        ({"form": 9}, {"form": 10, "ring": 3}, LastRefusal("ring", 7.0)),
        ({"form": 9}, {"form": 9}, NEVER_REFUSED),
        ({"form": 9}, {"form": 1}, NEVER_REFUSED),  # the daemon began anew
    ],
)
def test_the_last_refusal_is_what_became_more(before: dict[str, int], now: dict[str, int], last: LastRefusal) -> None:
    assert last_refusal(before, now, NEVER_REFUSED, 7.0) == last
    known = LastRefusal("memory", 3.0)
    assert last_refusal(before, now, known, 7.0) == (known if last is NEVER_REFUSED else last)
