"""What the composition root does by itself: hearing that it should stop."""

import asyncio
import os
import signal
import time

import pytest

from vdpa_agent.agent import stop_signals
from vdpa_agent.daemon.reaper import reaping

pytestmark = pytest.mark.anyio


async def test_a_sigterm_is_not_lost_among_more_sigchlds_than_the_loop_has_room_for() -> None:
    heard: list[signal.Signals] = []
    with stop_signals(heard.append):
        async with reaping():
            for _ in range(500):  # the socket by which signals wake the loop has room for 278 bytes
                if os.fork() == 0:
                    os._exit(0)
                time.sleep(0.0008)
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(5):
                while not heard:
                    await asyncio.sleep(0.005)
    assert heard == [signal.SIGTERM]
