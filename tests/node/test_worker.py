"""A worker that is held holds nobody else."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import pytest

from tests.hung import hung
from tests.mounts import mounted
from tests.processes import PATIENCE_S, ROOT
from vdpa_agent.errors import NoThread
from vdpa_agent.node import worker as worker_module
from vdpa_agent.node.worker import Stuck, Worker


def test_results_and_errors_come_back() -> None:
    async def scenario() -> None:
        worker = Worker("test")
        assert await worker.run(threading.get_ident, timeout_s=20) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0, timeout_s=20)
        assert await worker.run(lambda: 7, timeout_s=20) == 7

    asyncio.run(scenario())


def test_without_a_thread_the_reason_is_given_in_words() -> None:
    """As another user, since root may always start threads."""
    code = (
        "import asyncio; from vdpa_agent.files.off_loop import OffLoop;"
        " asyncio.run(OffLoop('test').do(lambda: None, '/run/file'))"
    )
    refused = run_without_threads(sys.executable, "-c", code)
    assert refused.stderr.splitlines()[-1] == f"vdpa_agent.errors.FileRefused: /run/file: {NoThread()}"


def test_an_agent_that_gets_no_thread_ends_with_one_line() -> None:
    refused = run_without_threads(sys.executable, "-m", "vdpa_agent", "run", "--example-data")
    assert (refused.returncode, refused.stderr) == (1, f"vdpa-agent: {NoThread()}\n")


def run_without_threads(*command: str) -> "subprocess.CompletedProcess[str]":
    limited = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "prlimit", "--nproc=1:1")
    return subprocess.run([*limited, *command], check=False, cwd=ROOT, capture_output=True, text=True)


def test_a_job_waits_for_the_one_whose_caller_is_gone() -> None:
    async def scenario() -> None:
        worker, begun, ends = Worker("test"), threading.Event(), threading.Event()
        order: list[str] = []

        def first() -> None:
            begun.set()
            ends.wait()
            order.append("first")

        caller = asyncio.ensure_future(worker.run(first, timeout_s=20))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        caller.cancel()
        last = asyncio.ensure_future(worker.run(lambda: order.append("last"), timeout_s=20))
        await asyncio.sleep(0.01)
        ends.set()
        await last
        assert order == ["first", "last"]
        ends.clear()
        with pytest.raises(Stuck):
            await worker.run(ends.wait, timeout_s=0.01)
        with pytest.raises(Stuck):
            await worker.run(ends.set, timeout_s=20)  # at once
        ends.set()

    asyncio.run(scenario())


def test_a_thread_that_found_no_memory_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMemory(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002 - as in queue
            super().get(block, timeout)
            raise MemoryError

    async def scenario() -> None:
        worker = Worker("test")
        with monkeypatch.context() as without_memory:
            without_memory.setattr(worker_module, "SimpleQueue", NoMemory)
            with pytest.raises(Stuck):
                await worker.run(lambda: 1, timeout_s=0.5)
        assert await worker.run(lambda: 2, timeout_s=20) == 2

    asyncio.run(scenario())


def test_what_is_stuck_is_refused_until_it_ends() -> None:
    async def scenario() -> None:
        worker, ends = Worker("test"), threading.Event()
        with pytest.raises(Stuck):
            await worker.run(ends.wait, timeout_s=0.01)
        called: list[int] = []
        with pytest.raises(Stuck):
            await worker.run(lambda: called.append(1), timeout_s=20)
        ends.set()
        while True:
            try:
                assert await worker.run(lambda: 3, timeout_s=20) == 3
                break
            except Stuck:
                await asyncio.sleep(0.001)
        assert called == []

    asyncio.run(scenario())


def test_the_process_does_not_wait_for_it() -> None:
    async def scenario() -> None:
        worker = Worker("test")
        with pytest.raises(Stuck):
            await worker.run(threading.Event().wait, timeout_s=0.01)

    asyncio.run(scenario())  # returns, though the thread never does


NEVER: Final = 1e6
"""A pause that no test waits for."""

T = TypeVar("T")


async def _done_at_last(worker: Worker, job: Callable[[], T]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await worker.run(job, timeout_s=20)
            except Stuck:
                await asyncio.sleep(0.001)


def _threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_what_hangs_for_long_is_given_up_and_does_no_further_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_FIRST_PAUSE_S", 0.05)

    async def scenario() -> None:
        worker, ends, steps = Worker("given-up"), threading.Event(), list[str]()

        def hangs() -> None:
            ends.wait()
            steps.append("of a thread that was given up")

        with pytest.raises(Stuck):
            await worker.run(hangs, timeout_s=0.01)
        assert await _done_at_last(worker, lambda: 7) == 7
        ends.set()
        async with asyncio.timeout(PATIENCE_S):
            while _threads("given-up") > 1:
                await asyncio.sleep(0.001)
        assert await worker.run(lambda: 8, timeout_s=20) == 8
        assert steps == []

    asyncio.run(scenario())


def test_as_many_threads_hang_as_may_and_all_end_with_what_held_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_FIRST_PAUSE_S", 0.0)

    async def scenario() -> None:
        worker, ends = Worker("many"), threading.Event()
        for _ in range(100):
            with pytest.raises(Stuck) as stuck:
                await worker.run(ends.wait, timeout_s=0.001)
        assert _threads("many") == 17
        assert "start the agent again if that was replaced: 17 threads hang" in str(stuck.value)
        ends.set()
        assert await _done_at_last(worker, lambda: 7) == 7
        async with asyncio.timeout(PATIENCE_S):
            while _threads("many") > 1:
                await asyncio.sleep(0.001)

    asyncio.run(scenario())


def test_the_longer_it_hangs_the_less_often_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_FIRST_PAUSE_S", 0.01)

    async def scenario() -> None:
        worker, ends = Worker("seldom"), threading.Event()
        begun_s = asyncio.get_running_loop().time()
        while _threads("seldom") < 6:
            with pytest.raises(Stuck):
                await worker.run(ends.wait, timeout_s=0.0001)
            await asyncio.sleep(0.001)
        assert asyncio.get_running_loop().time() - begun_s >= 0.01 * (1 + 2 + 4 + 8 + 16)
        ends.set()
        assert await _done_at_last(worker, lambda: 7) == 7

    asyncio.run(scenario())


def test_what_hung_from_the_start_is_used_as_soon_as_it_is_replaced(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread hangs on, since the file system below the new one does."""
    monkeypatch.setattr(worker_module, "_FIRST_PAUSE_S", NEVER)
    monkeypatch.setattr(worker_module, "_AFTER_MOUNT", 0.0)

    async def scenario() -> None:
        worker = Worker("replaced")
        with pytest.raises(Stuck):
            await worker.run(lambda: list(run_dir.iterdir()), timeout_s=0.1)
        with mounted(run_dir):
            assert await _done_at_last(worker, lambda: list(run_dir.iterdir())) == []
            assert _threads("replaced") == 2

    with hung(run_dir):
        asyncio.run(scenario())
