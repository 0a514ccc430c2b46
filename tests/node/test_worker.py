"""A worker that is held holds nobody else."""

import asyncio
import subprocess
import sys
import threading
from queue import SimpleQueue
from typing import Any

import pytest

from tests.processes import ROOT
from vdpa_agent.errors import NoThread
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


def test_a_thread_that_found_no_memory_is_replaced() -> None:
    class NoMemory(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002 - as in queue
            super().get(block, timeout)
            raise MemoryError

    async def scenario() -> None:
        worker = Worker("test")
        jobs, worker._jobs = worker._jobs, NoMemory()
        with pytest.raises(Stuck):
            await worker.run(lambda: 1, timeout_s=0.5)
        worker._jobs = jobs
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
