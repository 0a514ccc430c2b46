"""What the abuse tests share: an agent without privilege, a neighbour, an attack in a process of its own, the table."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import PATIENCE_S, ROOT, AgentProcess, running
from tests.served import Served

AGENT_UID: Final = 65_533
"""The agent's own user, who may call as well as root; attacks run as this user."""

STRANGER_UID: Final = 65_532
"""A user who may not call."""

CALM_S: Final = 0.5
"""How long the neighbour is measured before an attack, to see what the machine gives it."""

TABLE: Final = ROOT / "build" / "abuse.txt"


def under(uid: int) -> tuple[str, ...]:
    """What starts a program as a user without privilege."""
    assert os.geteuid() == 0, "these tests are about users: run them as root"
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all")


@dataclass
class Abused:
    """An agent that is attacked, with what was seen meanwhile."""

    agent: AgentProcess
    rss_kib: dict[str, int] = field(default_factory=dict)
    calm: dict[str, Any] = field(default_factory=dict)
    neighbour: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def with_neighbour(self) -> Iterator[None]:
        """A neighbour, as root, asks all along."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.abuse.neighbour", str(self.agent.listen)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
            output, _ = process.communicate(timeout=PATIENCE_S)  # closes its input
            self.neighbour = json.loads(output)
        finally:
            process.kill()
            process.wait()

    def attack(self, name: str, uid: int = AGENT_UID) -> dict[str, Any]:
        """Runs an attack beside the neighbour; what it saw."""
        with self.with_neighbour():
            time.sleep(CALM_S)
        self.calm = self.neighbour
        self.rss_kib["before"] = self.agent.rss_kib()
        with self.with_neighbour():
            self.seen = self.run(name, uid)
        self.rss_kib["after"] = self.agent.rss_kib()
        self._tell(name)
        return self.seen

    def run(self, name: str, uid: int = AGENT_UID) -> dict[str, Any]:
        """Runs an attack by itself; what it saw."""
        ended = subprocess.run(
            [*under(uid), sys.executable, "-m", "tests.abuse.attacks", name, str(self.agent.listen)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=ROOT,
        )
        assert ended.returncode == 0, ended.stderr
        seen: dict[str, Any] = json.loads(ended.stdout)
        return seen

    def reasons(self) -> list[str]:
        """Why peers were turned away, as the log tells."""
        return [line["reason"] for line in self.agent.log.named("peer_misbehaved")]

    def _tell(self, name: str) -> None:
        neighbour = self.neighbour
        closed = f"{self.seen['closed_s']:.3f}" if self.seen.get("closed") else "-"
        goaway = self.seen.get("goaway")
        line = (
            f"{name:28} {self.rss_kib['before'] / 1024:7.1f} {self.rss_kib['after'] / 1024:7.1f} {closed:>8}"
            f" {'-' if goaway is None else goaway:>6} {neighbour['calls']:6}"
            f" {self.calm['p99_ms']:7.2f} {neighbour['p50_ms']:7.2f} {neighbour['p99_ms']:7.2f}"
            f" {neighbour['max_ms']:7.2f}"
            f" {len(neighbour['errors']):6}  {self.seen.get('answers', self.seen)}"
        )
        print(line)  # noqa: T201
        with TABLE.open("a") as table:
            table.write(f"{line}\n")


@pytest.fixture(scope="session")
def table() -> None:
    """The table of what was seen, of this run alone."""
    TABLE.parent.mkdir(exist_ok=True)
    heading = (
        f"{'attack':28} {'MiB':>7} {'after':>7} {'closed s':>8} {'goaway':>6}"
        f" {'calls':>6} {'calm':>7} {'p50 ms':>7} {'p99':>7} {'max':>7} {'errors':>6}  answers"
    )
    TABLE.write_text(
        f"{time.strftime('%Y-%m-%d %H:%M')}; calls and latencies are the neighbour's, calm: its p99 before\n{heading}\n"
    )
    print(f"\n{heading}")  # noqa: T201


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """An event loop that is there between tests."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def served(runner: asyncio.Runner) -> Served:
    """The services of that loop, and connections to them."""

    async def serve() -> Served:
        return Served()

    return runner.run(serve())


@pytest.fixture
def abused(run_dir: Path, table: None) -> Iterator[Abused]:  # noqa: ARG001 - it begins the table
    """An agent of a user without privilege; whatever was done to it, it logged little and no traceback."""
    os.chown(run_dir, AGENT_UID, AGENT_UID)
    run_dir.chmod(0o755)
    with running(run_dir, "--example-data", "--listen-mode=0666", under=under(AGENT_UID)) as agent:
        yield Abused(agent)
    raw = [line for line in agent.log.raw if '"socket_asked"' not in line]
    assert not [line for line in raw if "Traceback" in line or "exception" in line]
    assert len(raw) < 12, raw
