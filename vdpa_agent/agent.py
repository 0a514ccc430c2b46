"""The composition root: builds the components, wires them, starts and stops them."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, cast

import structlog

from vdpa_agent import __version__
from vdpa_agent.config import AgentConfig, DaemonMode
from vdpa_agent.daemon.supervisor import Supervisor
from vdpa_agent.errors import AgentError
from vdpa_agent.files.lists import Lists
from vdpa_agent.files.names import NamesFile
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonStatus, Stop
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import example_mapping
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.listener import listening
from vdpa_agent.serve.vdpadpdk import VdpaDpdk

log = structlog.get_logger(__name__)


async def run(config: AgentConfig) -> None:
    """Runs the agent until SIGTERM or SIGINT, then stops it in order: daemon, files, socket.

    Raises:
        AgentError: the agent cannot go on; its `exit_code` says how the process should end.
    """
    stop = Latest(Stop.NO)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked_to_stop, stop, number)
    log.info("agent_starting", version=__version__)
    try:
        if config.serve.example_data:
            await _serve_example(config, stop)
        else:
            await _serve_lists(config, stop)
    except* AgentError as group:
        raise _first(group) from None
    log.info("agent_stopped")


async def _serve_example(config: AgentConfig, stop: Latest[Stop]) -> None:
    log.warning("example_data_served", remedy="drop --example-data to serve real devices")
    answers = Answers(Latest(Loaded()), Latest(Loaded(example_mapping())), Latest(DaemonStatus(managed=False)))
    async with listening(config.serve, [VdpaDpdk(answers, 0)]):
        await stop.wait_for(bool)


async def _serve_lists(config: AgentConfig, stop: Latest[Stop]) -> None:
    lists = Lists(
        config.files,
        takes_requests=config.daemon.mode is not DaemonMode.NONE,
        mapping_is_ours=lambda: supervisor.status.value.managed,
    )
    supervisor = Supervisor(
        config.daemon,
        socket_list=config.files.socket_list,
        wanted=lists.devices,
        mapping=lists.mapping,
        names=NamesFile(config.files.socket_list),
        retire_mapping=lists.retire_mapping,
    )
    answers = Answers(lists.devices, lists.mapping, supervisor.status)
    service = VdpaDpdk(answers, config.serve.hold_timeout_s)
    lists.check()
    supervisor.adopt_role()
    async with listening(config.serve, [service]), asyncio.TaskGroup() as tasks:
        eternal = [
            tasks.create_task(_eternal(lists.run()), name="lists"),
            tasks.create_task(_eternal(answers.run()), name="answers"),
        ]
        supervising = tasks.create_task(supervisor.run(stop), name="supervisor")
        try:
            await stop.wait_for(bool)
            answers.end()
            await supervising
        finally:
            answers.end()
            for task in eternal:
                task.cancel()


async def _eternal(task: Coroutine[Any, Any, None]) -> None:
    """Runs what must never return; that it did is a defect worth a traceback."""
    await task
    message = "an eternal task returned"
    raise AssertionError(message)


def _asked_to_stop(stop: Latest[Stop], number: signal.Signals) -> None:
    """The first signal stops everything in order, the second waits for nothing."""
    urgency = Stop.NOW if stop.value else Stop.IN_ORDER
    log.info("agent_stopping", signal=number.name, urgency=urgency.name.lower())
    stop.set(urgency)


def _first(group: BaseExceptionGroup[AgentError]) -> AgentError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return cast("AgentError", error)
