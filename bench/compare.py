"""Measures the agent beside its peers in one run, interleaved, with one client: `make bench`."""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

from bench import figures, large, report
from bench.peers import ADDRESSES, AGENT, ALL, GO, GRPC, Server, serving
from tests.processes import ROOT, built, eventually, running, write_list

STREAMS: Final = (1, 16, 128)
ENTRIES: Final = 16
MANY_ENTRIES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how often each comparison is made.
        cold: cold calls in a round.
        warm: warm calls in a round.
        streams_s: how long streams are kept busy, in seconds.
        storms: how often many clients come at once.
        storm: how many.
        starts: how often each server is started.
        many_calls: the calls after which memory is compared.
        idle_s: how long idle servers are watched, in seconds.
        rest_s: how long after the many clients memory is compared again, in seconds.
        lists: how often all devices are listed.
        changes: how often a file is changed.
        kills: how often the daemon is killed.
    """

    rounds: int = 5
    cold: int = 1000
    warm: int = 1000
    streams_s: float = 1.0
    storms: int = 5
    storm: int = 1000
    starts: int = 10
    many_calls: int = 100_000
    idle_s: float = 20.0
    rest_s: float = 30.0
    lists: int = 100
    changes: int = 100
    kills: int = 8


QUICK: Final = Plan(
    rounds=1,
    cold=50,
    warm=50,
    streams_s=0.1,
    storms=1,
    storm=100,
    starts=1,
    many_calls=500,
    idle_s=0.5,
    rest_s=0.1,
    lists=3,
    changes=3,
    kills=1,
)


T = TypeVar("T")


class Table:
    """The figures of all rows: of each server one in every round."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, row: str, unit: str, server: str, figure: float) -> None:
        """Takes the figure of a server in one round."""
        self._rounds[row, unit][server].append(figure)

    def rows(self) -> list[dict[str, Any]]:
        """Of each row the medians, and for each server the median of its ratios to Go's figure in the same round."""
        return [
            {
                "row": row,
                "unit": unit,
                "medians": {name: statistics.median(values) for name, values in servers.items()},
                "to_go": {
                    name: statistics.median(mine / other for mine, other in zip(values, servers[GO], strict=True))
                    for name, values in servers.items()
                    if name != GO and GO in servers and all(servers[GO])
                },
            }
            for (row, unit), servers in self._rounds.items()
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all rows, writes them as JSON and prints a table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures are written")
    parser.add_argument("--quick", action="store_true", help="measure as little as shows that all of it works")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else Plan()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="va-") as name:
        measured: dict[str, Any] = {"rows": compare(plan, Path(name)), "agent": agent_alone(plan), "machine": machine()}
    measured["seconds"] = round(time.monotonic() - began)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(measured, indent=2) + "\n")
    print("\n".join(report.tables(measured)))
    return 0


def compare(plan: Plan, directory: Path) -> list[dict[str, Any]]:
    """All rows in which the servers stand side by side; in each round they take turns in another order."""
    table = Table()
    turns = random.Random(1)  # noqa: S311 - an order of turns, the same in every run
    with ExitStack() as ends:
        servers = [ends.enter_context(serving(name, directory / name, ENTRIES))[0] for name in ALL]
        large = [ends.enter_context(serving(name, directory / f"{name} large", MANY_ENTRIES))[0] for name in GRPC]
        _idle(table, plan, servers)
        for _ in range(plan.rounds):
            _take_turns(turns, servers, lambda server: _calls(table, plan, server))
            _take_turns(turns, large, lambda server: _call_of_many_entries(table, plan, server))
            _take_turns(turns, servers[: len(GRPC)], lambda server: _streams(table, plan, server))
        for _ in range(plan.storms):
            _take_turns(turns, servers, lambda server: _storm(table, plan, server))
        _take_turns(turns, servers, lambda server: _memory(table, f"after {plan.storm:,} at once", server))
        time.sleep(plan.rest_s)
        _take_turns(turns, servers, lambda server: _memory(table, f"{plan.rest_s:g} s later", server))
        # The slowest of them would need longer for this than for all else, and nobody asks.
        _take_turns(
            turns,
            [server for server in servers if server.name in {AGENT, GO}],
            lambda server: _many_calls(table, plan, server),
        )
    for number in range(plan.starts):
        for entries, names in ((ENTRIES, ALL), (MANY_ENTRIES, GRPC)):
            start = partial(_start, table, directory / f"{number} of {entries}", entries)
            _take_turns(turns, names, start)
    return table.rows()


def _take_turns(turns: random.Random, all_of_them: Sequence[T], do: Callable[[T], None]) -> None:
    for one in turns.sample(all_of_them, len(all_of_them)):
        do(one)


def _start(table: Table, directory: Path, entries: int, name: str) -> None:
    with serving(name, directory / name, entries) as (_, seconds):
        what = "start to first answer" if entries == ENTRIES else f"start to first answer, {entries:,} entries"
        table.add(what, "ms", name, seconds * 1000)


def _memory(table: Table, when: str, server: Server) -> None:
    table.add(f"memory {when}", "MiB", server.name, server.rss_mib())


def _idle(table: Table, plan: Plan, servers: Sequence[Server]) -> None:
    """All at once: they do nothing that could disturb the others."""
    before = [(server.cpu_s(), server.wakeups()) for server in servers]
    time.sleep(plan.idle_s)
    for server, (cpu_s, wakeups) in zip(servers, before, strict=True):
        _memory(table, "idle", server)
        table.add("CPU idle", "%", server.name, (server.cpu_s() - cpu_s) / plan.idle_s * 100)
        table.add("wakeups idle", "1/s", server.name, (server.wakeups() - wakeups) / plan.idle_s)


def _calls(table: Table, plan: Plan, server: Server) -> None:
    for mode, what, calls in (("cold", "connect, call, close", plan.cold), ("warm", "call", plan.warm)):
        before_s = server.cpu_s()
        found = figures.spread(server.load(mode, calls=calls)["latencies_us"], 1)
        for share in ("p50", "p99"):
            table.add(f"{what}: {share}", "µs", server.name, found[share])
        table.add(f"{what}: CPU", "µs", server.name, (server.cpu_s() - before_s) / calls * 1e6)


def _call_of_many_entries(table: Table, plan: Plan, server: Server) -> None:
    for mode, what, calls in (("cold", "connect, call, close", plan.cold), ("warm", "call", plan.warm)):
        told = server.load(mode, calls=calls, address=ADDRESSES[MANY_ENTRIES - 1])
        table.add(
            f"{what}, {MANY_ENTRIES:,} entries: p50", "µs", server.name, figures.spread(told["latencies_us"], 1)["p50"]
        )
    _memory(table, f"with {MANY_ENTRIES:,} entries", server)


def _streams(table: Table, plan: Plan, server: Server) -> None:
    for streams in STREAMS:
        what = f"{streams} stream{'s' if streams > 1 else ''}"
        before_s = server.cpu_s()
        told = server.load("streams", streams=streams, seconds=plan.streams_s)
        table.add(f"{what}: calls", "1/s", server.name, told["calls"] / told["seconds"])
        cpu_us = (server.cpu_s() - before_s) / told["calls"] * 1e6
        table.add(f"{what}: CPU a call", "µs", server.name, cpu_us)


def _storm(table: Table, plan: Plan, server: Server) -> None:
    told = server.load("storm", calls=plan.storm)
    table.add(f"{plan.storm:,} clients at once: all answered", "ms", server.name, told["seconds"] * 1000)
    table.add(f"{plan.storm:,} clients at once: failed", "clients", server.name, told["failed"])


def _many_calls(table: Table, plan: Plan, server: Server) -> None:
    server.load("streams", streams=16, calls=plan.many_calls)
    _memory(table, f"after {plan.many_calls:,} calls more", server)


def agent_alone(plan: Plan) -> dict[str, dict[str, Any]]:
    """What no peer does: the agent with its daemon on simulated VFs, and a mapping that changes."""
    return {
        "list written to first VF served, daemon included, ms": _list_to_first_served(plan.starts),
        "list written to one more VF served, ms": figures.list_to_served(plan.changes),
        "mapping changed to new answer, ms": figures.mapping_to_answer(plan.changes),
        "the same without a pause between changes, ms": figures.mapping_to_answer(plan.changes, pause_s=0.0),
        "kill -9 of the daemon to 4 VFs served again, s": figures.recovery(4, plan.kills),
        "idle, 4 VFs served": figures.idle(plan.idle_s),
        **large.of_devices(64, plan.lists),
        **large.of_devices(1_023, plan.lists),
    }


def _list_to_first_served(rounds: int) -> dict[str, float]:
    """From the rename of the first list until its VF is answered with a socket: vdpad starts in between."""
    vdpad = built("native/vdpad/vdpad", "native")
    times = []
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory(prefix="va-") as name,
            running(Path(name), "--simulate", "--memory=none", f"--vdpad={vdpad}", figures.NO_RATE) as agent,
        ):
            began = time.monotonic()
            write_list(agent.pci_list, ADDRESSES[:1])
            eventually("an answer", partial(agent.ask, ADDRESSES[0]))
            times.append(time.monotonic() - began)
    return figures.spread(times, 1000)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "architecture": platform.machine(),
        "system": f"Linux {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
        "grpcio": version("grpcio"),
        "grpclib": version("grpclib"),
        "grpc-go": _of_go("google.golang.org/grpc"),
        "Go": _of_go("go"),
    }


def _of_go(name: str) -> str:
    """The version of a module that the client is built of."""
    words = (ROOT / "bench" / "go" / "go.mod").read_text().split()
    return words[words.index(name) + 1]


if __name__ == "__main__":
    sys.exit(main())
