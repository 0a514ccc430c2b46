"""The page of metrics, where a real daemon does not give what it takes."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from grpclib.const import Cardinality, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.processes import series
from tests.served import snapshots
from vdpa_agent.config import LimitsConfig
from vdpa_agent.model.daemon import (
    NOTHING_KNOWN,
    DaemonState,
    DaemonStatus,
    Device,
    DeviceFacts,
    DeviceState,
    Statistics,
)
from vdpa_agent.model.destructive import Destructive
from vdpa_agent.model.front_end import CONNECTED, NO_FRONT_END, FrontEnd, configured
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.rpc.handled import BOUNDS_S, Handled
from vdpa_agent.rpc.peers import Peers
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.devices import Ask
from vdpa_agent.serve.http.metrics import FAMILIES, Metrics
from vdpa_agent.serve.http.server import Answer, Query
from vdpa_agent.serve.http.sources import Sources
from vdpa_agent.serve.view import View

pytestmark = pytest.mark.anyio

A, B, C = (PciAddress(f"0000:82:00.{function}") for function in (2, 3, 4))
PLAIN = Query("", frozenset())
HANDLED = Handled({"/p.S/M": Cardinality.UNARY_UNARY, "/p.S/W": Cardinality.UNARY_STREAM})


def _metrics(
    statistics: Ask,
    handled: Handled = HANDLED,
    *,
    facts: DeviceFacts = NOTHING_KNOWN,
    socket: str = "/v/x",
    front_ends: Mapping[PciAddress, FrontEnd] = MappingProxyType({}),
) -> Metrics:
    devices = {A: DeviceState.READY, B: DeviceState.FAILED, C: DeviceState.CONNECTED}
    known = MappingProxyType(
        {
            address: Device(
                address,
                socket,
                state,
                facts=facts,
                front_end=front_ends.get(address, NO_FRONT_END),
                refusals={"form": 3} if address == C else {},
            )
            for address, state in devices.items()
        }
    )
    view = View(snapshots(Loaded((A, B, C)), daemon=DaemonStatus(state=DaemonState.RUNNING, pid=1), devices=known))
    return Metrics(
        Sources(
            view=view,
            answers=Answers(view),
            statistics=statistics,
            readings={},
            restarts=Counter(),
            steps=Counter({Destructive.LIST_SHRUNK: 2}),
            lines_dropped=dict,
            peers=Peers(LimitsConfig(), asyncio.get_running_loop().time),
            handled=handled,
        )
    )


def _statistics(answer: Answer) -> dict[tuple[str, str, str], float]:
    found = {}
    for (name, labels), value in series(answer.body.decode()).items():
        if name == "vdpa_agent_device_statistic_total":
            named = dict(labels)
            found[named["pciAddr"], named["queue"], named["statistic"]] = value
    return found


async def test_only_what_is_served_is_asked_and_only_what_can_be_is_told() -> None:
    async def tell(address: PciAddress) -> Statistics:
        return {0: {f'odd "\\\n of {address}': 1, "negative": -1, "too much": 2**64, "most": 2**64 - 1}}

    told = _statistics(await _metrics(tell).page(PLAIN))
    assert {address for address, *_ in told} == {A, C}
    assert {name for _, _, name in told} == {f'odd "\\\n of {A}', f'odd "\\\n of {C}', "most"}


async def test_odd_names_paths_and_drivers_never_fail_the_page() -> None:
    async def tell(_address: PciAddress) -> Statistics:
        return {queue: {"\ud800": 1, "x" * 10_000: 2, "x" * 10_001: 3, "\0\x1b\u202e": 4} for queue in (0, 65535)}

    metrics = _metrics(tell, facts=DeviceFacts(driver="\udcff\ud800", numa_node=2**70), socket="/\udc80" * 999)
    for accept in ("", "application/openmetrics-text"):
        text = (await metrics.page(Query(accept, frozenset()))).body.decode()
        assert max(len(line) for line in text.splitlines()) < 2000
        samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
        assert len(samples) == len(set(samples))
        assert "\\ud800" in text


async def test_the_page_is_bounded_whatever_devices_count() -> None:
    async def tell(_address: PciAddress) -> Statistics:
        return {queue: {f"s{number}": 1 for number in range(1000)} for queue in range(70)}

    assert len(_statistics(await _metrics(tell).page(PLAIN))) == 70_000  # the first device's; the other is not asked


async def test_front_ends_and_their_refusals_go_by_device() -> None:
    async def tell(_address: PciAddress) -> Statistics:
        return {}

    front_ends = {B: CONNECTED, C: configured(2)}
    seen = series(
        (await _metrics(tell, facts=DeviceFacts(queue_pairs=4), front_ends=front_ends).page(PLAIN)).body.decode()
    )

    def values(name: str) -> dict[str, float]:
        return {dict(labels)["pciAddr"]: value for (family, labels), value in seen.items() if family == name}

    assert values("vdpa_agent_device_connected") == {A: 0, B: 1, C: 1}
    assert values("vdpa_agent_device_queue_pairs_in_use") == {A: 0, B: 0, C: 2}
    assert values("vdpa_agent_device_queue_pairs") == {A: 4, B: 4, C: 4}
    refused = {
        labels: value for (family, labels), value in seen.items() if family == "vdpa_agent_front_ends_refused_total"
    }
    assert refused == {frozenset({("pciAddr", C), ("reason", "form")}): 3}


async def test_steps_that_take_something_are_counted() -> None:
    async def tell(_address: PciAddress) -> Statistics:
        return {}

    seen = series((await _metrics(tell).page(PLAIN)).body.decode())
    steps = {dict(labels)["step"]: value for (name, labels), value in seen.items() if "destructive" in name}
    assert steps == {step: 2 if step is Destructive.LIST_SHRUNK else 0 for step in Destructive}


async def test_a_daemon_that_hangs_costs_a_second_and_what_it_told_before_counts() -> None:
    async def tell(address: PciAddress) -> Statistics:
        if address != A:
            await asyncio.Event().wait()
        return {1: {"packets": 7}}

    metrics = _metrics(tell)
    began = asyncio.get_running_loop().time()
    told = _statistics(await metrics.page(PLAIN))
    assert told == {(A, "1", "packets"): 7}
    assert asyncio.get_running_loop().time() - began >= 1


async def test_many_who_scrape_at_once_ask_the_daemon_one_after_the_other() -> None:
    asked = 0

    async def tell(_address: PciAddress) -> Statistics:
        nonlocal asked
        asked += 1
        assert asked == 1
        await asyncio.sleep(0)
        asked -= 1
        return {}

    metrics = _metrics(tell)
    answers = await asyncio.gather(*(metrics.page(PLAIN) for _ in range(10)))
    assert len(answers) == 10


async def test_who_accepts_openmetrics_gets_it() -> None:
    async def tell(_address: PciAddress) -> Statistics:
        return {0: {"packets": 1}}

    metrics = _metrics(tell)
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    answer = await metrics.page(Query(accept, frozenset()))
    assert answer.content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = text_string_to_metric_families(answer.body.decode())  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {family.name.removesuffix("_total") for family in FAMILIES} - names == {
        "vdpa_agent_daemon_start_time_seconds",  # what has no value here is left out
        "vdpa_agent_daemon_last_exit_code",
    }
    for odd in ("application/openmetrics-textile", "application/openmetrics-text;version=x", "", "\xff"):
        assert (await metrics.page(Query(odd, frozenset()))).body
    assert (await metrics.page(PLAIN)).content_type == "text/plain; version=0.0.4; charset=utf-8"


async def test_durations_fall_into_their_buckets() -> None:
    handled = Handled(HANDLED.methods)
    for seconds in (0.0, BOUNDS_S[0], 0.02, 9.0, 11.0):
        handled.add("/p.S/M", Status.OK, seconds, {})
    handled.add("/p.S/W", Status.CANCELLED, 5.0, {})
    handled.add_unknown()

    async def tell(_address: PciAddress) -> Statistics:
        return {}

    seen = series((await _metrics(tell, handled).page(PLAIN)).body.decode())
    method = {"grpc_type": "unary", "grpc_service": "p.S", "grpc_method": "M"}.items()
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in seen.items()
        if name == "grpc_server_handling_seconds_bucket"
    }
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    assert buckets == dict(zip(bounds, [2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 5], strict=True))
    assert seen["grpc_server_handling_seconds_sum", frozenset(method)] == pytest.approx(20.0205)
    codes = {
        (dict(labels)["grpc_method"], dict(labels)["grpc_code"]): value
        for (name, labels), value in seen.items()
        if name == "grpc_server_handled_total"
    }
    assert codes == {("M", "OK"): 5, ("W", "OK"): 0, ("W", "Canceled"): 1, ("unknown", "Unimplemented"): 1}
