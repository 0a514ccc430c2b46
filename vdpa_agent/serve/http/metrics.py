"""The metrics: what each is called and means, and where its value comes from."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple

from grpclib.const import Cardinality, Status
from prometheus_client import ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from vdpa_agent import __version__
from vdpa_agent.model.daemon import Cause, DaemonState, DeviceState
from vdpa_agent.model.destructive import Destructive
from vdpa_agent.model.health import Role
from vdpa_agent.node.worker import Worker
from vdpa_agent.rpc.handled import BOUNDS_S, Handled
from vdpa_agent.serve.http.server import Answer, Query
from vdpa_agent.serve.http.sources import Sources

_STATISTICS_S: Final = 1.0
"""How long the daemon may take to tell the statistics of all devices together."""

_ENCODE_S: Final = 30.0
"""How long the text of a page may take to be written, on a machine that has much else to do."""

_ODD_CODES: Final = {Status.OK: "OK", Status.CANCELLED: "Canceled"}

_COUNTER_MAX: Final = 2**64

_STATISTICS_MAX: Final = 65_536
"""The most series of statistics on a page: 64 of each of 1,023 devices. A page of more takes seconds to be written."""

_LABEL_CHARACTERS: Final = 256
"""The longest value of a label; paths of sockets have 107 bytes at most."""

_Labelled = Iterable[tuple[tuple[str, ...], float]]


class Kind(StrEnum):
    """The types of Prometheus that are used here."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Family(NamedTuple):
    """One metric with all its series.

    Attributes:
        name: what it is called.
        kind: its type.
        text: what it means.
        labels: the names of its labels.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()

    def of(self, value: float) -> Metric:
        """The metric, one without labels."""
        return self.each([((), value)])

    def each(self, values: _Labelled) -> Metric:
        """The metric, a value for each list of labels; their lone surrogates are escaped, and what is long is cut."""
        metric: CounterMetricFamily | GaugeMetricFamily
        if self.kind is Kind.COUNTER:
            metric = CounterMetricFamily(self.name, self.text, labels=self.labels)
        else:
            metric = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        # A page that names a series twice would be refused as a whole.
        for labels, value in {tuple(map(_label, labels)): value for labels, value in values}.items():
            metric.add_metric(labels, value)
        return metric


FAMILIES: Final[list[Family]] = []
"""All of them, in the order in which they are served; those of the process come after them."""


def _family(name: str, kind: Kind, text: str, *labels: str) -> Family:
    family = Family(name, kind, text, labels)
    FAMILIES.append(family)
    return family


BUILD_INFO: Final = _family("vdpa_agent_build_info", Kind.GAUGE, "1, with the version of the agent.", "version")
ROLE: Final = _family(
    "vdpa_agent_role",
    Kind.GAUGE,
    "1 for the role that the agent has: waiting for a list, managing a daemon, or serving somebody else's mapping.",
    "role",
)
READY: Final = _family("vdpa_agent_ready", Kind.GAUGE, "1 if the agent is ready; /readyz?verbose says why not.")
DEGRADED: Final = _family(
    "vdpa_agent_degraded_devices",
    Kind.GAUGE,
    "How many wanted devices are not served although the daemon runs; vdpa-agent status gives the reasons.",
)

DAEMON_UP: Final = _family("vdpa_agent_daemon_up", Kind.GAUGE, "1 if the managed daemon's process runs.")
DAEMON_READY: Final = _family(
    "vdpa_agent_daemon_ready", Kind.GAUGE, "1 if the managed daemon runs and answers, so that its devices are served."
)
DAEMON_STATE: Final = _family("vdpa_agent_daemon_state", Kind.GAUGE, "1 for the state of the managed daemon.", "state")
DAEMONS: Final = _family(
    "vdpa_agent_daemons",
    Kind.GAUGE,
    "How many daemons there are, by state: one for all devices, or with --isolation device one for each; the other"
    " metrics of the daemon then say what is true of all together.",
    "state",
)
DAEMON_START: Final = _family(
    "vdpa_agent_daemon_start_time_seconds",
    Kind.GAUGE,
    "When the running daemon was started, in seconds since the epoch.",
)
DAEMON_RESTARTS: Final = _family(
    "vdpa_agent_daemon_restarts_total",
    Kind.COUNTER,
    "Restarts of the daemon after it ended against the agent's will, by what ended it.",
    "reason",
)
DAEMON_CRASH_LOOP: Final = _family(
    "vdpa_agent_daemon_crash_loop", Kind.GAUGE, "1 if the daemon died five times within a minute and is not well since."
)
DAEMON_LAST_EXIT: Final = _family(
    "vdpa_agent_daemon_last_exit_code",
    Kind.GAUGE,
    "The exit code of the daemon when it ended last; 128 and the signal's number if a signal ended it.",
)
DAEMON_BACKOFF: Final = _family(
    "vdpa_agent_daemon_backoff_seconds", Kind.GAUGE, "The pause before the daemon's next start, 0 if there is none."
)

READINGS: Final = _family(
    "vdpa_agent_file_readings_total",
    Kind.COUNTER,
    "New contents of the lists and of the resource config: those that count (loaded), those that do not (refused), and"
    " how often the file was gone (absent).",
    "file",
    "result",
)
LOADED_AT: Final = _family(
    "vdpa_agent_file_loaded_timestamp_seconds",
    Kind.GAUGE,
    "When a content of the file last counted, in seconds since the epoch.",
    "file",
)
REFUSED: Final = _family(
    "vdpa_agent_file_refused",
    Kind.GAUGE,
    "1 if the present content of the file does not count, so that the last good one is in force.",
    "file",
)

DEVICES: Final = _family("vdpa_agent_devices", Kind.GAUGE, "How many devices there are, by state.", "state")
DEVICE_READY: Final = _family(
    "vdpa_agent_device_ready", Kind.GAUGE, "1 if the device's vhost-user socket can be used.", "pciAddr"
)
DEVICE_CONNECTED: Final = _family(
    "vdpa_agent_device_connected",
    Kind.GAUGE,
    "1 if a front end is connected to the device's socket; packets pass only while queue pairs are in use too.",
    "pciAddr",
)
QUEUE_PAIRS_IN_USE: Final = _family(
    "vdpa_agent_device_queue_pairs_in_use",
    Kind.GAUGE,
    "How many queue pairs the front end has set up and enabled; 0 if none is configured.",
    "pciAddr",
)
QUEUE_PAIRS: Final = _family(
    "vdpa_agent_device_queue_pairs", Kind.GAUGE, "How many queue pairs the device has; 0 if it is not known.", "pciAddr"
)
FRONT_ENDS_REFUSED: Final = _family(
    "vdpa_agent_front_ends_refused_total",
    Kind.COUNTER,
    "Front ends that the daemon refused, by reason; they begin anew when the daemon takes the device again.",
    "pciAddr",
    "reason",
)
DEVICE_INFO: Final = _family(
    "vdpa_agent_device_info",
    Kind.GAUGE,
    "1, with the device's socket, DPDK driver and NUMA node, as far as they are known.",
    "pciAddr",
    "socket",
    "driver",
    "numa_node",
)
DEVICE_POD: Final = _family(
    "vdpa_agent_device_pod",
    Kind.GAUGE,
    "1, with the container that has the device and its resource, by the kubelet's word; only with --kubelet-dir.",
    "pciAddr",
    "resource",
    "namespace",
    "pod",
    "container",
)
DEVICE_STATISTIC: Final = _family(
    "vdpa_agent_device_statistic_total",
    Kind.COUNTER,
    "The counters of the device's driver by its own names, for each virtqueue; queue 2n receives and 2n+1 transmits, as"
    " the front end sees it. They begin anew with the daemon.",
    "pciAddr",
    "queue",
    "statistic",
)

STEPS: Final = _family(
    "vdpa_agent_destructive_steps_total",
    Kind.COUNTER,
    "What the agent did that takes something from somebody: a device list lost devices that were served (list_shrunk),"
    " a socket file of an earlier daemon was removed (stale_socket_removed), a device got another socket name"
    " (device_renumbered), a mapping that another process had changed was written again (mapping_repaired).",
    "step",
)

ANSWERS: Final = _family(
    "vdpa_agent_answers_total",
    Kind.COUNTER,
    "Answers of GetSocketpath: a socket (promised), nothing for what is no device of this node (unknown), and nothing"
    " for a device that was not ready in time (not_ready): such a pod starts without its device.",
    "result",
)
HELD: Final = _family(
    "vdpa_agent_held_calls", Kind.GAUGE, "How many calls of GetSocketpath wait for their device to be ready."
)
CONNECTIONS: Final = _family("vdpa_agent_grpc_connections", Kind.GAUGE, "How many gRPC connections are open.")
TURNED_AWAY: Final = _family(
    "vdpa_agent_grpc_turned_away_total",
    Kind.COUNTER,
    "gRPC calls and connections that were refused or ended, by reason.",
    "reason",
)
HANDLED: Final = _family(
    "grpc_server_handled_total",
    Kind.COUNTER,
    "gRPC calls that ended, by method and status; those of methods that are not here are all `unknown`. Calls that were"
    " turned away are not among them.",
    "grpc_type",
    "grpc_service",
    "grpc_method",
    "grpc_code",
)
HANDLING: Final = _family(
    "grpc_server_handling_seconds",
    Kind.HISTOGRAM,
    "How long unary gRPC calls took, the time that they were held included.",
    "grpc_type",
    "grpc_service",
    "grpc_method",
)
LOG_LINES_DROPPED: Final = _family(
    "vdpa_agent_log_lines_dropped_total",
    Kind.COUNTER,
    "Log lines that were not written: the agent's, since nobody read them, and the daemon's, since they came too fast.",
    "source",
)

_TYPES: Final = {
    Cardinality.UNARY_UNARY: "unary",
    Cardinality.UNARY_STREAM: "server_stream",
    Cardinality.STREAM_UNARY: "client_stream",
    Cardinality.STREAM_STREAM: "bidi_stream",
}


class Metrics:
    """Serves the metrics of one agent; one scrape after the other."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._process = ProcessCollector(registry=None)
        self._one_at_a_time = asyncio.Lock()
        self._worker = Worker("metrics")

    async def page(self, query: Query) -> Answer:
        """The metrics of now, in the text format or that of OpenMetrics."""
        async with self._one_at_a_time:
            statistics = DEVICE_STATISTIC.each(await self._statistics())
            metrics = _Collected((*self._metrics(), statistics), self._process)
            encode: Callable[[Collector], bytes]
            if "application/openmetrics-text" in query.accept:
                content_type, encode = openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest
            else:
                content_type, encode = exposition.CONTENT_TYPE_PLAIN_0_0_4, exposition.generate_latest
            # In a thread: to write thousands of series takes long enough to be felt by those who call.
            page = await self._worker.run(partial(encode, metrics), timeout_s=_ENCODE_S)
            return Answer(page, content_type=content_type)

    async def _statistics(self) -> list[tuple[tuple[str, ...], float]]:
        """The counters of all devices whose daemon answers, as many as it tells in time."""
        values: list[tuple[tuple[str, ...], float]] = []
        view = self._sources.view
        if view.served.facts.role is not Role.MANAGING:
            return values
        with suppress(TimeoutError):
            async with asyncio.timeout(_STATISTICS_S):
                for address in view.served.sockets:
                    if len(values) >= _STATISTICS_MAX:
                        break
                    for queue, counters in (await self._sources.statistics(address)).items():
                        values += [
                            ((address, str(queue), name), value)
                            for name, value in counters.items()
                            if 0 <= value < _COUNTER_MAX
                        ]
        return values

    def _metrics(self) -> Iterator[Metric]:
        """All but the statistics of devices and what concerns the process."""
        yield from self._agent()
        if self._sources.view.served.facts.role is Role.MANAGING:
            yield from self._daemon()
        yield from self._files()
        yield from self._devices()
        yield STEPS.each(((step,), self._sources.steps[step]) for step in Destructive)
        yield from self._grpc()
        yield LOG_LINES_DROPPED.each(_by(self._sources.lines_dropped().items()))

    def _agent(self) -> Iterator[Metric]:
        served = self._sources.view.served
        yield BUILD_INFO.each([((__version__,), 1)])
        yield ROLE.each(_one_of(Role, served.facts.role))
        yield READY.of(served.health.ready)
        yield DEGRADED.of(len(served.health.unserved))

    def _daemon(self) -> Iterator[Metric]:
        facts = self._sources.view.served.facts
        daemon, daemons = facts.daemon, tuple(facts.daemons.values()) or (facts.daemon,)
        yield DAEMON_UP.of(any(one.pid is not None for one in daemons))
        yield DAEMON_READY.of(daemon.state is DaemonState.RUNNING and not daemon.unhealthy)
        yield DAEMON_STATE.each(_one_of(DaemonState, daemon.state))
        states = Counter(one.state for one in daemons)
        yield DAEMONS.each(((state,), states[state]) for state in DaemonState)
        if daemon.started_at_s is not None:
            yield DAEMON_START.of(daemon.started_at_s)
        yield DAEMON_RESTARTS.each(((cause,), self._sources.restarts[cause]) for cause in Cause)
        yield DAEMON_CRASH_LOOP.of(daemon.crash_loop)
        if daemon.last_exit_code is not None:
            yield DAEMON_LAST_EXIT.of(daemon.last_exit_code)
        yield DAEMON_BACKOFF.of(daemon.backoff_s)

    def _files(self) -> Iterator[Metric]:
        readings = self._sources.readings
        yield READINGS.each(
            ((file, result), value)
            for file, read in readings.items()
            for result, value in (("loaded", read.loaded), ("refused", read.refused), ("absent", read.absent))
        )
        yield LOADED_AT.each(((file,), read.loaded_at_s) for file, read in readings.items() if read.loaded)
        yield REFUSED.each(((file,), read.is_refused) for file, read in readings.items())

    def _devices(self) -> Iterator[Metric]:
        served = self._sources.view.served
        devices = served.devices
        states = Counter(device.state for device in devices.values())
        yield DEVICES.each(((state,), states[state]) for state in DeviceState)
        yield DEVICE_READY.each(((address,), address in served.sockets) for address in devices)
        if served.facts.role is Role.MANAGING:
            yield DEVICE_CONNECTED.each(
                ((address,), device.front_end.is_connected) for address, device in devices.items()
            )
            yield QUEUE_PAIRS_IN_USE.each(
                ((address,), device.front_end.queue_pairs) for address, device in devices.items()
            )
            yield QUEUE_PAIRS.each(((address,), device.facts.queue_pairs) for address, device in devices.items())
            yield FRONT_ENDS_REFUSED.each(
                ((address, reason), count)
                for address, device in devices.items()
                for reason, count in device.refusals.items()
            )
        yield DEVICE_INFO.each(
            ((address, device.socket, device.facts.driver, _known(device.facts.numa_node)), 1)
            for address, device in devices.items()
        )
        yield DEVICE_POD.each(
            ((address, pool.resource if (pool := served.pools.get(address)) else "", *owner), 1)
            for address, owner in served.facts.owners.items()
            if address in devices
        )

    def _grpc(self) -> Iterator[Metric]:
        sources, answers, handled = self._sources, self._sources.answers, self._sources.handled
        counts = {"promised": answers.promised, "unknown": answers.unknown, "not_ready": answers.not_ready}
        yield ANSWERS.each(_by(counts.items()))
        yield HELD.of(answers.held)
        yield CONNECTIONS.of(sources.peers.connections)
        yield TURNED_AWAY.each(_by(sources.peers.turned_away.items()))
        yield HANDLED.each(
            ((*_method(path, handled), _code(status)), count) for (path, status), count in list(handled.codes.items())
        )
        durations = HistogramMetricFamily(HANDLING.name, HANDLING.text, labels=HANDLING.labels)
        for path, times in handled.times.items():
            buckets = zip((*map(str, BOUNDS_S), "+Inf"), map(float, accumulate(times)), strict=True)
            durations.add_metric(_method(path, handled), list(buckets), handled.seconds[path])
        yield durations


class _Collected(Collector):
    """What was gathered in the event loop, to be written elsewhere, and what may be gathered there."""

    def __init__(self, metrics: Iterable[Metric], process: ProcessCollector) -> None:
        self._metrics = metrics
        self._process = process

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
        yield from self._process.collect()


def _label(value: str) -> str:
    return value[:_LABEL_CHARACTERS].encode(errors="backslashreplace").decode()


def _by(counts: Iterable[tuple[str, int]]) -> _Labelled:
    return (((name,), count) for name, count in counts)


def _one_of(states: type[StrEnum], now: StrEnum) -> _Labelled:
    return (((state,), state is now) for state in states)


def _known(number: int | None) -> str:
    return "" if number is None else str(number)


def _method(path: str, handled: Handled) -> tuple[str, str, str]:
    _, service, method = path.split("/")
    return _TYPES[handled.methods.get(path, Cardinality.UNARY_UNARY)], service, method


def _code(status: Status) -> str:
    """As Go spells it, and with it most of those who look at such metrics: NotFound."""
    return _ODD_CODES.get(status) or status.name.title().replace("_", "")
