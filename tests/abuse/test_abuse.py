"""Whatever a peer does to the agent, its neighbours are served, memory stays bounded and the log short.

How long it takes is in build/abuse.txt: on a quiet machine less than 1 s until a flood ends, and 20 ms for a neighbour.
"""

from typing import Any, Final

import pytest
from h2.errors import ErrorCodes

from tests.abuse.conftest import STRANGER_UID, Abused

GROWS_MIB: Final = 16
CALM: Final = ErrorCodes.ENHANCE_YOUR_CALM


def check(abused: Abused) -> None:
    """What holds in every attack."""
    assert abused.neighbour["errors"] == []
    assert abused.neighbour["calls"] > 10
    grown_mib = (abused.rss_kib["after"] - abused.rss_kib["before"]) / 1024
    assert grown_mib <= GROWS_MIB


@pytest.mark.parametrize(
    ("attack", "goaway", "reason"),
    [
        ("rapid_reset", CALM, "streams|reset_rate"),
        ("rapid_reset_of_headers", CALM, "streams|reset_rate"),
        ("ping_flood", CALM, "frame_rate"),
        ("ping_flood_unread", None, "frame_rate"),
        ("settings_flood", CALM, "frame_rate"),
        ("empty_data", CALM, "frame_rate"),
        ("data_after_the_end", ErrorCodes.STREAM_CLOSED, "protocol"),
        ("message_in_bytes", CALM, "frame_rate"),
        ("continuation_flood", None, "header_size|protocol"),
        ("continuation_flood_empty", CALM, "header_size"),
        ("hpack_bomb", CALM, "header_size"),
        ("unread_answers", None, "streams|call_rate"),
        ("settings_nobody_knows", CALM, "protocol"),
        ("long_frame", ErrorCodes.FRAME_SIZE_ERROR, "protocol"),
        ("priority_flood", CALM, "frame_rate"),
        ("window_update_flood", CALM, "frame_rate"),
        ("unknown_frames", CALM, "frame_rate"),
        ("garbage", None, "protocol"),
    ],
)
def test_a_flood_ends_its_connection(abused: Abused, attack: str, goaway: int | None, reason: str) -> None:
    seen = abused.attack(attack)
    check(abused)
    assert seen["closed"]
    assert goaway is None or seen["goaway"] == goaway
    abused.agent.wait_logged("peer_misbehaved")
    (logged,) = abused.reasons()
    assert logged in reason.split("|")


@pytest.mark.parametrize(
    ("attack", "seen"),
    [
        ("settings_of_the_header_table", {"answer": "0", "closed": False}),
        ("huge_messages", {"answers": {"8": 100}, "answer": "0", "closed": False}),
        ("unknown_frames", {"answer": "0"}),
    ],
)
def test_the_connection_goes_on_where_nothing_is_lost(abused: Abused, attack: str, seen: dict[str, Any]) -> None:
    abused.attack(attack)
    check(abused)
    assert {name: abused.seen.get(name) for name in seen} == seen


@pytest.mark.parametrize(
    "attack", ["reconnecting", "reconnecting_pings", "unfinished_messages", "too_many_streams", "call_rate"]
)
def test_a_crowd_leaves_room_for_the_neighbour(abused: Abused, attack: str) -> None:
    abused.attack(attack)
    check(abused)


def test_a_flood_of_root_costs_no_call_of_root_its_answer(abused: Abused) -> None:
    abused.attack("call_rate", 0)  # the neighbour is root too, and shares what root may ask
    check(abused)
    assert set(abused.seen["answers"]) == {"0"}


def test_silent_connections_leave_room_for_the_neighbour(abused: Abused) -> None:
    abused.attack("connections")
    check(abused)
    assert abused.seen["open"] == 64


def test_500_silent_connections_of_root_leave_room_for_the_neighbour(abused: Abused) -> None:
    abused.attack("connections", 0)
    check(abused)
    assert abused.seen["open"] == 500


def test_a_stranger_is_told_so_and_leaves_one_line(abused: Abused) -> None:
    abused.attack("call_rate", STRANGER_UID)
    check(abused)
    assert set(abused.seen["answers"]) == {"7"}
    (line,) = abused.agent.log.named("peer_refused")
    assert line["uid"] == STRANGER_UID
    assert "python" in line["program"]


def test_strangers_have_few_connections(abused: Abused) -> None:
    abused.attack("connections", STRANGER_UID)
    check(abused)
    assert abused.seen["open"] == 16
