"""MappingRepair: has the mapping file written again when it does not say what the daemon acknowledged."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from vdpa_agent.daemon.asking import unanswered
from vdpa_agent.daemon.control import Control
from vdpa_agent.errors import Unanswered
from vdpa_agent.latest import Latest
from vdpa_agent.model.backoff import Backoff
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.model.loaded import ABSENT, Loaded
from vdpa_agent.model.mapping import Mapping as SocketMapping
from vdpa_agent.model.plan import Mapped
from vdpa_agent.model.text import printable

_SETTLE_S: Final = 1.5
"""How long the file may differ: the daemon writes it before it answers, and it is read a moment later, without inotify
within a second.
"""

_RETRY: Final = Backoff(first_s=1.0, cap_s=30.0)
"""When it is written again that was not, or that another process changes again and again."""

_WRITE_S: Final = 5.0
"""How long the daemon may take to write the mapping."""

_SAID_CHARACTERS: Final = 640
"""The longest reason of the daemon's that is passed on: mapping_problem of native/vdpad/daemon.h."""

log = structlog.get_logger(__name__)


class MappingRepair:
    """Compares the mapping file, which is an output for others, with what it should say.

    Attributes:
        wake: to be set when what the file should say has changed.
        due_s: when it needs a step without any event, in seconds of the loop's clock; None: never.
    """

    def __init__(
        self,
        mapping: Latest[Loaded[SocketMapping]],
        *,
        retire: Callable[[], Awaitable[None]],
        steps: DestructiveSteps,
    ) -> None:
        """Compares nothing yet.

        Args:
            mapping: what the file says.
            retire: takes the file away; a device list in its place is kept.
            steps: where repairs are counted.
        """
        self.wake = asyncio.Event()
        self.due_s: float | None = None
        self._mapping = mapping
        self._retire = retire
        self._steps = steps
        self._tries = 0
        self._reported = ""

    def forget(self) -> None:
        """The daemon is gone: there is nothing to compare with."""
        self.due_s = None
        self._tries = 0

    async def run(self, write: Callable[[], Awaitable[str]], mapped: Callable[[], Mapped]) -> None:
        """Has the file written again whenever it has differed for long enough, until cancelled.

        Args:
            write: has it written; returns why it was not, empty if it was, and may raise.
            mapped: what it should say now; `wake` is to be set when that changes.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.wake_on_change())
            while True:
                self.wake.clear()
                await self.step(write, mapped())
                await self.pause()

    async def pause(self) -> None:
        """Waits until a step may be due."""
        due_s = self.due_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due_s):
                await self.wake.wait()

    async def wake_on_change(self) -> None:
        """Sets `wake` after each change of the file, until cancelled."""
        async for _ in self._mapping.changes():
            self.wake.set()

    async def step(self, write: Callable[[], Awaitable[str]], mapped: Mapped) -> None:
        """Has the file written again if it has differed for long enough; arguments are those of `run`."""
        loaded = self._mapping.value
        difference = _difference(loaded, mapped)
        if not difference:
            self.due_s = None
            self._tries = 0
            return
        now_s = asyncio.get_running_loop().time()
        if self.due_s is None:
            self.due_s = now_s + _SETTLE_S
        if now_s < self.due_s:
            return
        self._tries += 1
        self.due_s = now_s + _RETRY.delay_s(self._tries, 0.0)
        if _is_spoilt(loaded):
            await self._retire()  # nothing else is written in the place of what is not a mapping
        if problem := await write():
            report = log.debug if problem == self._reported else log.error
            self._reported = problem
            report(
                "mapping_not_written",
                reason=f"{difference}; {problem}",
                remedy="move away what stands at --socket-list, and give the agent space and permission to write",
            )
        else:
            self._reported = ""
            self._steps[Destructive.MAPPING_REPAIRED] += 1
            log.warning("mapping_repaired", reason=difference)


def _is_spoilt(loaded: Loaded[SocketMapping]) -> bool:
    return bool(loaded.problem) and loaded.problem != ABSENT


def _difference(loaded: Loaded[SocketMapping], mapped: Mapped) -> str:
    """How the file differs from what it should say; empty if it does not."""
    expected = mapped.expected
    if _is_spoilt(loaded):
        return f"the file is not a mapping: {loaded.problem}"
    if loaded.value is None:
        return f"the file is absent, {len(expected)} devices are served" if expected else ""
    said = {address: path for address, path in loaded.value if address not in mapped.unsure}
    if said == expected:
        return ""
    wrong = [address for address in said if address in expected and said[address] != expected[address]]
    missing, strange = expected.keys() - said.keys(), said.keys() - expected.keys()
    return (
        f"the file differs: {len(missing)} devices are missing, {len(strange)} are not of this agent,"
        f" {len(wrong)} have another device's socket"
    )


async def write_mapping(control: Control) -> str:
    """Has the daemon write the mapping file; returns why it could not, empty if it did."""
    try:
        answer = await control.call("mapping.write", timeout_s=_WRITE_S)
    except Unanswered:
        return unanswered("mapping.write", _WRITE_S)
    if not isinstance(answer, dict) or answer.get("mapping_written") is not False:
        return ""
    problem = answer.get("mapping_problem")
    said = printable(problem, _SAID_CHARACTERS) if isinstance(problem, str) else "see daemon_output"
    return f"the daemon could not write it: {said}"
