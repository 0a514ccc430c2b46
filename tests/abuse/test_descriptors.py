"""Descriptors that a peer passes hold up nobody: not while it is connected, not as it goes, not as the agent ends."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.abuse.conftest import AGENT_UID, STRANGER_UID, under
from tests.abuse.descriptors import pass_on
from tests.abuse.older_kernel import SO_PASSRIGHTS
from tests.abuse.wire import KNOWN, KNOWN_SOCKET, PREFACE
from tests.processes import ROOT, AgentProcess, running

OLDER_KERNEL: Final = (sys.executable, "-m", "tests.abuse.older_kernel")


@contextmanager
def _passing(how: str, listen: Path, who: Sequence[str]) -> Iterator[None]:
    """A process that has passed descriptors, and whose peers do not read."""
    with subprocess.Popen(
        [*who, sys.executable, "-m", "tests.abuse.descriptors", how, str(listen)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


@contextmanager
def _agent(run_dir: Path, kernel: Sequence[str]) -> Iterator[AgentProcess]:
    os.chown(run_dir, AGENT_UID, AGENT_UID)
    run_dir.chmod(0o755)
    options = ("--example-data", "--listen-mode=0666")
    with running(run_dir, *options, under=(*under(AGENT_UID), *kernel)) as agent:
        yield agent
    assert not [line for line in agent.log.raw if "Traceback" in line or "exception" in line]


WAYS: Final = ("amid_frames", "half_read", "out_of_band", "with_the_greeting", "turned_away", "hundreds")
USERS: Final = {"root": 0, "allowed": AGENT_UID, "stranger": STRANGER_UID}
# Root is not turned away: it may have as many connections as there are.
CASES: Final = [(how, user) for how in WAYS for user in USERS if (how, user) != ("turned_away", "root")]


@pytest.mark.parametrize(("how", "user"), CASES)
def test_passed_descriptors_hold_up_nobody(run_dir: Path, how: str, user: str) -> None:
    uid = USERS[user]
    with _agent(run_dir, OLDER_KERNEL) as agent:
        before = agent.descriptors()
        with _passing(how, agent.listen, under(uid)):
            agent.wait_logged("peer_misbehaved")
            for _ in range(20):
                assert agent.ask(KNOWN) == KNOWN_SOCKET.decode()
            assert agent.descriptors() <= before + 70  # its connections, and none that was passed
            assert agent.stop() == 0


def test_the_kernel_refuses_them_at_their_sender_where_it_can(run_dir: Path) -> None:
    with _agent(run_dir, ()) as agent, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.listen))
        try:
            connection.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
        except OSError:  # before 6.16 it cannot
            pass_on(connection, PREFACE, [connection.fileno()])
            agent.wait_logged("peer_misbehaved")
        else:
            with pytest.raises(PermissionError):
                pass_on(connection, PREFACE, [connection.fileno()])
        assert agent.ask(KNOWN) == KNOWN_SOCKET.decode()
