"""Fixtures of the interop tests: real agents, and a tap on the wire."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.tap import Tap, tapped
from tests.processes import AgentProcess, mapping_text, running


@pytest.fixture
def agent(run_dir: Path) -> Iterator[AgentProcess]:
    """An agent that serves the 16 example VFs; at the end it must exit with 0."""
    with running(run_dir, "--example-data") as process:
        yield process


@pytest.fixture
def letters_agent(run_dir: Path) -> Iterator[AgentProcess]:
    """An agent that serves a VF whose address has letters, as none of the examples does."""
    (run_dir / "socketList.dat").write_text(mapping_text({"0000:af:0b.1": "/var/run/vdpa/vhost/vdpa-9"}))
    with running(run_dir, "--daemon=none") as process:
        yield process


@pytest.fixture
def tap(agent: AgentProcess) -> Iterator[Tap]:
    """A tap on the agent of the example VFs."""
    with tapped(agent.listen, agent.directory / "tap.sock") as tap:
        yield tap
