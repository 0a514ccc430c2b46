"""What vdpad says of itself and of a device, sound and unsound."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.daemon.answers import Version, parse_facts, parse_statistics, parse_version
from vdpa_agent.errors import DaemonLost, DaemonUnusable
from vdpa_agent.model.daemon import NOTHING_KNOWN, DeviceFacts

_ODD: list[Any] = [
    None,
    True,
    7,
    -1,
    2**70,
    1.5,
    float("inf"),
    float("-inf"),
    float("nan"),
    "x",
    "\ud800",
    [],
    [[]],
    {},
]
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(_ODD) | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["queues", "queue", "stats", "driver", "version", "protocol", "type"]), inner)
    ),
    max_leaves=20,
)


def test_a_version_is_a_text_or_an_object_with_a_protocol() -> None:
    assert parse_version({"version": "0.2", "protocol": 2, "dpdk": "22.11"}) == Version("0.2", 2)
    odd = {"version": "\ud800\x1b[31m" + "x" * 1000, "protocol": 2}
    assert parse_version(odd).version == "\\ud800\\x1b[31m" + "x" * 50
    with pytest.raises(DaemonUnusable, match=r"vdpad 0\.1 speaks control protocol 1"):
        parse_version("0.1")


@pytest.mark.parametrize("protocol", [0, 1, -1, 2**70, 10**4000])
def test_another_protocol_is_refused_with_both_numbers_and_the_remedy(protocol: int) -> None:
    with pytest.raises(DaemonUnusable) as refusal:
        parse_version({"version": "9", "protocol": protocol})
    said = str(refusal.value)
    assert (
        f"speaks control protocol {str(protocol)[:64]}, this agent speaks 2; install the vdpad that came with" in said
    )
    assert len(said) < 300


@pytest.mark.parametrize("result", [*(odd for odd in _ODD if not isinstance(odd, str)), {"version": "1"}])
def test_who_says_no_version_is_lost(result: Any) -> None:
    with pytest.raises(DaemonLost, match="without a version"):
        parse_version(result)


def test_facts() -> None:
    told = {
        "driver": "mlx5",
        "queue_pairs": 4,
        "features": 2**64 - 1,
        "protocol_features": 3,
        "type": "net",
        "numa_node": 1,
    }
    assert parse_facts(told) == DeviceFacts("mlx5", 4, 2**64 - 1, 3, "net", 1)


@pytest.mark.parametrize("odd", [-1, 2**70, 1.5, float("inf"), float("nan"), True, None, "7", [], {}])
@pytest.mark.parametrize("key", ["queue_pairs", "features", "protocol_features", "numa_node"])
def test_odd_numbers_are_not_known(key: str, odd: Any) -> None:
    assert parse_facts({key: odd}) == NOTHING_KNOWN


def test_names_of_drivers_and_types_are_printable_and_short() -> None:
    facts = parse_facts({"driver": "\ud800" + "x" * 1000, "type": "\x1b[2J"})
    assert (facts.driver, facts.kind) == ("\\ud800" + "x" * 58, "\\x1b[2J")
    assert parse_facts({"driver": ["x"], "type": 7}) == NOTHING_KNOWN


def test_statistics() -> None:
    told = {"queues": [{"queue": 0, "stats": {"packets": 1, "bytes": 2**64 - 1}}, {"queue": 1, "stats": {}}]}
    assert parse_statistics(told) == {0: {"packets": 1, "bytes": 2**64 - 1}, 1: {}}


@pytest.mark.parametrize("odd", [odd for odd in _ODD if odd != 7])
def test_what_is_odd_in_statistics_is_left_out_and_the_rest_counts(odd: Any) -> None:
    good = {"queue": 3, "stats": {"packets": 1}}
    queues = [
        odd,
        {"queue": odd, "stats": {"a": 1}},
        {"queue": 0, "stats": odd},
        {"queue": 3, "stats": {"b": odd}},
        good,
    ]
    found = {queue: counters for queue, counters in parse_statistics({"queues": queues}).items() if counters}
    assert found == {3: {"packets": 1}}
    assert parse_statistics(odd) == parse_statistics({"queues": odd}) == {}


def test_statistics_are_bounded_and_their_names_printable() -> None:
    counters = {f"\ud800{number}" + "x" * 100: number for number in range(1000)}
    told = parse_statistics({"queues": [{"queue": queue, "stats": counters} for queue in range(100)]})
    names = [name for kept in told.values() for name in kept]
    assert len(names) == 4096
    assert all(name.isprintable() and len(name) <= 64 for name in names)


@given(_JSON)
def test_whatever_is_answered_can_be_shown_and_counted(result: Any) -> None:
    facts, statistics = parse_facts(result), parse_statistics(result)
    json.dumps([facts, statistics]).encode()
    assert facts.driver.isprintable()
    assert facts.kind.isprintable()
    assert all(0 <= value < 2**64 for counters in statistics.values() for value in counters.values())
    with suppress(DaemonLost, DaemonUnusable):
        assert parse_version(result).version.isprintable()
