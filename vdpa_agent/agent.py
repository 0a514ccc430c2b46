"""The composition root: builds the components, wires them, starts and stops them."""

import asyncio
import gc
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import structlog

from vdpa_agent import __version__
from vdpa_agent.config import AgentConfig, DaemonMode, HostPort, settings_in_force
from vdpa_agent.daemon.assembly import supervision_of
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.reaper import Reaper, reaping
from vdpa_agent.daemon.roles import Roles
from vdpa_agent.daemon.wanted import Wanted
from vdpa_agent.errors import unwrapped
from vdpa_agent.files.follow import follow
from vdpa_agent.files.lists import Lists
from vdpa_agent.files.mapping_file import MappingFile
from vdpa_agent.files.names import NamesFile
from vdpa_agent.files.resource_file import ResourceFile
from vdpa_agent.kubelet.directories import Directories
from vdpa_agent.latest import Latest
from vdpa_agent.logs import LogWriter
from vdpa_agent.model.daemon import DaemonStatus, Statistics, Stop
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.health import Role, Standing
from vdpa_agent.model.loaded import Loaded, Readings
from vdpa_agent.model.mapping import example_mapping
from vdpa_agent.model.owner import NO_OWNERS, Owners
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Pools
from vdpa_agent.node.discovery import Discovery
from vdpa_agent.node.process import has_terminal
from vdpa_agent.node.sockets import dead_sockets
from vdpa_agent.node.worker import Stuck, Worker
from vdpa_agent.rpc.handled import Handled
from vdpa_agent.rpc.listener import listening
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.devices import Ask, DeviceService
from vdpa_agent.serve.health import HealthService
from vdpa_agent.serve.http.sources import Sources
from vdpa_agent.serve.reflection import Reflection
from vdpa_agent.serve.vdpadpdk import VdpaDpdk
from vdpa_agent.serve.view import DeadSockets, Snapshots, View

_COLLECT_AFTER: Final = 10_000
"""Objects made before the youngest are looked at for cycles; Python's 700 are three connections."""

_DISK_S: Final = 2.0
"""How long the file system of an external daemon's sockets may take to answer."""

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = structlog.get_logger(__name__)


async def run(config: AgentConfig, logs: LogWriter) -> None:
    """Runs the agent until SIGTERM, SIGINT or its terminal's end, then stops it in order: daemon, files, socket.

    Args:
        config: the settings.
        logs: what writes the log, for its drops to be told.

    Raises:
        AgentError: the agent cannot go on; its `exit_code` says how the process should end.
    """
    stop = Latest(Stop.NO)
    gc.freeze()  # what is loaded stays: no collection need look at it
    gc.set_threshold(_COLLECT_AFTER)
    gc.enable()
    with stop_signals(partial(_asked_to_stop, stop, terminal=has_terminal())):
        await _serve(config, logs, stop)
        log.info("agent_stopped")


async def _serve(config: AgentConfig, logs: LogWriter, stop: Latest[Stop]) -> None:
    log.info("agent_starting", version=__version__)
    try:
        if config.serve.example_data:
            await _serve_example(config, logs, stop)
        else:
            async with reaping() as reaper:
                await _serve_lists(config, logs, stop, reaper)
    except BaseExceptionGroup as group:
        # Not except*, in which Python 3.11.2 wraps what is raised `from None` in a group of its own.
        raise unwrapped(group) from None


async def _serve_example(config: AgentConfig, logs: LogWriter, stop: Latest[Stop]) -> None:
    log.warning("example_data_served", remedy="drop --example-data to serve real devices")
    standing, owners, kubelet_lost = Latest(Standing()), Latest(NO_OWNERS), Latest("")
    view = View(
        Snapshots(
            role=Latest(Role.SERVING),
            wanted=Latest(Loaded()),
            pools=Latest(Loaded()),
            mapping=Latest(Loaded(example_mapping())),
            daemon=Latest(DaemonStatus()),
            daemons=Latest(MappingProxyType({})),
            devices=Latest(MappingProxyType({})),
            standing=standing,
            owners=owners,
            kubelet_lost=kubelet_lost,
            socket_dir=Latest(""),
        )
    )
    answers = Answers(view)
    sources = partial(
        Sources,
        view=view,
        answers=answers,
        statistics=_no_statistics,
        readings={},
        restarts=Counter(),
        steps=Counter(),
        lines_dropped=lambda: {"agent": logs.dropped_lines},
    )
    async with (
        listening(config.serve, _services(config, view, answers, _no_statistics), standing) as (peers, handled),
        _tracing(handled, wanted=config.serve.tracing),
        _http(config.serve.http_listen, sources(peers=peers, handled=handled)),
    ):
        await stop.wait_for(bool)
        view.end()


async def _serve_lists(config: AgentConfig, logs: LogWriter, stop: Latest[Stop], reaper: Reaper) -> None:
    takes_requests = config.daemon.mode is not DaemonMode.NONE
    steps: DestructiveSteps = Counter()
    lists = Lists(
        config.files, takes_requests=takes_requests, shrink_settle_s=config.daemon.drain_timeout_s, steps=steps
    )
    found = _found(config, lists)
    names = NamesFile(config.files.socket_list)
    touched = Latest(0)
    directory = SocketDirectory(config.daemon.socket_dir, steps, touched)
    roles = Roles(
        config.daemon,
        wanted=found.wanted,
        mapping=lists.mapping,
        names=names,
        socket_list=config.files.socket_list,
        directory=directory,
    )
    mapping_file = MappingFile(config.files, takes_requests=takes_requests)
    supervisor, daemons = supervision_of(
        config.daemon,
        socket_list=config.files.socket_list,
        role=roles.role,
        wanted=found.wanted,
        pools=found.pools,
        mapping=lists.mapping,
        directory=directory,
        names=names,
        retire_mapping=mapping_file.retire,
        write_mapping=mapping_file.write,
        reaper=reaper,
        steps=steps,
    )
    standing, owners, kubelet_lost = Latest(Standing()), Latest(NO_OWNERS), Latest("")
    view = View(
        Snapshots(
            role=roles.role,
            wanted=found.wanted,
            pools=found.pools,
            mapping=lists.mapping,
            daemon=supervisor.status,
            daemons=daemons,
            devices=supervisor.devices,
            standing=standing,
            owners=owners,
            kubelet_lost=kubelet_lost,
            socket_dir=directory.silence,
        ),
        left_s=config.serve.hold_timeout_s,
        dead_sockets=_dead_sockets(Worker("external-sockets")),
        require_sockets=config.serve.require_sockets,
        ready_when=config.serve.ready_when,
        pci_list=str(config.files.pci_list),
        socket_list=str(config.files.socket_list),
        resource_config=str(config.files.resource_config or ""),
    )
    directories = Directories(config.daemon.device_dir, lambda: view.served, view.revision)
    answers = Answers(view)
    sources = partial(
        Sources,
        view=view,
        answers=answers,
        statistics=supervisor.statistics,
        readings={**lists.readings, **found.readings},
        restarts=supervisor.restarts,
        steps=steps,
        lines_dropped=lambda: {"agent": logs.dropped_lines, "daemon": supervisor.dropped.lines},
    )
    await lists.first()
    await found.first()
    await roles.decide()
    async with (
        aclosing(roles),
        listening(config.serve, _services(config, view, answers, supervisor.statistics), standing) as (peers, handled),
        _tracing(handled, wanted=config.serve.tracing),
        _http(config.serve.http_listen, sources(peers=peers, handled=handled)),
        asyncio.TaskGroup() as tasks,
    ):
        eternal = [
            tasks.create_task(_eternal(lists.run()), name="lists"),
            tasks.create_task(_eternal(roles.run()), name="roles"),
            tasks.create_task(_eternal(view.run()), name="view"),
            tasks.create_task(_eternal(answers.run()), name="answers"),
            tasks.create_task(_eternal(directories.run()), name="directories"),
            tasks.create_task(
                _eternal(_speak_with_kubelet(config, directories, view, owners, kubelet_lost)), name="kubelet"
            ),
            tasks.create_task(_eternal(_touch(touched, config.daemon.socket_dir)), name="sockets"),
            *(tasks.create_task(_eternal(run()), name=name) for name, run in found.runs.items()),
        ]
        supervising = tasks.create_task(supervisor.run(stop), name="supervisor")
        try:
            await stop.wait_for(bool)
            view.end()
            await supervising
        finally:
            view.end()
            answers.end()
            for task in eternal:
                task.cancel()


async def _speak_with_kubelet(
    config: AgentConfig, directories: Directories, view: View, owners: Latest[Owners], lost: Latest[str]
) -> None:
    """Has the kubelet know the pools, if that is asked for; else nothing is imported."""
    if config.kubelet.directory is None:
        await asyncio.Event().wait()
        return
    from vdpa_agent.kubelet.plugins import Plugins  # noqa: PLC0415

    plugins = Plugins(
        config.kubelet.directory,
        directories,
        device_info_dir=config.kubelet.device_info,
        owners=owners,
        lost=lost,
        served=lambda: view.served,
        revision=view.revision,
        hold_timeout_s=config.serve.hold_timeout_s,
    )
    await plugins.run()


class _Found(NamedTuple):
    """The devices of all sources.

    Attributes:
        wanted: the union.
        pools: the resources with their VFs.
        first: looks at the sources beside the lists for the first time.
        runs: what follows them, by name.
        readings: how the contents of their files were judged.
    """

    wanted: Latest[Loaded[DeviceList]]
    pools: Latest[Loaded[Pools]]
    first: Callable[[], Coroutine[Any, Any, None]]
    runs: Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
    readings: Mapping[str, Readings]


def _found(config: AgentConfig, lists: Lists) -> _Found:
    path = config.files.resource_config
    if path is None:
        return _Found(lists.devices, Latest(Loaded()), _nothing, {}, {})
    file = ResourceFile(path, config.files.socket_list, simulate=config.daemon.simulate)

    def join() -> None:
        wanted.join()  # a device that leaves a pool leaves what is wanted in the same step

    discovery = Discovery(file.config, config.daemon.sysfs, changed=join)
    wanted = Wanted(lists.devices, discovery.pools)

    async def first() -> None:
        await file.first()
        await discovery.first()
        wanted.join()

    runs = {"resource config": file.run, "discovery": discovery.run, "wanted": wanted.run}
    return _Found(wanted.devices, discovery.pools, first, runs, file.readings)


async def _nothing() -> None:
    """There is no other source."""


async def _touch(touched: Latest[int], directory: Path) -> None:
    """Has the sockets looked at as soon as anything changes in their directory."""
    async for _ in follow((directory / "vdpa-0",), quiet=True):
        touched.set(touched.value + 1)


def _dead_sockets(worker: Worker) -> DeadSockets:
    """Asks the kernel off the event loop, since a path may be on a file system that does not answer."""

    async def ask(paths: Collection[str]) -> dict[str, str]:
        try:
            return await worker.run(lambda: dead_sockets(paths), timeout_s=_DISK_S)
        except Stuck as error:
            return {path: f"{path}: {error}" for path in paths}

    return ask


@asynccontextmanager
async def _tracing(handled: Handled, *, wanted: bool) -> AsyncIterator[None]:
    """Traces the calls while the context lasts, if that is asked for; else nothing is imported."""
    if not wanted:
        yield
        return
    try:
        from vdpa_agent.serve.tracing import tracing  # noqa: PLC0415
    except ImportError as error:
        # The names, not a command of pip's: the image has none.
        remedy = "install opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http; in an image see docs/image.md"
        log.warning("tracing_not_possible", reason=str(error).lower(), remedy=remedy)
        yield
        return
    async with tracing(handled):
        yield


@asynccontextmanager
async def _http(listen: HostPort | None, sources: Sources) -> AsyncIterator[None]:
    """Serves the metrics and the probes while the context lasts, if that is asked for; else nothing is imported."""
    if listen is None:
        yield
        return
    from vdpa_agent.serve.http.metrics import Metrics  # noqa: PLC0415
    from vdpa_agent.serve.http.probes import livez, readyz  # noqa: PLC0415
    from vdpa_agent.serve.http.server import serving  # noqa: PLC0415

    pages = {"/livez": livez(sources.view), "/readyz": readyz(sources.view), "/metrics": Metrics(sources).page}
    async with serving(listen, pages):
        yield


def _services(config: AgentConfig, view: View, answers: Answers, statistics: Ask) -> list[Any]:
    """Everything that is served."""
    hold_s = 0.0 if config.serve.example_data else config.serve.hold_timeout_s
    services: list[Any] = [
        VdpaDpdk(answers, hold_s),
        DeviceService(view, statistics, settings_in_force(config)),
        HealthService(view),
    ]
    return [*services, Reflection(services)]


async def _no_statistics(_address: PciAddress) -> Statistics:
    return {}


async def _eternal(task: Coroutine[Any, Any, None]) -> None:
    """Runs what must never return; that it did is a defect worth a traceback."""
    await task
    message = "an eternal task returned"
    raise AssertionError(message)


@contextmanager
def stop_signals(asked: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Reports SIGTERM, SIGINT and SIGHUP in the event loop while the context lasts, but no SIGHUP under nohup."""
    loop = asyncio.get_running_loop()
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    numbers = [number for number in _STOP_SIGNALS if number not in ignored]

    def handle(number: int, _frame: Any) -> None:
        loop.call_soon_threadsafe(asked, signal.Signals(number))

    for number in numbers:
        # This wakes the loop. But what it gets to know by is a byte in a socket, which can be full of SIGCHLD's.
        loop.add_signal_handler(number, lambda: None)
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _asked_to_stop(stop: Latest[Stop], number: signal.Signals, *, terminal: bool) -> None:
    """The first signal stops everything in order, the second waits for nothing.

    SIGHUP is the end of a terminal, often said twice. Without one it asks daemons to read their files again.
    """
    if number is signal.SIGHUP and (stop.value or not terminal):
        log.info("hangup_ignored", remedy="lists are followed without it; start the agent again for other options")
        return
    urgency = Stop.NOW if stop.value else Stop.IN_ORDER
    log.info("agent_stopping", signal=number.name, urgency=urgency.name.lower())
    stop.set(urgency)
